//! Rotary position embedding of q and k, and the write of k and v into the paged cache.
//!
//! The rotation pairs dimension `i` with `i + half` (the "NeoX" or half-split convention of Hugging Face checkpoints);
//! the loader permutes the rows of llama.cpp's interleaved q and k into it.

use crate::error::{KernelError, Result, expect_below, expect_shape};
use crate::kv_cache::BLOCK;
use crate::{Exec, KvLayerMut, ViewMut};

/// How a fused `[T, (q + 2 kv) * dim]` buffer divides: q heads, then k heads, then v heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLayout {
    /// Query heads.
    pub q: usize,
    /// Key heads, and as many value heads.
    pub kv: usize,
    /// Dimensions of a head.
    pub dim: usize,
}

impl HeadLayout {
    /// Columns of the fused buffer.
    pub fn width(&self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }

    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        if self.kv > 0 && self.dim > 0 && self.q % self.kv == 0 {
            return Ok(());
        }
        Err(KernelError::Unsupported { op, reason: format!("{self:?}: q heads must be a multiple of kv heads") })
    }
}

/// Cosines and sines of every position: `[max_pos, rotated / 2]` each.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    max_pos: usize,
}

impl RopeTable {
    /// A table for `inv_freq` (one a rotated pair: `head_dim / 2` values, fewer for partial rotation), its entries
    /// multiplied by `attention_scale` (YaRN's factor; 1 elsewhere).
    pub fn new(inv_freq: &[f32], attention_scale: f32, max_pos: usize) -> RopeTable {
        // The angle is rounded to f32 as in Hugging Face's implementation, its sine is not approximated further.
        let angle = |i: usize| f64::from((i / inv_freq.len()) as f32 * inv_freq[i % inv_freq.len()]);
        let scaled = |v: f64| v as f32 * attention_scale;
        let len = max_pos * inv_freq.len();
        RopeTable {
            cos: (0..len).map(|i| scaled(angle(i).cos())).collect(),
            sin: (0..len).map(|i| scaled(angle(i).sin())).collect(),
            half: inv_freq.len(),
            max_pos,
        }
    }

    /// Positions in the table.
    pub fn max_pos(&self) -> usize {
        self.max_pos
    }

    fn row(&self, position: u32) -> (&[f32], &[f32]) {
        let range = position as usize * self.half..(position as usize + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Rotates q and k of `qkv` `[T, (q + 2 kv) * dim]` in place and writes k and v to the cache.
///
/// `positions` `[T]` index the table; `slots` `[T]` are `block * 16 + offset`.
#[allow(clippy::too_many_arguments)]
pub fn rope_kv_write(
    exec: &Exec,
    mut qkv: ViewMut<'_>,
    heads: HeadLayout,
    table: &RopeTable,
    positions: &[u32],
    slots: &[u32],
    mut kv: KvLayerMut<'_>,
) -> Result<()> {
    const OP: &str = "rope_kv_write";
    // Rotating is a fifth of a percent of a step: vectorised by the compiler, and never shared.
    let _ = exec;
    let mut qkv = qkv.f32(OP, "qkv")?;
    heads.check(OP)?;
    expect_shape(OP, "qkv", &[qkv.rows, qkv.cols], &[positions.len(), heads.width()])?;
    expect_shape(OP, "slots", &[slots.len()], &[positions.len()])?;
    expect_shape(OP, "kv cache", &[kv.shape.kv_heads, kv.shape.head_dim], &[heads.kv, heads.dim])?;
    expect_below(OP, "position", positions, table.max_pos)?;
    expect_below(OP, "slot", slots, kv.shape.blocks * BLOCK)?;
    if 2 * table.half > heads.dim {
        return expect_shape(OP, "rotated dimensions", &[2 * table.half], &[heads.dim]);
    }
    for (t, (&position, &slot)) in positions.iter().zip(slots).enumerate() {
        let row = qkv.row(t);
        let (rotated, values) = row.split_at_mut((heads.q + heads.kv) * heads.dim);
        for head in rotated.chunks_exact_mut(heads.dim) {
            rotate(head, table.row(position));
        }
        write(&mut kv, &rotated[heads.q * heads.dim..], values, slot as usize);
    }
    Ok(())
}

fn rotate(head: &mut [f32], (cos, sin): (&[f32], &[f32])) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

fn write(kv: &mut KvLayerMut<'_>, keys: &[f32], values: &[f32], slot: usize) {
    let (block, offset) = (slot / BLOCK, slot % BLOCK);
    let dim = kv.shape.head_dim;
    for head in 0..kv.shape.kv_heads {
        let to = kv.shape.keys(block, head) + offset;
        for (d, &key) in keys[head * dim..(head + 1) * dim].iter().enumerate() {
            kv.data.set(to + d * BLOCK, key);
        }
        let to = kv.shape.values(block, head) + offset * dim;
        for (d, &value) in values[head * dim..(head + 1) * dim].iter().enumerate() {
            kv.data.set(to + d, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Random, assert_close};
    use crate::{Buf, DType, KvCacheBuf};

    #[test]
    fn a_rotation_is_a_complex_product_and_the_cache_holds_the_rotated_key() {
        let heads = HeadLayout { q: 2, kv: 1, dim: 4 };
        let table = RopeTable::new(&[1.0, 0.5], 1.0, 8);
        let input = Random::new(1).floats(16);
        let mut qkv = Buf::from_f32(&input, &[1, 16]).unwrap();
        let mut cache = KvCacheBuf::new(1, 2, 1, 4, DType::F32).unwrap();
        let layer = cache.layer_mut(0).unwrap();
        rope_kv_write(&Exec::Reference, qkv.view_mut(), heads, &table, &[3], &[18], layer).unwrap();
        let out = qkv.as_f32().unwrap();
        for head in 0..3 {
            for (i, frequency) in [1.0f32, 0.5].into_iter().enumerate() {
                let (a, b) = (input[head * 4 + i], input[head * 4 + i + 2]);
                let (sin, cos) = (3.0 * frequency).sin_cos();
                assert_close(&[out[head * 4 + i]], &[a * cos - b * sin], 1e-6);
                assert_close(&[out[head * 4 + i + 2]], &[b * cos + a * sin], 1e-6);
            }
        }
        let layer = cache.layer(0).unwrap();
        for d in 0..4 {
            assert_eq!(layer.data.get(layer.shape.keys(1, 0) + d * 16 + 2), out[8 + d]);
            assert_eq!(layer.data.get(layer.shape.values(1, 0) + 2 * 4 + d), input[12 + d]);
        }
    }

    #[test]
    fn a_slot_or_a_position_outside_its_range_is_an_error() {
        let heads = HeadLayout { q: 1, kv: 1, dim: 2 };
        let table = RopeTable::new(&[1.0], 1.0, 4);
        let mut qkv = Buf::zeros(DType::F32, &[1, 6]);
        let mut cache = KvCacheBuf::new(1, 1, 1, 2, DType::BF16).unwrap();
        for (position, slot) in [(4, 0), (0, 16)] {
            let layer = cache.layer_mut(0).unwrap();
            let result = rope_kv_write(&Exec::Reference, qkv.view_mut(), heads, &table, &[position], &[slot], layer);
            assert!(matches!(result, Err(KernelError::Index { .. })));
        }
    }
}
