//! The router of a mixture of experts, `kernels/cuda/route_topk.cu`.

use super::{Launch, Ptr, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};

/// Most experts.
pub const MAX_EXPERTS: usize = 256;
/// Most experts of one token.
pub const MAX_RANKS: usize = 32;
/// Rows of a block: one a warp.
const ROWS: usize = 4;

/// Operands of [`route_topk`].
#[derive(Debug, Clone, Copy)]
pub struct RouteTopk {
    /// `[rows, experts]`.
    pub logits: Ptr,
    /// `[rows, k]` u32, best first.
    pub ids: Ptr,
    /// `[rows, k]` f32.
    pub weights: Ptr,
    /// The number of rows, u32.
    pub rows: Ptr,
    /// Element type of `logits`.
    pub dtype: DType,
    /// Upper bound of the rows.
    pub max_rows: usize,
    /// Experts.
    pub experts: usize,
    /// Experts of a token.
    pub k: usize,
    /// Whether the weights of a token sum to 1.
    pub renormalize: bool,
}

/// For each row the `k` likeliest experts, ties by lower index, with their softmax weights.
///
/// # Errors
/// [`KernelError::Unsupported`] for too many experts.
pub fn route_topk(op: &RouteTopk) -> Result<Launch> {
    const OP: &str = "device::route_topk";
    if op.experts > MAX_EXPERTS {
        return Err(KernelError::Unsupported { op: OP, what: "a number of experts", value: op.experts });
    }
    if op.k == 0 || op.k > op.experts.min(MAX_RANKS) {
        return Err(KernelError::Unsupported { op: OP, what: "experts a token", value: op.k });
    }
    let names = ["route_topk_bf16", "route_topk_f16", "route_topk_f32"];
    let kernel = by_type(OP, op.dtype, names.map(Some))?;
    let grid = [extent(OP, "rows", op.max_rows.div_ceil(ROWS))?, 1, 1];
    Ok(Launch::new(kernel, grid, ROWS * 32, 0).ptrs(&[op.logits, op.ids, op.weights, op.rows]).ints(&[
        int(OP, "experts", op.experts)?,
        int(OP, "experts a token", op.k)?,
        i32::from(op.renormalize),
    ]))
}
