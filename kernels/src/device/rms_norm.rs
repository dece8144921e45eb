//! Residual sum and RMS norm, `kernels/cuda/rms_norm.cu`.

use super::{Launch, Ptr, a_block_a_row, int};
use crate::DType;
use crate::error::Result;

/// Operands of [`rms_norm`].
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    /// `[rows, h]`.
    pub x: Ptr,
    /// `[rows, h]`, or none: `x` alone is normalised.
    pub residual: Ptr,
    /// `[h]` f32.
    pub weight: Ptr,
    /// `[rows, h]`.
    pub out: Ptr,
    /// The number of rows, u32.
    pub rows: Ptr,
    /// Element type of `x`, `residual` and `out`.
    pub dtype: DType,
    /// Upper bound of the rows.
    pub max_rows: usize,
    /// Width of a row.
    pub h: usize,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// `residual += x; out = residual / rms(residual) * weight`, or of `x` alone.
///
/// # Errors
/// [`crate::KernelError::Unsupported`] for a row that no block can hold.
pub fn rms_norm(op: &RmsNorm) -> Result<Launch> {
    const OP: &str = "device::rms_norm";
    let wide = ["rms_norm_bf16", "rms_norm_f16", "rms_norm_f32"];
    let odd = ["rms_norm_bf16_odd", "rms_norm_f16_odd", "rms_norm_f32_odd"];
    Ok(a_block_a_row(OP, op.dtype, op.max_rows, op.h, wide, odd)?
        .ptrs(&[op.x, op.residual, op.weight, op.out, op.rows])
        .int(int(OP, "a width", op.h)?)
        .float(op.eps))
}
