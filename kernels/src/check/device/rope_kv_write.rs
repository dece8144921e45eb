//! `rope_kv_write.cu` against [`crate::rope_kv_write()`].

use super::CheckDevice;
use super::cache::device_layout;
use super::compare::{FLOATS, Tolerance, close, fetch, floats, indices, named, read_only, tensor};
use crate::check::{fill, hash};
use crate::device::Use;
use crate::device::rope_kv_write::{NO_SLOT, RopeKvWrite, rope_kv_write};
use crate::kv::{BLOCK, KvCacheBuf};
use crate::rope::RopeTable;
use crate::{DType, Exec, HeadLayout, ViewMut};

const HEADS: [HeadLayout; 5] = [
    HeadLayout { q: 1, kv: 1, dim: 2 },
    HeadLayout { q: 3, kv: 1, dim: 20 },
    HeadLayout { q: 9, kv: 3, dim: 64 },
    HeadLayout { q: 8, kv: 2, dim: 128 },
    HeadLayout { q: 32, kv: 8, dim: 128 },
];

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for heads in HEADS {
            for rows in [1, 7, 40] {
                if small && (rows > 7 || heads.q > 9) {
                    continue;
                }
                let name = format!("rope_kv_write {dtype:?} {rows} rows {heads:?}");
                case(device, &name, dtype, rows, heads)?;
                ran += 1;
            }
        }
    }
    Ok(ran)
}

/// What [`RopeTable`] holds.
fn angles(frequencies: &[f32], positions: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for position in 0..positions {
        let angles = frequencies.iter().map(|frequency| f64::from(position as f32 * frequency));
        out.extend(angles.clone().map(|angle| angle.cos() as f32));
        out.extend(angles.map(|angle| angle.sin() as f32));
    }
    out
}

fn case(
    device: &mut dyn CheckDevice,
    name: &str,
    dtype: DType,
    rows: usize,
    heads: HeadLayout,
) -> Result<(), String> {
    device.clear();
    let (half, positions_in_table, blocks) = (heads.dim / 2, 50, 4);
    let frequencies: Vec<f32> = fill(half, 5).iter().map(|x| x.abs()).collect();
    let table = named(name, RopeTable::new(&frequencies, 1.0, positions_in_table))?;
    let qkv = tensor(dtype, &fill(rows * heads.width(), 1));
    let positions: Vec<u32> =
        (0..rows as u64).map(|row| (hash(row, 8) % positions_in_table as u64) as u32).collect();
    // Distinct slots all over the blocks; the third row is padding.
    let slots: Vec<u32> =
        (0..rows as u32).map(|row| if row == 2 { NO_SLOT } else { row * 37 % 64 }).collect();
    let elements = blocks * 2 * heads.kv * BLOCK * heads.dim;
    let before = tensor(dtype, &fill(elements, 6));
    let kv = device.alloc("kv", elements * dtype.size(), Use::ReadWrite)?;
    device.upload(kv, 0, &before.bytes)?;
    let at = device.alloc("qkv", qkv.bytes.len(), Use::ReadWrite)?;
    device.upload(at, 0, &qkv.bytes)?;
    let op = RopeKvWrite {
        qkv: at,
        table: read_only(
            device,
            "table",
            &tensor(DType::F32, &angles(&frequencies, positions_in_table)).bytes,
        )?,
        positions: indices(device, "positions", &positions)?,
        slots: indices(device, "slots", &slots)?,
        kv,
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        max_rows: rows + 2,
        heads,
    };
    named(name, device.launch(&named(name, rope_kv_write(&op))?))?;

    let mut rotated = qkv.values.clone();
    let mut cache = named(name, KvCacheBuf::new(1, blocks, heads.kv, heads.dim))?;
    for row in (0..rows).filter(|row| slots[*row] != NO_SLOT) {
        let part = &mut rotated[row * heads.width()..][..heads.width()];
        let view = named(name, ViewMut::new(part, 1, heads.width()))?;
        let layer = named(name, cache.layer_mut(0))?;
        let (position, slot) = (&positions[row..=row], &slots[row..=row]);
        named(name, crate::rope_kv_write(&Exec::Reference, view, heads, &table, position, slot, layer))?;
    }
    // q is the rotated one, k and v of the row stay.
    for row in 0..rows {
        let from = row * heads.width() + heads.q * heads.dim;
        let to = (row + 1) * heads.width();
        rotated[from..to].copy_from_slice(&qkv.values[from..to]);
    }
    let written = device_layout(&named(name, cache.layer(0))?);
    let expected: Vec<f32> = (0..elements)
        .map(|at| {
            let token = at / heads.dim % BLOCK;
            let block = at / (2 * heads.kv * BLOCK * heads.dim);
            let slot = (block * BLOCK + token) as u32;
            if slots.contains(&slot) { written[at] } else { before.values[at] }
        })
        .collect();
    let tolerance = Tolerance::of(dtype, 2, 1.0);
    close(&format!("{name}: q"), &fetch(device, at, dtype, qkv.values.len())?, &rotated, tolerance)?;
    let mut bytes = vec![0; before.bytes.len()];
    device.download(kv, 0, &mut bytes)?;
    close(&format!("{name}: cache"), &floats(dtype, &bytes), &expected, tolerance)
}
