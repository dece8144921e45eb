//! The sum of an encoder's embeddings, `kernels/cuda/encoder_embed.cu`.

use super::{Launch, Ptr, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};

/// Most threads of a block.
const THREADS: usize = 256;

/// Rows of a table in the activations' type.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// `[count, h]`.
    pub rows: Ptr,
    /// Rows; 0: no table.
    pub count: usize,
}

/// Operands of [`encoder_embed`].
#[derive(Debug, Clone, Copy)]
pub struct EncoderEmbed {
    /// `[rows]` u32, into `words`.
    pub ids: Ptr,
    /// `[rows]` u32, into `positions`.
    pub position_ids: Ptr,
    /// `[rows]` u32, into `types`, or none: all tokens are of type 0.
    pub type_ids: Ptr,
    /// Of the vocabulary.
    pub words: Table,
    /// Of positions in a sequence.
    pub positions: Table,
    /// Of the texts of a pair.
    pub types: Table,
    /// `[rows, h]`.
    pub out: Ptr,
    /// The number of rows, u32.
    pub rows: Ptr,
    /// Element type of the tables and `out`.
    pub dtype: DType,
    /// Upper bound of the rows.
    pub max_rows: usize,
    /// Width of a row.
    pub h: usize,
}

/// `out = words[id] + positions[position] + types[type]`; an index that a table does not have adds nothing.
///
/// # Errors
/// [`KernelError::Unsupported`] for an empty row or a number that is too large.
pub fn encoder_embed(op: &EncoderEmbed) -> Result<Launch> {
    const OP: &str = "device::encoder_embed";
    let wide = 16 / op.dtype.size();
    let (names, width) = if op.h.is_multiple_of(wide) {
        (["encoder_embed_bf16", "encoder_embed_f16", "encoder_embed_f32"], wide)
    } else {
        (["encoder_embed_bf16_odd", "encoder_embed_f16_odd", "encoder_embed_f32_odd"], 1)
    };
    let kernel = by_type(OP, op.dtype, names.map(Some))?;
    if op.h == 0 {
        return Err(KernelError::Unsupported { op: OP, what: "a width", value: op.h });
    }
    let threads = op.h.div_ceil(width).next_multiple_of(32).min(THREADS);
    let grid = [extent(OP, "rows", op.max_rows)?, 1, 1];
    Ok(Launch::new(kernel, grid, threads, 0)
        .ptrs(&[op.ids, op.position_ids, op.type_ids])
        .ptrs(&[op.words.rows, op.positions.rows, op.types.rows, op.out, op.rows])
        .ints(&[
            int(OP, "words", op.words.count)?,
            int(OP, "positions", op.positions.count)?,
            int(OP, "types", op.types.count)?,
            int(OP, "a width", op.h)?,
        ]))
}
