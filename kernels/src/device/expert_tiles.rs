//! The products of a mixture of experts for many tokens, `kernels/cuda/expert_tiles.cu`.
//!
//! Operands and results are those of [`super::expert_stream`], which reads each weight once for a few tokens; from some
//! 32 tokens an expert on, these tiles read weights less often.

use super::expert_stream::{Delta, Experts};
use super::{Launch, Ptr, by_type, extent, int};
use crate::error::{KernelError, Result};

const THREADS: usize = 256;
/// Pairs of a block.
const PAIRS: usize = 64;
/// Weight rows of a block.
const ROWS: usize = 128;
/// Columns of a step.
const COLUMNS: usize = 64;
const STAGES: usize = 3;

/// As [`super::expert_stream::expert_up`].
///
/// # Errors
/// [`KernelError`] when 16-byte accesses do not fit the shape, or for f32.
pub fn expert_up(shape: &Experts, x: Ptr, w13: Ptr, delta: Delta, act: Ptr) -> Result<Launch> {
    const OP: &str = "device::expert_up_tiles";
    let launch = tiles(OP, shape, 2 * shape.inner, ["expert_up_tiles_bf16", "expert_up_tiles_f16"])?;
    let (inner, h) = (int(OP, "an inner width", shape.inner)?, int(OP, "a width", shape.h)?);
    Ok(launch.ptrs(&[x, w13, delta.values, delta.slots, shape.offsets, shape.sorted_pairs, act]).ints(&[
        int(OP, "experts", shape.experts)?,
        int(OP, "experts a token", shape.ranks)?,
        inner,
        h,
    ]))
}

/// As [`super::expert_stream::expert_down`].
///
/// # Errors
/// As [`expert_up`].
pub fn expert_down(shape: &Experts, act: Ptr, w2: Ptr, delta: Delta, y: Ptr) -> Result<Launch> {
    const OP: &str = "device::expert_down_tiles";
    let launch = tiles(OP, shape, shape.h, ["expert_down_tiles_bf16", "expert_down_tiles_f16"])?;
    let (n, k) = (int(OP, "a width", shape.h)?, int(OP, "an inner width", shape.inner)?);
    Ok(launch.ptrs(&[act, w2, delta.values, delta.slots, shape.offsets, shape.sorted_pairs, y]).ints(&[
        int(OP, "experts", shape.experts)?,
        int(OP, "experts a token", shape.ranks)?,
        n,
        k,
    ]))
}

fn tiles(op: &'static str, shape: &Experts, n: usize, names: [&'static str; 2]) -> Result<Launch> {
    for width in [shape.h, shape.inner] {
        if width == 0 || !width.is_multiple_of(8) {
            return Err(KernelError::Unsupported {
                op,
                what: "a width that is no multiple of 8",
                value: width,
            });
        }
    }
    let kernel = by_type(op, shape.dtype, [Some(names[0]), Some(names[1]), None])?;
    // Every expert may leave one tile part empty.
    let pairs = shape.max_tokens * shape.ranks;
    let most = (pairs / PAIRS + shape.experts).min(pairs).max(1);
    let grid = [extent(op, "tiles of pairs", most)?, extent(op, "weight rows", n.div_ceil(ROWS))?, 1];
    let stages = STAGES * (PAIRS + ROWS) * COLUMNS * shape.dtype.size();
    Ok(Launch::new(kernel, grid, THREADS, stages))
}
