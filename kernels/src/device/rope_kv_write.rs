//! Rotary embedding and the write of keys and values to the paged cache, `kernels/cuda/rope_kv_write.cu`.
//!
//! The device's cache is `[blocks][k|v][kv_heads][16][head_dim]` a layer, in the element type of the activations: the
//! keys of a block and head are one run of memory, which asynchronous copies and tensor cores want.

use super::{Launch, Ptr, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};
use crate::rope::HeadLayout;

/// A slot that is not written: rows that pad a captured batch have it.
pub const NO_SLOT: u32 = u32::MAX;

/// Operands of [`rope_kv_write`].
#[derive(Debug, Clone, Copy)]
pub struct RopeKvWrite {
    /// `[rows, (q + 2 kv) * dim]`; q is rotated in place, k and v are left as they are.
    pub qkv: Ptr,
    /// `[positions][cos dim/2 | sin dim/2]` f32.
    pub table: Ptr,
    /// `[rows]` u32.
    pub positions: Ptr,
    /// `[rows]` u32, distinct, or [`NO_SLOT`].
    pub slots: Ptr,
    /// The layer's cache.
    pub kv: Ptr,
    /// The number of rows, u32.
    pub rows: Ptr,
    /// Element type of `qkv` and `kv`.
    pub dtype: DType,
    /// Upper bound of the rows.
    pub max_rows: usize,
    /// The fused row.
    pub heads: HeadLayout,
}

/// Rotates q and k of each row and writes k and v to its slot.
///
/// # Errors
/// [`KernelError::Unsupported`] for an odd head dimension.
pub fn rope_kv_write(op: &RopeKvWrite) -> Result<Launch> {
    const OP: &str = "device::rope_kv_write";
    let (heads, wide) = (op.heads, 16 / op.dtype.size());
    if heads.dim % 2 == 1 || heads.dim == 0 {
        return Err(KernelError::Unsupported { op: OP, what: "a head dimension", value: heads.dim });
    }
    let names = if (heads.dim / 2).is_multiple_of(wide) {
        ["rope_kv_write_bf16", "rope_kv_write_f16", "rope_kv_write_f32"]
    } else {
        ["rope_kv_write_bf16_odd", "rope_kv_write_f16_odd", "rope_kv_write_f32_odd"]
    };
    let kernel = by_type(OP, op.dtype, names.map(Some))?;
    let grid = [extent(OP, "rows", op.max_rows)?, 1, 1];
    let dim = int(OP, "a head dimension", heads.dim)?;
    Ok(Launch::new(kernel, grid, 256, 0)
        .ptrs(&[op.qkv, op.table, op.positions, op.slots, op.kv, op.rows])
        .ints(&[int(OP, "query heads", heads.q)?, int(OP, "kv heads", heads.kv)?, dim]))
}
