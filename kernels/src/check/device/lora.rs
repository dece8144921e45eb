//! `lora.cu` against plain loops.

use super::CheckDevice;
use super::compare::{HALVES, Tolerance, close, fetch, indices, named, read_only, tensor, unit};
use crate::DType;
use crate::check::{fill, hash};
use crate::device::Use;
use crate::device::lora::{Adapters, lora_expand, lora_shrink};

#[derive(Debug, Clone, Copy)]
struct Shape {
    pairs: usize,
    /// Pairs of a row of x.
    ranks: usize,
    slots: usize,
    experts: usize,
    k: usize,
    rank: usize,
    n: usize,
    parts: usize,
    /// All pairs have the last adapter.
    one: bool,
}

/// One of everything; ranks below, at and beside a step and a block; parts with nothing to do; more pairs on one
/// adapter than a block takes at once; virtual experts; columns that end inside a warp.
const SHAPES: [Shape; 6] = [
    Shape { pairs: 1, ranks: 1, slots: 1, experts: 1, k: 8, rank: 8, n: 1, parts: 1, one: true },
    Shape { pairs: 6, ranks: 1, slots: 3, experts: 1, k: 576, rank: 16, n: 70, parts: 2, one: false },
    Shape { pairs: 21, ranks: 1, slots: 2, experts: 1, k: 72, rank: 64, n: 300, parts: 4, one: true },
    Shape { pairs: 14, ranks: 2, slots: 2, experts: 3, k: 136, rank: 40, n: 48, parts: 1, one: false },
    Shape { pairs: 9, ranks: 1, slots: 4, experts: 1, k: 64, rank: 256, n: 33, parts: 1, one: false },
    Shape { pairs: 20, ranks: 1, slots: 1, experts: 1, k: 1064, rank: 8, n: 64, parts: 1, one: true },
];

pub(super) fn run(device: &mut dyn CheckDevice, _small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in HALVES {
        for shape in SHAPES {
            for add in [false, true] {
                case(device, &format!("lora {dtype:?} {shape:?} add {add}"), dtype, shape, add)?;
                ran += 1;
            }
        }
    }
    Ok(ran)
}

fn case(
    device: &mut dyn CheckDevice,
    name: &str,
    dtype: DType,
    shape: Shape,
    add: bool,
) -> Result<(), String> {
    let Shape { pairs, ranks, slots, experts, k, rank, n, parts, one } = shape;
    let adapters = slots * experts;
    device.clear();
    // Every fourth pair has no adapter.
    let adapter_of = |pair: usize| {
        let spread = hash(pair as u64, 7) as usize % adapters;
        (one || pair % 4 != 3).then_some(if one { adapters - 1 } else { spread })
    };
    let (mut offsets, mut sorted) = (vec![0], Vec::new());
    for adapter in 0..adapters {
        sorted.extend((0..pairs as u32).filter(|pair| adapter_of(*pair as usize) == Some(adapter)));
        offsets.push(sorted.len() as u32);
    }
    sorted.resize(pairs, u32::MAX);
    let x = tensor(dtype, &fill(pairs / ranks * k, 1));
    let a = tensor(dtype, &fill(adapters * rank * k, 2));
    let b = tensor(dtype, &fill(adapters * n * rank, 3));
    let scales: Vec<f32> = (0..slots).map(|slot| 0.25 + slot as f32 * 0.5).collect();
    let before = tensor(dtype, &fill(pairs * n, 4));
    let op = Adapters {
        offsets: indices(device, "offsets", &offsets)?,
        sorted_pairs: indices(device, "sorted_pairs", &sorted)?,
        v: device.alloc("v", parts * (pairs + 1) * rank * 4, Use::Write)?,
        dtype,
        adapters,
        experts,
        max_pairs: pairs + 1,
        rank,
        parts,
    };
    let (at_x, at_a) = (read_only(device, "x", &x.bytes)?, read_only(device, "a", &a.bytes)?);
    let at_b = read_only(device, "b", &b.bytes)?;
    let at_scales = read_only(device, "scales", &tensor(DType::F32, &scales).bytes)?;
    let out = device.alloc("out", before.bytes.len(), Use::ReadWrite)?;
    device.upload(out, 0, &before.bytes)?;
    named(name, device.launch(&named(name, lora_shrink(&op, at_x, at_a, ranks, k))?))?;
    named(name, device.launch(&named(name, lora_expand(&op, at_b, at_scales, out, n, add))?))?;

    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0.0_f32, |sum, (a, b)| a.mul_add(*b, sum));
    let mut expected = before.values.clone();
    for pair in 0..pairs {
        let Some(adapter) = adapter_of(pair) else { continue };
        let row = &x.values[pair / ranks * k..][..k];
        let v: Vec<f32> = (0..rank).map(|at| dot(row, &a.values[(adapter * rank + at) * k..][..k])).collect();
        let v = tensor(dtype, &v).values;
        for at in 0..n {
            let delta = scales[adapter / experts] * dot(&v, &b.values[(adapter * n + at) * rank..][..rank]);
            let to = &mut expected[pair * n + at];
            *to = delta + if add { *to } else { 0.0 };
        }
    }
    // v, about √k / 3, is rounded in between; where it goes to the other side of a boundary, a part of the sum moves by a
    // rounding of it times at most 1. One in a hundred does.
    let size = (k as f32).sqrt() / 3.0 * scales[slots - 1];
    let tolerance = Tolerance::of(dtype, rank + k, 1.0 + size * (rank as f32).sqrt()).and(unit(dtype) * size);
    close(name, &fetch(device, out, dtype, before.values.len())?, &expected, tolerance)
}
