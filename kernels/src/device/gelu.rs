//! The GELU activation, `kernels/cuda/gelu.cu`.

use super::{Launch, Ptr, by_type, extent, int};
use crate::error::{KernelError, Result};
use crate::{DType, GeluKind};

/// Most threads of a block.
const THREADS: usize = 256;

/// Operands of [`gelu`].
#[derive(Debug, Clone, Copy)]
pub struct Gelu {
    /// `[rows, n]`, in place.
    pub x: Ptr,
    /// `[n]` f32 that is added first, or none.
    pub bias: Ptr,
    /// The number of rows, u32.
    pub rows: Ptr,
    /// Element type of `x`.
    pub dtype: DType,
    /// Upper bound of the rows.
    pub max_rows: usize,
    /// Width of a row.
    pub n: usize,
    /// Which form.
    pub kind: GeluKind,
}

/// `x = activation(x + bias)`.
///
/// # Errors
/// [`KernelError::Unsupported`] for an empty row or a number that is too large.
pub fn gelu(op: &Gelu) -> Result<Launch> {
    const OP: &str = "device::gelu";
    let wide = 16 / op.dtype.size();
    let (names, width) = if op.n.is_multiple_of(wide) {
        (["gelu_bf16", "gelu_f16", "gelu_f32"], wide)
    } else {
        (["gelu_bf16_odd", "gelu_f16_odd", "gelu_f32_odd"], 1)
    };
    let kernel = by_type(OP, op.dtype, names.map(Some))?;
    if op.n == 0 {
        return Err(KernelError::Unsupported { op: OP, what: "a width", value: op.n });
    }
    let packs = op.n.div_ceil(width);
    let threads = packs.next_multiple_of(32).min(THREADS);
    let parts = packs.div_ceil(threads);
    // `Kind` of the kernel.
    let kind = match op.kind {
        GeluKind::Erf => 0,
        GeluKind::Tanh => 1,
        GeluKind::Relu => 2,
    };
    let grid = [extent(OP, "rows", op.max_rows.saturating_mul(parts))?, 1, 1];
    Ok(Launch::new(kernel, grid, threads, 0).ptrs(&[op.x, op.bias, op.rows]).ints(&[
        int(OP, "a width", op.n)?,
        int(OP, "parts", parts)?,
        kind,
    ]))
}
