//! Adapters of many rows at once, `kernels/cuda/lora.cu`.
//!
//! Rows are grouped by adapter with [`super::expert_align`]: a dense layer's ids are the slots of its rows, a mixture's
//! are virtual experts. A is `[adapters, rank, k]`, B `[adapters, n, rank]`, of the slots' largest rank: a smaller
//! adapter has zeros.

use super::{Launch, Ptr, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};

/// Largest rank.
pub const MAX_RANK: usize = 256;
const THREADS: usize = 256;
const STAGES: usize = 3;
/// Weight rows of a block of the shrink.
const ROWS: usize = 32;
/// Token tiles of 8 that a block has at once.
const TILES: usize = 2;

/// What the shrink and the expand share.
#[derive(Debug, Clone, Copy)]
pub struct Adapters {
    /// `[adapters + 1]` u32, from [`super::expert_align`].
    pub offsets: Ptr,
    /// `[pairs]` u32, from [`super::expert_align`].
    pub sorted_pairs: Ptr,
    /// Scratch, `[parts, max_pairs, rank]` f32.
    pub v: Ptr,
    /// Element type of activations and weights: bf16 or f16.
    pub dtype: DType,
    /// Adapter slots times `experts`.
    pub adapters: usize,
    /// Experts of the layer; 1 for a dense one.
    pub experts: usize,
    /// Upper bound of the pairs.
    pub max_pairs: usize,
    /// The slots' largest rank.
    pub rank: usize,
    /// Parts that the shrink splits k into.
    pub parts: usize,
}

/// `v = A · x` for each pair; a row of `x [pairs / ranks, k]` has `ranks` pairs.
///
/// # Errors
/// [`KernelError`] when 16-byte accesses do not fit the shape, or for f32.
pub fn lora_shrink(shape: &Adapters, x: Ptr, a: Ptr, ranks: usize, k: usize) -> Result<Launch> {
    const OP: &str = "device::lora_shrink";
    check(OP, shape)?;
    if k == 0 || !k.is_multiple_of(8) {
        return Err(KernelError::Unsupported { op: OP, what: "a width that is no multiple of 8", value: k });
    }
    let kernel = by_type(OP, shape.dtype, [Some("lora_shrink_bf16"), Some("lora_shrink_f16"), None])?;
    let blocks = extent(OP, "a rank", shape.rank.div_ceil(ROWS))?;
    let grid = [blocks, extent(OP, "adapters", shape.adapters)?, extent(OP, "parts", shape.parts)?];
    let ring = STAGES * (ROWS / 8 + TILES) * THREADS * 16;
    Ok(Launch::new(kernel, grid, THREADS, ring)
        .ptrs(&[x, a, shape.offsets, shape.sorted_pairs, shape.v])
        .ints(&[
            int(OP, "pairs", shape.max_pairs)?,
            int(OP, "experts a token", ranks)?,
            int(OP, "a rank", shape.rank)?,
            int(OP, "a width", k)?,
        ]))
}

/// `out [pairs, n] = scale * B · v` for each pair with an adapter, or `+=`; `scales` is f32, one an adapter slot.
///
/// # Errors
/// As [`lora_shrink`].
pub fn lora_expand(shape: &Adapters, b: Ptr, scales: Ptr, out: Ptr, n: usize, add: bool) -> Result<Launch> {
    const OP: &str = "device::lora_expand";
    check(OP, shape)?;
    let kernel = by_type(OP, shape.dtype, [Some("lora_expand_bf16"), Some("lora_expand_f16"), None])?;
    // Each warp has 32 weight rows.
    let blocks = extent(OP, "a width", n.div_ceil(THREADS))?;
    let grid = [blocks, extent(OP, "adapters", shape.adapters)?, 1];
    Ok(Launch::new(kernel, grid, THREADS, 0)
        .ptrs(&[shape.v, b, scales, shape.offsets, shape.sorted_pairs, out])
        .ints(&[
            int(OP, "parts", shape.parts)?,
            int(OP, "pairs", shape.max_pairs)?,
            int(OP, "experts", shape.experts)?,
            int(OP, "a width", n)?,
            int(OP, "a rank", shape.rank)?,
            i32::from(add),
        ]))
}

fn check(op: &'static str, shape: &Adapters) -> Result<()> {
    if shape.rank == 0 || shape.rank > MAX_RANK || !shape.rank.is_multiple_of(8) {
        return Err(KernelError::Unsupported { op, what: "a rank", value: shape.rank });
    }
    if shape.parts == 0 || shape.experts == 0 {
        return Err(KernelError::Unsupported { op, what: "a number of parts or experts", value: 0 });
    }
    Ok(())
}
