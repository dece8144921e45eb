//! Weights of products, as device memory has them.

use super::Ptr;
use crate::DType;
use crate::error::{KernelError, Result};

/// Weight rows, k contiguous.
#[derive(Debug, Clone, Copy)]
pub enum Weights {
    /// Of the activations' element type.
    Plain(Ptr),
    /// Codes of [`crate::fp8`], widened where they are multiplied.
    Fp8 {
        /// As the plain weights, a byte each.
        codes: Ptr,
        /// f32, one for each row.
        scales: Ptr,
    },
}

impl Weights {
    /// The two arguments of a kernel: rows, and scales or none.
    pub(super) fn ptrs(self) -> [Ptr; 2] {
        match self {
            Weights::Plain(rows) => [rows, Ptr::NONE],
            Weights::Fp8 { codes, scales } => [codes, scales],
        }
    }

    /// Bytes of a weight that meets activations of `dtype`.
    pub(super) fn size(self, dtype: DType) -> usize {
        match self {
            Weights::Plain(_) => dtype.size(),
            Weights::Fp8 { .. } => 1,
        }
    }

    /// The one of both that is for these weights.
    pub(super) fn choose<T>(self, plain: T, fp8: T) -> T {
        match self {
            Weights::Plain(_) => plain,
            Weights::Fp8 { .. } => fp8,
        }
    }

    /// Refuses rows of `widths` of 16-bit activations, or of weights, that 16-byte accesses do not fit.
    pub(super) fn fit(self, op: &'static str, widths: &[usize]) -> Result<()> {
        let (unit, what) =
            self.choose((8, "a width that is no multiple of 8"), (16, "a width that is no multiple of 16"));
        match widths.iter().find(|width| **width == 0 || !width.is_multiple_of(unit)) {
            Some(width) => Err(KernelError::Unsupported { op, what, value: *width }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_no_whole_16_bytes_are_refused() {
        let refused = |weights: Weights, width: usize| matches!(weights.fit("op", &[64, width]), Err(KernelError::Unsupported { value, .. }) if value == width);
        let (plain, fp8) = (Weights::Plain(Ptr(1)), Weights::Fp8 { codes: Ptr(1), scales: Ptr(2) });
        for (width, of_plain, of_fp8) in
            [(0, true, true), (12, true, true), (24, false, true), (48, false, false)]
        {
            assert_eq!((refused(plain, width), refused(fp8, width)), (of_plain, of_fp8), "{width}");
        }
    }
}
