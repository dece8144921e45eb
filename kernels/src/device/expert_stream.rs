//! The products of a mixture of experts for few tokens, `kernels/cuda/expert_stream.cu`.
//!
//! Weights are `w13 [experts, 2 inner, h]` and `w2 [experts, h, inner]`, k contiguous; in w13 eight gate rows alternate
//! with their eight up rows ([`interleave`]). As fp8 they have scales `[experts, 2 inner]` and `[experts, h]` in the order of
//! the rows.

use super::{Launch, Ptr, Weights, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};

const THREADS: usize = 256;
const STAGES: usize = 3;
/// Weight rows of a block.
const ROWS: usize = 32;
/// Tokens of one product.
const TILE: usize = 8;
/// Products of a block that takes many tokens; with fp8 weights twice the activations meet 16 bytes of weights.
const TILES: usize = 4;
const TILES_FP8: usize = 2;
/// Gate rows, then up rows, of a panel of w13.
const HALF_PANEL: usize = 8;

/// What the three launches share.
#[derive(Debug, Clone, Copy)]
pub struct Experts {
    /// `[experts + 1]` u32, from [`super::expert_align`].
    pub offsets: Ptr,
    /// `[pairs]` u32, from [`super::expert_align`].
    pub sorted_pairs: Ptr,
    /// Element type of activations and plain weights: bf16 or f16.
    pub dtype: DType,
    /// Experts.
    pub experts: usize,
    /// Experts of a token.
    pub ranks: usize,
    /// Upper bound of the tokens.
    pub max_tokens: usize,
    /// Width of the residual stream.
    pub h: usize,
    /// Width between the products.
    pub inner: usize,
}

/// What adapters add to a product.
#[derive(Debug, Clone, Copy)]
pub struct Delta {
    /// `[pairs, columns of the product]`, in the order of the weights' rows; read for tokens with an adapter.
    pub values: Ptr,
    /// `[tokens]` u32, the adapter slot of each (`u32::MAX`: none).
    pub slots: Ptr,
}

impl Delta {
    /// Nothing.
    pub const NONE: Delta = Delta { values: Ptr::NONE, slots: Ptr::NONE };
}

/// `act [pairs, inner] = silu(x · w1 + delta) * (x · w3 + delta)`; `x` is `[tokens, h]`.
///
/// # Errors
/// [`KernelError`] when 16-byte accesses do not fit the shape, or for f32.
pub fn expert_up(shape: &Experts, x: Ptr, w13: Weights, delta: Delta, act: Ptr) -> Result<Launch> {
    const OP: &str = "device::expert_up";
    let plain = Entries {
        one: ["expert_up_bf16_n1", "expert_up_f16_n1"],
        many: ["expert_up_bf16_n4", "expert_up_f16_n4"],
    };
    let fp8 = Entries {
        one: ["expert_up_fp8_bf16_n1", "expert_up_fp8_f16_n1"],
        many: ["expert_up_fp8_bf16_n2", "expert_up_fp8_f16_n2"],
    };
    let launch = stream(OP, shape, w13, 2 * shape.inner, &w13.choose(plain, fp8))?;
    let inner = int(OP, "an inner width", shape.inner)?;
    Ok(launch
        .ptr(x)
        .ptrs(&w13.ptrs())
        .ptrs(&[delta.values, delta.slots, shape.offsets, shape.sorted_pairs, act])
        .ints(&[int(OP, "experts a token", shape.ranks)?, inner, int(OP, "a width", shape.h)?]))
}

