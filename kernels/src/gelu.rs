//! The GELU activation, in place.

use crate::buf::ViewMut;
use crate::cpu::{Isa, dispatch, math};
use crate::error::Result;
use crate::exec::{Exec, share};

/// Which form of GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeluKind {
    /// `x * Φ(x)` by the error function.
    Erf,
    /// The tanh approximation.
    Tanh,
    /// `max(0, x)`, for encoders that were trained with it.
    Relu,
}

/// Applies the activation to every element of `x`.
///
/// # Errors
/// None today; the signature is that of every op.
pub fn gelu(exec: &Exec, mut x: ViewMut<'_>, kind: GeluKind) -> Result<()> {
    let (rows, cols) = (x.n_rows(), x.n_cols());
    let raw = x.raw();
    exec.run(&|worker, workers| {
        for row in share(rows, 1, worker, workers) {
            // SAFETY: row < rows and cols is the width; each row belongs to one worker.
            unsafe { activate(std::slice::from_raw_parts_mut(raw.at(row, 0), cols), kind) };
        }
    });
    Ok(())
}

dispatch!(
    /// # Safety
    /// None.
    unsafe fn activate(row: &mut [f32], kind: GeluKind) = activate_inner
);

#[inline(always)]
unsafe fn activate_inner<S: Isa>(row: &mut [f32], kind: GeluKind) {
    match kind {
        GeluKind::Erf => {
            for x in row {
                *x = 0.5 * *x * (1.0 + math::erf(*x * std::f32::consts::FRAC_1_SQRT_2));
            }
        }
        GeluKind::Tanh => {
            for x in row {
                let inner = 0.797_884_6 * (0.044_715 * *x * *x).mul_add(*x, *x);
                *x = 0.5 * *x * (1.0 + math::tanh(inner));
            }
        }
        GeluKind::Relu => {
            for x in row {
                *x = x.max(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_have_known_values() {
        let mut erf = [1.0_f32, -1.0, 0.0, 3.0];
        gelu(&Exec::simd(1), ViewMut::new(&mut erf, 1, 4).expect("view"), GeluKind::Erf).expect("gelu");
        for (found, expected) in erf.iter().zip([0.841_344_7, -0.158_655_3, 0.0, 2.995_950_3]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        let mut tanh = [1.0_f32, -1.0];
        gelu(&Exec::simd(1), ViewMut::new(&mut tanh, 1, 2).expect("view"), GeluKind::Tanh).expect("gelu");
        for (found, expected) in tanh.iter().zip([0.841_192, -0.158_808]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
    }
}
