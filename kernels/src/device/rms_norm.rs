//! Residual sum and RMS norm, `kernels/cuda/rms_norm.cu`.

use super::{Launch, Ptr, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};

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

/// Packs that a thread keeps (`kPacks`).
const PACKS: usize = 4;

/// `residual += x; out = residual / rms(residual) * weight`, or of `x` alone.
///
/// # Errors
/// [`KernelError::Unsupported`] for a row that no block can hold.
pub fn rms_norm(op: &RmsNorm) -> Result<Launch> {
    const OP: &str = "device::rms_norm";
    let wide = 16 / op.dtype.size();
    let (names, width) = if op.h.is_multiple_of(wide) {
        (["rms_norm_bf16", "rms_norm_f16", "rms_norm_f32"], wide)
    } else {
        (["rms_norm_bf16_odd", "rms_norm_f16_odd", "rms_norm_f32_odd"], 1)
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
        .ptrs(&[op.x, op.residual, op.weight, op.out, op.rows])
        .int(int(OP, "a width", op.h)?)
        .float(op.eps))
}
