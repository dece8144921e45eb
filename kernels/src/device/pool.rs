//! From token states to one vector a sequence, `kernels/cuda/pool.cu`.

use super::{Launch, Ptr, SHARED_LIMIT, by_type, extent, int};
use crate::error::{KernelError, Result};
use crate::{DType, Pooling};

const THREADS: usize = 512;

/// Operands of [`pool`].
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    /// `[rows, h]`.
    pub x: Ptr,
    /// `[sequences + 1]` u32: sequence `i` is rows `cu_seqlens[i]..cu_seqlens[i + 1]`; an empty one becomes zeros.
    pub cu_seqlens: Ptr,
    /// `[sequences, h]` f32.
    pub out: Ptr,
    /// Element type of `x`.
    pub dtype: DType,
    /// Sequences, padding included.
    pub sequences: usize,
    /// Width of a row.
    pub h: usize,
    /// How states become one vector.
    pub pooling: Pooling,
    /// Whether each vector gets L2 norm 1.
    pub normalize: bool,
}

/// The vector of each sequence.
///
/// # Errors
/// [`KernelError::Unsupported`] for a row that no block can hold.
pub fn pool(op: &Pool) -> Result<Launch> {
    const OP: &str = "device::pool";
    let wide = 16 / op.dtype.size();
    let (names, width) = if op.h.is_multiple_of(wide) {
        (["pool_bf16", "pool_f16", "pool_f32"], wide)
    } else {
        (["pool_bf16_odd", "pool_f16_odd", "pool_f32_odd"], 1)
    };
    let kernel = by_type(OP, op.dtype, names.map(Some))?;
    // Strips of rows, each with a vector of sums.
    let strips = THREADS / (op.h / width).clamp(1, THREADS);
    let shared = strips * op.h * 4;
    if op.h == 0 || shared > SHARED_LIMIT {
        return Err(KernelError::Unsupported { op: OP, what: "a width", value: op.h });
    }
    // `Kind` of the kernel.
    let kind = match op.pooling {
        Pooling::Mean => 0,
        Pooling::Cls => 1,
        Pooling::LastToken => 2,
    };
    let grid = [extent(OP, "sequences", op.sequences)?, 1, 1];
    Ok(Launch::new(kernel, grid, THREADS, shared).ptrs(&[op.x, op.cu_seqlens, op.out]).ints(&[
        int(OP, "a width", op.h)?,
        kind,
        i32::from(op.normalize),
    ]))
}
