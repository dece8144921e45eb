//! Rotary position embedding, fused with the write of keys and values into the cache.

use crate::buf::{Buf, DType, ViewMut};
use crate::error::{KernelError, Result, inside, same};
use crate::exec::Exec;
use crate::kv::KvLayerMut;

/// Heads of a fused `[q | k | v]` row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads.
    pub q: usize,
    /// Key and value heads.
    pub kv: usize,
    /// Width of a head.
    pub dim: usize,
}

impl HeadLayout {
    /// Width of a fused row.
    #[must_use]
    pub fn width(&self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }
}

/// Cosines and sines for every position: `[max_pos, D / 2]` each, interleaved by row.
#[derive(Debug)]
pub struct RopeTable {
    half: usize,
    max_pos: usize,
    /// `[max_pos][cos D/2 | sin D/2]`.
    data: Buf,
}

impl RopeTable {
    /// Tables for `inv_freq [D / 2]`; `attention_scale` multiplies both (YaRN), 1 otherwise.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub fn new(inv_freq: &[f32], attention_scale: f32, max_pos: usize) -> Result<RopeTable> {
        let half = inv_freq.len();
        let mut data = Buf::zeros(DType::F32, &[max_pos, 2 * half])?;
        for (position, row) in data.as_f32_mut()?.chunks_exact_mut((2 * half).max(1)).enumerate() {
            for (at, frequency) in inv_freq.iter().enumerate() {
                // The product is rounded to f32 first, as the reference implementations do.
                let angle = f64::from(position as f32 * frequency);
                row[at] = angle.cos() as f32 * attention_scale;
                row[half + at] = angle.sin() as f32 * attention_scale;
            }
        }
        Ok(RopeTable { half, max_pos, data })
    }

    /// Positions that the table has.
    #[must_use]
    pub fn max_pos(&self) -> usize {
        self.max_pos
    }
}

/// Rotates q and k of each row of `qkv [T, (Hq + 2 Hkv) * D]` (half-split pairs: `i` with `i + D / 2`), then writes
/// k and v to `slots`.
///
/// # Errors
/// [`KernelError`] when shapes do not agree or a position or slot is outside.
pub fn rope_kv_write(
    _exec: &Exec,
    mut qkv: ViewMut<'_>,
    heads: HeadLayout,
    table: &RopeTable,
    positions: &[u32],
    slots: &[u32],
    mut kv: KvLayerMut<'_>,
) -> Result<()> {
    const OP: &str = "rope_kv_write";
    same(OP, "columns of qkv", qkv.n_cols(), heads.width())?;
    same(OP, "positions", positions.len(), qkv.n_rows())?;
    same(OP, "slots", slots.len(), qkv.n_rows())?;
    same(OP, "half the head dimension of the table", table.half * 2, heads.dim)?;
    same(OP, "kv heads of the cache", kv.shape.kv_heads, heads.kv)?;
    same(OP, "head dimension of the cache", kv.shape.head_dim, heads.dim)?;
    if heads.dim % 2 == 1 {
        return Err(KernelError::Unsupported { op: OP, what: "an odd head dimension", value: heads.dim });
    }
    let all = table.data.as_f32()?;
    for (row, (position, slot)) in positions.iter().zip(slots).enumerate() {
        inside(OP, "position", *position as usize, table.max_pos)?;
        let angles = &all[*position as usize * 2 * table.half..][..2 * table.half];
        let (cos, sin) = angles.split_at(table.half);
        let fused = qkv.row(row);
        for head in fused[..(heads.q + heads.kv) * heads.dim].chunks_exact_mut(heads.dim) {
            let (low, high) = head.split_at_mut(table.half);
            for at in 0..table.half {
                let (a, b) = (low[at], high[at]);
                low[at] = a * cos[at] - b * sin[at];
                high[at] = b * cos[at] + a * sin[at];
            }
        }
        let (keys, values) = fused[heads.q * heads.dim..].split_at(heads.kv * heads.dim);
        for head in 0..heads.kv {
            let range = head * heads.dim..(head + 1) * heads.dim;
            kv.put(*slot as usize, head, &keys[range.clone()], &values[range])?;
        }
    }
    Ok(())
}
