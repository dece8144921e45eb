//! Random values where they are needed, `kernels/cuda/fill.cu`: weights of real shapes for measuring, without their
//! files and without the bus.

use super::{Launch, Ptr, by_type};
use crate::DType;
use crate::error::{KernelError, Result};

const THREADS: usize = 256;
/// Most blocks: each goes on with what is left.
const BLOCKS: usize = 4096;
/// Bytes of an access.
const PACK: usize = 16;

/// Operands of [`fill`].
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    /// `[len]`, aligned to 16 bytes.
    pub out: Ptr,
    /// Element type of `out`; bytes are codes of [`crate::fp8`].
    pub dtype: DType,
    /// Elements.
    pub len: usize,
    /// Another seed, other values.
    pub seed: u64,
    /// The values' bound.
    pub scale: f32,
}

/// `out[i] = scale * value(i, seed)`, rounded.
///
/// # Errors
/// [`KernelError::DType`] for u32, [`KernelError::Unsupported`] for an address that 16-byte accesses do not fit.
pub fn fill(op: &Fill) -> Result<Launch> {
    launch(op, op.len, op.len)
}

/// The same in runs of `run` elements, behind each of which another matrix has the place of a run: how w13 has gates and
/// ups ([`super::expert_stream`]).
///
/// # Errors
/// As [`fill`], also for runs that are no whole 16 bytes.
pub fn fill_alternating(op: &Fill, run: usize) -> Result<Launch> {
    launch(op, run, 2 * run)
}

/// Value `at` of `seed`, even in -1..1: what [`fill`] writes, on the host.
#[must_use]
pub fn value(at: u64, seed: u64) -> f32 {
    (hash(at, seed) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}

/// A 64-bit mix of position and seed (SplitMix64's finaliser).
pub(crate) fn hash(at: u64, seed: u64) -> u64 {
    let mut z = at.wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn launch(op: &Fill, run: usize, pitch: usize) -> Result<Launch> {
    const OP: &str = "device::fill";
    let kernel = match op.dtype {
        DType::U8 => "fill_fp8",
        dtype => by_type(OP, dtype, [Some("fill_bf16"), Some("fill_f16"), Some("fill_f32")])?,
    };
    let unsupported = |what, value| Err(KernelError::Unsupported { op: OP, what, value });
    if !op.out.0.is_multiple_of(PACK as u64) {
        return unsupported("an address that is no multiple of 16", (op.out.0 % PACK as u64) as usize);
    }
    if run < op.len && (run == 0 || !(run * op.dtype.size()).is_multiple_of(PACK)) {
        return unsupported("a run that is no multiple of 16 bytes", run * op.dtype.size());
    }
    let packs = op.len.div_ceil(PACK / op.dtype.size());
    let blocks = packs.div_ceil(THREADS).clamp(1, BLOCKS) as u32;
    Ok(Launch::new(kernel, [blocks, 1, 1], THREADS, 0)
        .ptr(op.out)
        .wide(op.len as u64)
        .wide(run.max(1) as u64)
        .wide(pitch as u64)
        .wide(op.seed)
        .float(op.scale))
}
