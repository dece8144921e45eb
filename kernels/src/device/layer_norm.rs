//! Residual sum and layer norm, `kernels/cuda/layer_norm.cu`.

use super::{Launch, Ptr, a_block_a_row, int};
use crate::DType;
use crate::error::Result;

/// Operands of [`layer_norm`].
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm {
    /// `[rows, h]`.
    pub x: Ptr,
    /// `[rows, h]`, or none: `x` alone is normalised.
    pub residual: Ptr,
    /// `[h]` f32.
    pub weight: Ptr,
    /// `[h]` f32.
    pub bias: Ptr,
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
    /// Added to the variance.
    pub eps: f32,
}

/// `out = (x + residual - mean) / deviation * weight + bias`, or of `x` alone; the sum is not rounded.
///
/// # Errors
/// [`crate::KernelError::Unsupported`] for a row that no block can hold.
pub fn layer_norm(op: &LayerNorm) -> Result<Launch> {
    const OP: &str = "device::layer_norm";
    let wide = ["layer_norm_bf16", "layer_norm_f16", "layer_norm_f32"];
    let odd = ["layer_norm_bf16_odd", "layer_norm_f16_odd", "layer_norm_f32_odd"];
    Ok(a_block_a_row(OP, op.dtype, op.max_rows, op.h, wide, odd)?
        .ptrs(&[op.x, op.residual, op.weight, op.bias, op.out, op.rows])
        .int(int(OP, "a width", op.h)?)
        .float(op.eps))
}
