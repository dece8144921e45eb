//! The products of a mixture of experts for many tokens, `kernels/cuda/expert_tiles.cu`.
//!
//! Operands and results are those of [`super::expert_stream`], which reads each weight once for a few tokens; from some
//! 32 tokens an expert on, these tiles read weights less often.

use super::dense::tile_bytes;
use super::expert_stream::{Delta, Experts};
use super::{Launch, Ptr, Weights, by_type, extent, int};
use crate::error::Result;

const THREADS: usize = 256;
/// Pairs of a block.
const PAIRS: usize = 64;
/// Weight rows of a block.
const ROWS: usize = 128;

/// As [`super::expert_stream::expert_up`].
///
/// # Errors
/// [`crate::KernelError`] when 16-byte accesses do not fit the shape, or for f32.
pub fn expert_up(shape: &Experts, x: Ptr, w13: Weights, delta: Delta, act: Ptr) -> Result<Launch> {
    const OP: &str = "device::expert_up_tiles";
    let plain = ["expert_up_tiles_bf16", "expert_up_tiles_f16"];
    let fp8 = ["expert_up_tiles_fp8_bf16", "expert_up_tiles_fp8_f16"];
    let launch = tiles(OP, shape, w13, 2 * shape.inner, w13.choose(plain, fp8))?;
    let (inner, h) = (int(OP, "an inner width", shape.inner)?, int(OP, "a width", shape.h)?);
    Ok(launch
        .ptr(x)
        .ptrs(&w13.ptrs())
        .ptrs(&[delta.values, delta.slots, shape.offsets, shape.sorted_pairs, act])
        .ints(&[int(OP, "experts", shape.experts)?, int(OP, "experts a token", shape.ranks)?, inner, h]))
}

/// As [`super::expert_stream::expert_down`].
///
/// # Errors
/// As [`expert_up`].
pub fn expert_down(shape: &Experts, act: Ptr, w2: Weights, delta: Delta, y: Ptr) -> Result<Launch> {
    const OP: &str = "device::expert_down_tiles";
    let plain = ["expert_down_tiles_bf16", "expert_down_tiles_f16"];
    let fp8 = ["expert_down_tiles_fp8_bf16", "expert_down_tiles_fp8_f16"];
    let launch = tiles(OP, shape, w2, shape.h, w2.choose(plain, fp8))?;
    let (n, k) = (int(OP, "a width", shape.h)?, int(OP, "an inner width", shape.inner)?);
    Ok(launch
        .ptr(act)
        .ptrs(&w2.ptrs())
        .ptrs(&[delta.values, delta.slots, shape.offsets, shape.sorted_pairs, y])
        .ints(&[int(OP, "experts", shape.experts)?, int(OP, "experts a token", shape.ranks)?, n, k]))
}

fn tiles(
    op: &'static str,
    shape: &Experts,
    weights: Weights,
    n: usize,
    names: [&'static str; 2],
) -> Result<Launch> {
    weights.fit(op, &[shape.h, shape.inner])?;
    let kernel = by_type(op, shape.dtype, [Some(names[0]), Some(names[1]), None])?;
    // Every expert may leave one tile part empty.
    let pairs = shape.max_tokens * shape.ranks;
    let most = (pairs / PAIRS + shape.experts).min(pairs).max(1);
    let grid = [extent(op, "tiles of pairs", most)?, extent(op, "weight rows", n.div_ceil(ROWS))?, 1];
    Ok(Launch::new(kernel, grid, THREADS, tile_bytes(weights, shape.dtype, PAIRS, ROWS)))
}
