//! Whole blocks of the paged cache to other places of it, `kernels/cuda/kv_copy.cu`.

use super::{Launch, Ptr, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};
use crate::kv::BLOCK;
use crate::rope::HeadLayout;

const THREADS: usize = 256;

/// Operands of [`kv_copy`].
#[derive(Debug, Clone, Copy)]
pub struct KvCopy {
    /// The layer's cache, see [`super::rope_kv_write`].
    pub kv: Ptr,
    /// `[copies, 2]` u32: from, to. Targets are distinct, and none is another's source.
    pub pairs: Ptr,
    /// The number of copies, u32.
    pub copies: Ptr,
    /// Element type of `kv`.
    pub dtype: DType,
    /// Upper bound of the copies.
    pub max_copies: usize,
    /// The heads whose keys and values a block has.
    pub heads: HeadLayout,
}

/// Copies each pair's first block over its second.
///
/// # Errors
/// [`KernelError::Unsupported`] for blocks of no bytes, or when a number is too large.
pub fn kv_copy(op: &KvCopy) -> Result<Launch> {
    const OP: &str = "device::kv_copy";
    // The sixteen tokens of a block make it a multiple of 16 bytes.
    let packs = 2 * op.heads.kv * BLOCK * op.heads.dim * op.dtype.size() / 16;
    if packs == 0 {
        return Err(KernelError::Unsupported { op: OP, what: "a head dimension", value: op.heads.dim });
    }
    let grid = [extent(OP, "copies", op.max_copies)?, extent(OP, "a block", packs.div_ceil(THREADS))?, 1];
    Ok(Launch::new("kv_copy", grid, THREADS, 0)
        .ptrs(&[op.kv, op.pairs, op.copies])
        .int(int(OP, "a block", packs)?))
}
