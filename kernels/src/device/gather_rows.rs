//! Some rows of the activations, `kernels/cuda/gather_rows.cu`.

use super::{Launch, Ptr, int, packs_of_rows};
use crate::DType;
use crate::error::Result;

/// Operands of [`gather_rows`].
#[derive(Debug, Clone, Copy)]
pub struct GatherRows {
    /// `[.., h]`.
    pub x: Ptr,
    /// As `x`, or none.
    pub residual: Ptr,
    /// `[rows]` u32: which row of `x` each is; `u32::MAX` pads.
    pub at: Ptr,
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
}

/// `out[i] = x[at[i]] + residual[at[i]]`, or `x` alone; zeros where `at` pads.
///
/// # Errors
/// [`crate::KernelError::Unsupported`] when a number is too large.
pub fn gather_rows(op: &GatherRows) -> Result<Launch> {
    const OP: &str = "device::gather_rows";
    let wide = ["gather_rows_bf16", "gather_rows_f16", "gather_rows_f32"];
    let odd = ["gather_rows_bf16_odd", "gather_rows_f16_odd", "gather_rows_f32_odd"];
    Ok(packs_of_rows(OP, op.dtype, op.max_rows, op.h, wide, odd)?
        .ptrs(&[op.x, op.residual, op.at, op.out, op.rows])
        .int(int(OP, "a width", op.h)?))
}
