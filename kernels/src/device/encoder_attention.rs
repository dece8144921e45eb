//! Bidirectional attention of an encoder, `kernels/cuda/encoder_attention.cu`.

use super::{Launch, Ptr, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};

const THREADS: usize = 128;
/// Query rows of a block.
const ROWS: usize = 64;
/// Tokens of a tile of keys and values.
const TOKENS: usize = 32;

/// Operands of [`encoder_attention`].
#[derive(Debug, Clone, Copy)]
pub struct EncoderAttention {
    /// `[rows, 3 * heads * dim]`: q, k, v.
    pub qkv: Ptr,
    /// `[sequences + 1]` u32: sequence `i` is rows `cu_seqlens[i]..cu_seqlens[i + 1]`; an empty one pads.
    pub cu_seqlens: Ptr,
    /// `[rows, heads * dim]`.
    pub out: Ptr,
    /// Element type of `qkv` and `out`: bf16 or f16.
    pub dtype: DType,
    /// Sequences, padding included.
    pub sequences: usize,
    /// Upper bound of a sequence's tokens.
    pub max_tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// What scores are multiplied with.
    pub scale: f32,
}

/// Attention of each token over all of its sequence.
///
/// # Errors
/// [`KernelError::Unsupported`] for heads that the kernel does not have, more than 65535 heads or sequences, or f32.
pub fn encoder_attention(op: &EncoderAttention) -> Result<Launch> {
    const OP: &str = "device::encoder_attention";
    let unsupported = |what, value| Err(KernelError::Unsupported { op: OP, what, value });
    let (padded, names) = match op.dim {
        1..=32 => (32, ["encoder_attention_bf16_32", "encoder_attention_f16_32"]),
        33..=64 => (64, ["encoder_attention_bf16_64", "encoder_attention_f16_64"]),
        65..=128 => (128, ["encoder_attention_bf16_128", "encoder_attention_f16_128"]),
        _ => return unsupported("a head dimension", op.dim),
    };
    if !op.dim.is_multiple_of(8) {
        return unsupported("a head dimension", op.dim);
    }
    for (what, value) in [("heads", op.heads), ("sequences", op.sequences)] {
        // The grid's y and z end here.
        if value > usize::from(u16::MAX) {
            return unsupported(what, value);
        }
    }
    let kernel = by_type(OP, op.dtype, [Some(names[0]), Some(names[1]), None])?;
    let grid = [
        extent(OP, "tokens", op.max_tokens.div_ceil(ROWS))?,
        extent(OP, "heads", op.heads)?,
        extent(OP, "sequences", op.sequences)?,
    ];
    // The queries, and two stages of keys and values.
    let shared = (ROWS + 2 * 2 * TOKENS) * padded * op.dtype.size();
    Ok(Launch::new(kernel, grid, THREADS, shared)
        .ptrs(&[op.qkv, op.cu_seqlens, op.out])
        .ints(&[int(OP, "heads", op.heads)?, int(OP, "a head dimension", op.dim)?])
        .float(op.scale))
}
