//! Rotary position embedding, fused with the write of keys and values into the cache.

use crate::buf::{Buf, DType, RawRows, ViewMut};
use crate::cpu::{Isa, dispatch};
use crate::error::{KernelError, Result, inside, same};
use crate::exec::Exec;
use crate::kv::{BLOCK, KvLayerMut, KvShape};

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
    /// Memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.bytes().len()
    }

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

    /// `[max_pos][cos D/2 | sin D/2]`.
    ///
    /// # Errors
    /// None: the table is f32.
    pub fn values(&self) -> Result<&[f32]> {
        self.data.as_f32()
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
    exec: &Exec,
    mut qkv: ViewMut<'_>,
    heads: HeadLayout,
    table: &RopeTable,
    positions: &[u32],
    slots: &[u32],
    kv: KvLayerMut<'_>,
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
    for (position, slot) in positions.iter().zip(slots) {
        inside(OP, "position", *position as usize, table.max_pos)?;
        inside(OP, "slot", *slot as usize, kv.shape.blocks * BLOCK)?;
    }
    let job =
        Job { qkv: qkv.raw(), heads, table, positions, slots, shape: kv.shape, kv: kv.data.as_mut_ptr() };
    // Heads are shared out and not rows: two rows may name one slot, and one worker then writes both in their order.
    let units = heads.q + heads.kv;
    let part = |from: usize, to: usize| {
        // SAFETY: shapes, positions and slots were checked, and each head is one task's.
        unsafe { rotate(&job, from, to) };
    };
    if positions.len() * heads.width() < PARALLEL_FROM {
        part(0, units);
    } else {
        exec.each(units, &|head| part(head, head + 1));
    }
    Ok(())
}

/// Elements of `qkv` from which sharing the work out costs less than it saves.
const PARALLEL_FROM: usize = 1 << 15;

/// What [`rotate`] works on.
struct Job<'a> {
    qkv: RawRows,
    heads: HeadLayout,
    table: &'a RopeTable,
    positions: &'a [u32],
    slots: &'a [u32],
    shape: KvShape,
    /// The layer's blocks.
    kv: *mut f32,
}
// SAFETY: workers write the heads that they were given, in `qkv` and in `kv`, and read nothing of other heads.
unsafe impl Sync for Job<'_> {}

dispatch!(
    /// Rotates heads `from..to` (q, then k) of every row and writes k and v of the kv heads among them.
    ///
    /// # Safety
    /// Rows, positions and slots are inside what the job points to; the heads are the caller's alone.
    unsafe fn rotate(job: &Job<'_>, from: usize, to: usize) = rotate_inner
);

#[inline(always)]
unsafe fn rotate_inner<S: Isa>(job: &Job<'_>, from: usize, to: usize) {
    let (heads, half) = (job.heads, job.table.half);
    let Ok(all) = job.table.data.as_f32() else { return };
    for (row, (position, slot)) in job.positions.iter().zip(job.slots).enumerate() {
        let angles = &all[*position as usize * 2 * half..][..2 * half];
        let (cos, sin) = angles.split_at(half);
        let (block, offset) = (*slot as usize / BLOCK, *slot as usize % BLOCK);
        for head in from..to {
            // SAFETY: the caller's contract: row and head are inside qkv, block and kv head inside the layer.
            unsafe {
                let key = std::slice::from_raw_parts_mut(job.qkv.at(row, head * heads.dim), heads.dim);
                let (low, high) = key.split_at_mut(half);
                for at in 0..half {
                    let (a, b) = (low[at], high[at]);
                    low[at] = a * cos[at] - b * sin[at];
                    high[at] = b * cos[at] + a * sin[at];
                }
                if head < heads.q {
                    continue;
                }
                let kv_head = head - heads.q;
                let to = job.kv.add(job.shape.key_at(block, kv_head) + offset);
                for (d, x) in key.iter().enumerate() {
                    *to.add(d * BLOCK) = *x;
                }
                let value = job.qkv.at(row, (head + heads.kv) * heads.dim);
                let to = job.kv.add(job.shape.value_at(block, kv_head) + offset * job.shape.padded());
                std::ptr::copy_nonoverlapping(value.cast_const(), to, heads.dim);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{fill, levels};
    use crate::kv::KvCacheBuf;

    #[test]
    fn threads_batch_and_instruction_set_do_not_change_a_bit_and_the_last_row_of_a_slot_wins() {
        let heads = HeadLayout { q: 9, kv: 3, dim: 64 };
        let rows = 40;
        assert!(rows * heads.width() >= PARALLEL_FROM, "large enough to be shared out");
        let table = RopeTable::new(&fill(heads.dim / 2, 9), 1.0, 64).expect("table");
        let positions: Vec<u32> = (0..rows as u32).map(|at| at * 7 % 64).collect();
        let slots: Vec<u32> = (0..rows as u32).map(|at| if at == 39 { 5 } else { at }).collect();
        let run = |exec: &Exec, step: usize| {
            let mut qkv = fill(rows * heads.width(), 1);
            let mut kv = KvCacheBuf::new(1, 3, heads.kv, heads.dim).expect("cache");
            for (part, data) in qkv.chunks_mut(step * heads.width()).enumerate() {
                let n = data.len() / heads.width();
                let range = part * step..part * step + n;
                let view = ViewMut::new(data, n, heads.width()).expect("view");
                let layer = kv.layer_mut(0).expect("layer");
                rope_kv_write(exec, view, heads, &table, &positions[range.clone()], &slots[range], layer)
                    .expect("writes");
            }
            (qkv, kv.layer(0).expect("layer").data.to_vec())
        };
        let expected = run(&Exec::Reference, 1);
        for step in [1, 3, rows] {
            assert!(run(&Exec::simd(3), step) == expected, "{step} rows a call");
        }
        for level in levels() {
            assert!(crate::cpu::with_level(level, || run(&Exec::simd(1), rows)) == expected, "{level:?}");
        }
    }
}
