//! `sample.cu` against the plain sampler below: sorted lists and sums in f64.

use super::CheckDevice;
use super::compare::{equal, fetch, fetch_indices, indices, named, read_only, tensor};
use crate::check::{fill, hash};
use crate::device::Use;
use crate::device::sample::{Adjustments, Sample, Sampling, adjust_logits, sample};
use crate::{DType, philox_uniform};

const PLAIN: Sampling = Sampling {
    temperature: 1.0,
    top_p: 1.0,
    min_p: 0.0,
    top_k: 0,
    seed: 0,
    position: 0,
    repetition: 1.0,
    frequency: 0.0,
    presence: 0.0,
    mask: u32::MAX,
};

/// Each truncation alone and together, tight and loose; temperatures from greedy to flat.
const KINDS: [Sampling; 13] = [
    Sampling { temperature: 0.0, ..PLAIN },
    PLAIN,
    Sampling { temperature: 0.4, ..PLAIN },
    Sampling { temperature: 3.0, ..PLAIN },
    Sampling { top_k: 1, ..PLAIN },
    Sampling { top_k: 5, ..PLAIN },
    Sampling { top_p: 0.5, ..PLAIN },
    Sampling { top_p: 1e-6, ..PLAIN },
    Sampling { min_p: 0.1, ..PLAIN },
    Sampling { temperature: 4.0, top_k: 3, min_p: 0.001, ..PLAIN },
    Sampling { temperature: 0.8, top_k: 40, top_p: 0.9, ..PLAIN },
    Sampling { temperature: 1.5, top_p: 0.95, min_p: 0.02, ..PLAIN },
    Sampling { temperature: 0.7, top_k: 100_000, top_p: 0.99, min_p: 0.001, ..PLAIN },
];

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for vocab in [1, 7, 600, 2049, 32_000] {
        if small && vocab > 600 {
            continue;
        }
        for ties in [false, true] {
            draws(device, vocab, ties, if small { 2 } else { 6 })?;
            ran += KINDS.len();
        }
    }
    broken(device)?;
    adjustments(device)?;
    Ok(ran + 2)
}

/// The token of a row whose logits are finite or minus infinity.
fn reference(x: &[f32], how: &Sampling) -> u32 {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| x[*b].total_cmp(&x[*a]).then(a.cmp(b)));
    if how.temperature < 1e-5 {
        return order[0] as u32;
    }
    let (max, inverse) = (x[order[0]], 1.0 / how.temperature);
    let weight = |id: usize| f64::from((x[id] - max) * inverse).exp();
    let uniform = f64::from(philox_uniform(how.seed, how.position));
    if how.top_k == 0 && how.top_p >= 1.0 && how.min_p <= 0.0 {
        order.sort_unstable();
    }
    if how.top_k > 0 {
        order.truncate(how.top_k as usize);
    }
    if how.min_p > 0.0 {
        order.retain(|id| weight(*id) >= f64::from(how.min_p));
    }
    if how.top_p < 1.0 {
        let wanted = f64::from(how.top_p) * order.iter().map(|id| weight(*id)).sum::<f64>();
        let mut sum = 0.0;
        let cut = order.iter().position(|id| {
            sum += weight(*id);
            sum >= wanted
        });
        order.truncate(cut.map_or(order.len(), |at| at + 1));
    }
    let mut left = uniform * order.iter().map(|id| weight(*id)).sum::<f64>();
    for id in &order {
        left -= weight(*id);
        if left < 0.0 {
            return *id as u32;
        }
    }
    order.last().map_or(u32::MAX, |id| *id as u32)
}

fn launch(
    device: &mut dyn CheckDevice,
    name: &str,
    logits: &[f32],
    how: &[Sampling],
) -> Result<Vec<u32>, String> {
    device.clear();
    let vocab = logits.len() / how.len();
    let bytes: Vec<u8> = how.iter().flat_map(Sampling::to_bytes).collect();
    let op = Sample {
        logits: read_only(device, "logits", &tensor(DType::F32, logits).bytes)?,
        how: read_only(device, "how", &bytes)?,
        ids: device.alloc("ids", how.len() * 4, Use::Write)?,
        rows: indices(device, "rows", &[how.len() as u32])?,
        max_rows: how.len() + 1,
        vocab,
    };
    named(name, device.launch(&named(name, sample(&op))?))?;
    fetch_indices(device, op.ids, how.len())
}

fn draws(device: &mut dyn CheckDevice, vocab: usize, ties: bool, each: usize) -> Result<(), String> {
    let name = format!("sample of {vocab} tokens, ties {ties}");
    let how: Vec<Sampling> = (0..KINDS.len() * each)
        .map(|at| Sampling { seed: at as u64 / 7, position: hash(at as u64, 2), ..KINDS[at / each] })
        .collect();
    let logits: Vec<f32> = fill(how.len() * vocab, vocab as u64)
        .into_iter()
        .map(|x| if ties { (x * 3.0).round() * 2.0 } else { x * x * x * 12.0 })
        .collect();
    let found = launch(device, &name, &logits, &how)?;
    for (row, (found, how)) in found.iter().zip(&how).enumerate() {
        let expected = reference(&logits[row * vocab..][..vocab], how);
        if *found != expected {
            return Err(format!("{name}: {how:?} gives {found}, expected {expected}"));
        }
    }
    Ok(())
}

