//! Rows of an embedding table, `kernels/cuda/embed_rows.cu`.

use super::{Launch, Ptr, int, packs_of_rows};
use crate::DType;
use crate::error::Result;

/// Operands of [`embed_rows`].
#[derive(Debug, Clone, Copy)]
pub struct EmbedRows {
    /// `[rows]` u32.
    pub ids: Ptr,
    /// `[vocab, h]`.
    pub table: Ptr,
    /// `[rows, h]`.
    pub out: Ptr,
    /// The number of rows, u32.
    pub rows: Ptr,
    /// Element type of `table` and `out`.
    pub dtype: DType,
    /// Upper bound of the rows.
    pub max_rows: usize,
    /// Rows of the table.
    pub vocab: usize,
    /// Width of a row.
    pub h: usize,
}

/// `out[i] = table[ids[i]]`; zeros for an id past the table.
///
/// # Errors
/// [`crate::KernelError::Unsupported`] when a number is too large.
pub fn embed_rows(op: &EmbedRows) -> Result<Launch> {
    const OP: &str = "device::embed_rows";
    let wide = ["embed_rows_bf16", "embed_rows_f16", "embed_rows_f32"];
    let odd = ["embed_rows_bf16_odd", "embed_rows_f16_odd", "embed_rows_f32_odd"];
    Ok(packs_of_rows(OP, op.dtype, op.max_rows, op.h, wide, odd)?
        .ptrs(&[op.ids, op.table, op.out, op.rows])
        .ints(&[int(OP, "rows of a table", op.vocab)?, int(OP, "a width", op.h)?]))
}
