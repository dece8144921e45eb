//! Attention of many tokens a sequence over the paged cache, `kernels/cuda/paged_prefill.cu`.

use super::{Launch, Ptr, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};
use crate::rope::HeadLayout;

const THREADS: usize = 128;
/// (token, query head of a group) rows of a block.
const ROWS: usize = 64;
/// Tokens of a tile of keys and values.
const TOKENS: usize = 32;

/// Operands of [`paged_prefill`].
#[derive(Debug, Clone, Copy)]
pub struct PagedPrefill {
    /// `[rows, (q + 2 kv) * dim]`, q rotated.
    pub qkv: Ptr,
    /// The layer's cache, see [`super::rope_kv_write`]; it holds the queries' own keys already.
    pub kv: Ptr,
    /// Block tables of all sequences, u32.
    pub tables: Ptr,
    /// `[sequences, 4]` u32: the fields of [`crate::SeqSpan`], in order; a `query_len` of 0 pads.
    pub spans: Ptr,
    /// `[rows, q * dim]`.
    pub out: Ptr,
    /// Element type of `qkv`, `kv` and `out`: bf16 or f16.
    pub dtype: DType,
    /// Sequences, padding included.
    pub sequences: usize,
    /// Upper bound of a sequence's queries.
    pub max_queries: usize,
    /// The fused row.
    pub heads: HeadLayout,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Tokens that a query sees, its own included.
    pub window: Option<u32>,
}

/// Causal attention of each span's queries over its cached keys.
///
/// # Errors
/// [`KernelError::Unsupported`] for a head layout that the kernel does not have, or f32.
pub fn paged_prefill(op: &PagedPrefill) -> Result<Launch> {
    const OP: &str = "device::paged_prefill";
    let heads = op.heads;
    if heads.dim == 0 || heads.dim > 128 || !heads.dim.is_multiple_of(8) {
        return Err(KernelError::Unsupported { op: OP, what: "a head dimension", value: heads.dim });
    }
    if heads.kv == 0 || !heads.q.is_multiple_of(heads.kv) {
        return Err(KernelError::Unsupported { op: OP, what: "a number of query heads", value: heads.q });
    }
    let (padded, names) = if heads.dim <= 64 {
        (64, ["paged_prefill_bf16_64", "paged_prefill_f16_64"])
    } else {
        (128, ["paged_prefill_bf16_128", "paged_prefill_f16_128"])
    };
    let kernel = by_type(OP, op.dtype, [Some(names[0]), Some(names[1]), None])?;
    let tiles = (op.max_queries * (heads.q / heads.kv)).div_ceil(ROWS);
    let grid = [
        extent(OP, "queries", tiles)?,
        extent(OP, "kv heads", heads.kv)?,
        extent(OP, "sequences", op.sequences)?,
    ];
    // The queries, and two stages of keys and values.
    let shared = (ROWS + 2 * 2 * TOKENS) * padded * op.dtype.size();
    Ok(Launch::new(kernel, grid, THREADS, shared)
        .ptrs(&[op.qkv, op.kv, op.tables, op.spans, op.out])
        .ints(&[
            int(OP, "a row of qkv", heads.width())?,
            int(OP, "query heads", heads.q)?,
            int(OP, "kv heads", heads.kv)?,
            int(OP, "a head dimension", heads.dim)?,
        ])
        .float(op.scale)
        .int(op.window.map_or(0, |window| window.min(i32::MAX as u32) as i32)))
}