/// No token where there is none, for greedy and for a draw; forbidden ones are never drawn.
fn broken(device: &mut dyn CheckDevice) -> Result<(), String> {
    let vocab = 700;
    let mut logits = Vec::new();
    let mut how = Vec::new();
    let mut expected = Vec::new();
    for temperature in [0.0, 1.0] {
        for (value, others, id) in [
            (f32::NAN, 0.0, u32::MAX),
            (f32::INFINITY, 0.0, u32::MAX),
            (f32::NEG_INFINITY, f32::NEG_INFINITY, u32::MAX),
            (-3.0, f32::NEG_INFINITY, 650),
        ] {
            let mut row = vec![others; vocab];
            row[650] = value;
            logits.extend(row);
            how.push(Sampling { temperature, ..PLAIN });
            expected.push(id);
        }
    }
    let name = "sample of broken rows";
    equal(name, &launch(device, name, &logits, &how)?, &expected)
}

fn adjustments(device: &mut dyn CheckDevice) -> Result<(), String> {
    let name = "adjust_logits";
    let (rows, vocab, mask_words) = (3, 100, 3);
    device.clear();
    let before = tensor(DType::F32, &fill(rows * vocab, 1));
    // The first row is masked, the second has everything, the third penalties only.
    let how = [
        Sampling { mask: 1, ..PLAIN },
        Sampling { mask: 0, repetition: 1.3, frequency: 0.2, presence: 0.5, ..PLAIN },
        Sampling { repetition: 0.8, frequency: -0.1, ..PLAIN },
    ];
    let masks = [0xffff_ffff, 0x0f0f_0f0f, 0xffff_fff7, 0x8000_0001, 0, 0xffff_ffff];
    // The last id of a list is outside of the vocabulary.
    let (bias_offsets, bias_ids) = ([0, 0, 4, 4], [35, 67, 2, 100]);
    let biases = [2.5, f32::NEG_INFINITY, -1.0, 1.0];
    let (seen_offsets, seen_ids) = ([0, 0, 4, 7], [35, 2, 9, 10, 99, 0, 5000]);
    let seen_counts = [3, 0, 1, 0, 2, 0, 1];
    let bytes: Vec<u8> = how.iter().flat_map(Sampling::to_bytes).collect();
    let logits = device.alloc("logits", before.bytes.len(), Use::ReadWrite)?;
    device.upload(logits, 0, &before.bytes)?;
    let op = Sample {
        logits,
        how: read_only(device, "how", &bytes)?,
        ids: crate::device::Ptr::NONE,
        rows: indices(device, "rows", &[rows as u32])?,
        max_rows: rows + 1,
        vocab,
    };
    let by = Adjustments {
        masks: indices(device, "masks", &masks)?,
        mask_words,
        bias_offsets: indices(device, "bias_offsets", &bias_offsets)?,
        bias_ids: indices(device, "bias_ids", &bias_ids)?,
        biases: read_only(device, "biases", &tensor(DType::F32, &biases).bytes)?,
        seen_offsets: indices(device, "seen_offsets", &seen_offsets)?,
        seen_ids: indices(device, "seen_ids", &seen_ids)?,
        seen_counts: indices(device, "seen_counts", &seen_counts)?,
    };
    named(name, device.launch(&named(name, adjust_logits(&op, &by))?))?;

    let mut expected = before.values;
    for (row, how) in how.iter().enumerate() {
        let x = &mut expected[row * vocab..][..vocab];
        if how.mask != u32::MAX {
            let mask = &masks[how.mask as usize * mask_words..][..mask_words];
            for (id, x) in x.iter_mut().enumerate() {
                if mask.get(id / 32).is_none_or(|word| word >> (id % 32) & 1 == 0) {
                    *x = f32::NEG_INFINITY;
                }
            }
        }
        for at in bias_offsets[row]..bias_offsets[row + 1] {
            if let Some(x) = x.get_mut(bias_ids[at as usize] as usize) {
                *x += biases[at as usize];
            }
        }
        for at in seen_offsets[row]..seen_offsets[row + 1] {
            let Some(x) = x.get_mut(seen_ids[at as usize] as usize) else { continue };
            *x = if *x > 0.0 { *x / how.repetition } else { *x * how.repetition };
            let count = seen_counts[at as usize];
            if count > 0 {
                *x -= how.frequency * count as f32 + how.presence;
            }
        }
    }
    // A fused multiply-add rounds once less; minus infinity is equal to itself only.
    let found = fetch(device, logits, DType::F32, rows * vocab)?;
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let off = (found - expected).abs();
        if found != expected && (off.is_nan() || off > 1e-6) {
            return Err(format!("{name}: element {at} is {found}, expected {expected}"));
        }
    }
    Ok(())
}
