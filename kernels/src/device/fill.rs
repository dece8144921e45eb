//! Random values where they are needed, `kernels/cuda/fill.cu`: weights of real shapes for measuring, without their
//! files and without the bus.

use super::{Launch, Ptr, by_type};
use crate::DType;
use crate::error::Result;

const THREADS: usize = 256;
/// Most blocks: each goes on with what is left.
const BLOCKS: usize = 4096;

/// Operands of [`fill`].
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    /// `[len]`.
    pub out: Ptr,
    /// Element type of `out`.
    pub dtype: DType,
    /// Elements.
    pub len: usize,
    /// Another seed, other values.
    pub seed: u64,
    /// The values' bound.
    pub scale: f32,
}

/// `out[i]`, even in `-scale..scale`: a hash of `i` and the seed.
///
/// # Errors
/// [`crate::KernelError::DType`] for what is no float.
pub fn fill(op: &Fill) -> Result<Launch> {
    const OP: &str = "device::fill";
    let kernel = by_type(OP, op.dtype, [Some("fill_bf16"), Some("fill_f16"), Some("fill_f32")])?;
    let packs = op.len.div_ceil(16 / op.dtype.size());
    let blocks = packs.div_ceil(THREADS).clamp(1, BLOCKS) as u32;
    Ok(Launch::new(kernel, [blocks, 1, 1], THREADS, 0)
        .ptr(op.out)
        .wide(op.len as u64)
        .wide(op.seed)
        .float(op.scale))
}
