//! The token–expert alignment, `kernels/cuda/expert_align.cu`.

use super::route_topk::MAX_EXPERTS;
use super::{Launch, Ptr, int};
use crate::error::{KernelError, Result};

/// Warps of the one block.
const WARPS: usize = 32;

/// Operands of [`expert_align`].
#[derive(Debug, Clone, Copy)]
pub struct ExpertAlign {
    /// `[tokens * k]` u32; what is no expert is left out.
    pub ids: Ptr,
    /// `[tokens]` u32, the adapter slot of each (`u32::MAX`: none), or none: then experts are virtual ones,
    /// `slot * base + id`, and tokens without an adapter are left out.
    pub slots: Ptr,
    /// The number of tokens, u32.
    pub tokens: Ptr,
    /// `[experts + 1]` u32: where the rows of each expert start.
    pub offsets: Ptr,
    /// `[tokens * k]` u32: the (token, rank) pair of each sorted row.
    pub sorted_pairs: Ptr,
    /// Experts of a token.
    pub k: usize,
    /// Experts that an id of `ids` may be.
    pub base: usize,
    /// Experts in all: `base` times the adapter slots, or `base`.
    pub experts: usize,
}

/// Sorts the pairs of a step by expert, stable in their order.
///
/// # Errors
/// [`KernelError::Unsupported`] for too many experts.
pub fn expert_align(op: &ExpertAlign) -> Result<Launch> {
    const OP: &str = "device::expert_align";
    if op.experts == 0 || op.experts > MAX_EXPERTS {
        return Err(KernelError::Unsupported { op: OP, what: "a number of experts", value: op.experts });
    }
    Ok(Launch::new("expert_align", [1, 1, 1], WARPS * 32, WARPS * op.experts * 4)
        .ptrs(&[op.ids, op.slots, op.tokens])
        .ints(&[
            int(OP, "experts a token", op.k)?,
            int(OP, "experts", op.base)?,
            int(OP, "experts", op.experts)?,
        ])
        .ptrs(&[op.offsets, op.sorted_pairs]))
}
