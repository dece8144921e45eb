//! Split-KV attention of one new token a sequence, `kernels/cuda/paged_decode.cu`.

use super::{Launch, Ptr, SHARED_LIMIT, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};
use crate::kv::BLOCK;
use crate::rope::HeadLayout;

/// Operands of [`paged_decode`].
#[derive(Debug, Clone, Copy)]
pub struct PagedDecode {
    /// `[sequences, (q + 2 kv) * dim]`, q rotated.
    pub qkv: Ptr,
    /// The layer's cache, see [`super::rope_kv_write`].
    pub kv: Ptr,
    /// `[sequences, table_width]` u32.
    pub tables: Ptr,
    /// `[sequences]` u32: tokens in the cache, the new one included; 0 pads a captured batch.
    pub contexts: Ptr,
    /// Scratch, `[sequences, q, parts, dim]` f32.
    pub sums: Ptr,
    /// Scratch, `[sequences, q, parts, 2]` f32.
    pub stats: Ptr,
    /// `[sequences, q * dim]`.
    pub out: Ptr,
    /// Element type of `qkv`, `kv` and `out`.
    pub dtype: DType,
    /// Sequences, padding included.
    pub sequences: usize,
    /// Blocks that a row of `tables` has room for.
    pub table_width: usize,
    /// Parts that a context is split into.
    pub parts: usize,
    /// The fused row.
    pub heads: HeadLayout,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Tokens that a query sees, its own included.
    pub window: Option<u32>,
}

/// The attention over the parts, then their join.
///
/// # Errors
/// [`KernelError::Unsupported`] for a head layout that the kernel does not have.
pub fn paged_decode(op: &PagedDecode) -> Result<[Launch; 2]> {
    const OP: &str = "device::paged_decode";
    let (heads, size) = (op.heads, op.dtype.size());
    let packs = heads.dim * size / 16;
    if !(heads.dim * size).is_multiple_of(16) || !(2..=32).contains(&packs) {
        return Err(KernelError::Unsupported { op: OP, what: "a head dimension", value: heads.dim });
    }
    if heads.kv == 0 || !heads.q.is_multiple_of(heads.kv) || op.parts == 0 {
        return Err(KernelError::Unsupported { op: OP, what: "a number of query heads", value: heads.q });
    }
    let group = heads.q / heads.kv;
    let (tile, names) = match group {
        1 => (1, ["paged_decode_bf16_g1", "paged_decode_f16_g1", "paged_decode_f32_g1"]),
        2..=4 => (4, ["paged_decode_bf16_g4", "paged_decode_f16_g4", "paged_decode_f32_g4"]),
        _ => (8, ["paged_decode_bf16_g8", "paged_decode_f16_g8", "paged_decode_f32_g8"]),
    };
    // Two stages of keys and values a warp; later each warp's results.
    let stages = 2 * 2 * BLOCK * heads.dim * size;
    let results = tile * (heads.dim + 2) * 4;
    let each = stages.max(results);
    let warps = [4, 2, 1]
        .into_iter()
        .find(|warps| warps * each <= SHARED_LIMIT)
        .ok_or(KernelError::Unsupported { op: OP, what: "a head dimension", value: heads.dim })?;
    let window = op.window.map_or(0, |window| window.min(i32::MAX as u32) as i32);
    let (dim, parts) = (int(OP, "a head dimension", heads.dim)?, int(OP, "a number of parts", op.parts)?);
    let sequences = extent(OP, "sequences", op.sequences)?;
    let grid = [parts as u32, extent(OP, "kv heads", heads.kv * group.div_ceil(tile))?, sequences];
    let decode = Launch::new(by_type(OP, op.dtype, names.map(Some))?, grid, warps * 32, warps * each)
        .ptrs(&[op.qkv, op.kv, op.tables, op.contexts, op.sums, op.stats])
        .ints(&[
            int(OP, "a row of qkv", heads.width())?,
            int(OP, "a block table", op.table_width)?,
            int(OP, "query heads", heads.q)?,
            int(OP, "kv heads", heads.kv)?,
            dim,
        ])
        .float(op.scale)
        .int(window);
    let names = ["paged_decode_merge_bf16", "paged_decode_merge_f16", "paged_decode_merge_f32"];
    let grid = [extent(OP, "query heads", heads.q)?, sequences, 1];
    let threads = heads.dim.next_multiple_of(32).min(256);
    let merge = Launch::new(by_type(OP, op.dtype, names.map(Some))?, grid, threads, 0)
        .ptrs(&[op.sums, op.stats, op.contexts, op.out])
        .ints(&[parts, dim, window]);
    Ok([decode, merge])
}