/// `y [pairs, h] = act · w2 + delta` f32.
///
/// # Errors
/// As [`expert_up`].
pub fn expert_down(shape: &Experts, act: Ptr, w2: Weights, delta: Delta, y: Ptr) -> Result<Launch> {
    const OP: &str = "device::expert_down";
    let plain = Entries {
        one: ["expert_down_bf16_n1", "expert_down_f16_n1"],
        many: ["expert_down_bf16_n4", "expert_down_f16_n4"],
    };
    let fp8 = Entries {
        one: ["expert_down_fp8_bf16_n1", "expert_down_fp8_f16_n1"],
        many: ["expert_down_fp8_bf16_n2", "expert_down_fp8_f16_n2"],
    };
    let launch = stream(OP, shape, w2, shape.h, &w2.choose(plain, fp8))?;
    let (n, k) = (int(OP, "a width", shape.h)?, int(OP, "an inner width", shape.inner)?);
    Ok(launch
        .ptr(act)
        .ptrs(&w2.ptrs())
        .ptrs(&[delta.values, delta.slots, shape.offsets, shape.sorted_pairs, y])
        .ints(&[int(OP, "experts a token", shape.ranks)?, n, k]))
}

/// `out [tokens, h] = Σ over ranks of weights [tokens, ranks] * y`, in the order of ranks; `tokens` is their number.
///
/// # Errors
/// [`KernelError::Unsupported`] when the grid would be too large.
pub fn expert_combine(shape: &Experts, y: Ptr, weights: Ptr, out: Ptr, tokens: Ptr) -> Result<Launch> {
    const OP: &str = "device::expert_combine";
    let (names, width) = if shape.h.is_multiple_of(4) {
        (["expert_combine_bf16", "expert_combine_f16", "expert_combine_f32"], 4)
    } else {
        (["expert_combine_bf16_odd", "expert_combine_f16_odd", "expert_combine_f32_odd"], 1)
    };
    let threads = shape.h.div_ceil(width).next_multiple_of(32).min(256);
    let grid = [
        extent(OP, "a width", shape.h.div_ceil(width * threads))?,
        extent(OP, "tokens", shape.max_tokens)?,
        1,
    ];
    Ok(Launch::new(by_type(OP, shape.dtype, names.map(Some))?, grid, threads, 0)
        .ptrs(&[y, weights, out, tokens])
        .ints(&[int(OP, "experts a token", shape.ranks)?, int(OP, "a width", shape.h)?]))
}

/// Names of a product's entries for bf16 and f16: those of one tile of tokens, those of many.
struct Entries {
    one: [&'static str; 2],
    many: [&'static str; 2],
}

fn stream(
    op: &'static str,
    shape: &Experts,
    weights: Weights,
    n: usize,
    entries: &Entries,
) -> Result<Launch> {
    weights.fit(op, &[shape.h, shape.inner])?;
    // Where no expert can have more than one tile, the smaller pipeline leaves room for more blocks.
    let (tiles, names) = if shape.max_tokens <= TILE {
        (1, entries.one)
    } else {
        (weights.choose(TILES, TILES_FP8), entries.many)
    };
    let kernel = by_type(op, shape.dtype, [Some(names[0]), Some(names[1]), None])?;
    let parts = shape.dtype.size() / weights.size(shape.dtype);
    let ring = STAGES * (ROWS / 8 + tiles * parts) * THREADS * 16;
    let sums = THREADS / 32 * ROWS * TILE * tiles * 4;
    let grid = [extent(op, "weight rows", n.div_ceil(ROWS))?, extent(op, "experts", shape.experts)?, 1];
    Ok(Launch::new(kernel, grid, THREADS, ring.max(sums)))
}

/// One expert's w1 and w3, `[inner, h]` each, as w13: eight gate rows, their eight up rows, and so on. Scales are rows of
/// one.
///
/// # Errors
/// [`KernelError`] when the sizes do not agree or `inner` is no multiple of 8.
pub fn interleave<T: Copy>(gate: &[T], up: &[T], inner: usize, h: usize) -> Result<Vec<T>> {
    const OP: &str = "device::interleave";
    crate::error::same(OP, "gate", gate.len(), inner * h)?;
    crate::error::same(OP, "up", up.len(), inner * h)?;
    if !inner.is_multiple_of(HALF_PANEL) {
        return Err(KernelError::Unsupported { op: OP, what: "an inner width", value: inner });
    }
    let panel = (HALF_PANEL * h).max(1);
    Ok(gate
        .chunks_exact(panel)
        .zip(up.chunks_exact(panel))
        .flat_map(|(g, u)| [g, u])
        .flatten()
        .copied()
        .collect())
}
