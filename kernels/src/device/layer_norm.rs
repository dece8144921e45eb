//! Residual sum and layer norm, `kernels/cuda/layer_norm.cu`.

use super::{Launch, Ptr, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};

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

/// Packs that a thread keeps (`kPacks`).
const PACKS: usize = 4;

/// `out = (x + residual - mean) / deviation * weight + bias`, or of `x` alone; the sum is not rounded.
///
/// # Errors
/// [`KernelError::Unsupported`] for a row that no block can hold.
pub fn layer_norm(op: &LayerNorm) -> Result<Launch> {
    const OP: &str = "device::layer_norm";
    let wide = 16 / op.dtype.size();
    let (names, width) = if op.h.is_multiple_of(wide) {
        (["layer_norm_bf16", "layer_norm_f16", "layer_norm_f32"], wide)
    } else {
        (["layer_norm_bf16_odd", "layer_norm_f16_odd", "layer_norm_f32_odd"], 1)
    };
    let kernel = by_type(OP, op.dtype, names.map(Some))?;
    let packs = op.h.div_ceil(width);
    // A warp at least; as many as leave a thread one pack, up to the largest block.
    let threads = packs.next_multiple_of(32).clamp(32, 1024);
    if packs > threads * PACKS || op.h == 0 {
        return Err(KernelError::Unsupported { op: OP, what: "a width", value: op.h });
    }
    let grid = [extent(OP, "rows", op.max_rows)?, 1, 1];
    Ok(Launch::new(kernel, grid, threads, 0)
        .ptrs(&[op.x, op.residual, op.weight, op.bias, op.out, op.rows])
        .int(int(OP, "a width", op.h)?)
        .float(op.eps))
}
