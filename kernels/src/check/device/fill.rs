//! `fill.cu` against the hash of the tests' own inputs, to the bit.

use super::CheckDevice;
use super::compare::{FLOATS, equal, named, tensor};
use crate::DType;
use crate::device::Use;
use crate::device::expert_stream::interleave;
use crate::device::fill::{Fill, fill, fill_alternating};
use crate::fp8;

/// Less than a pack, a pack, a tail, a block, several blocks.
const LENGTHS: [usize; 5] = [1, 8, 13, 256 * 8, 20_001];
/// Codes: all sizes with and without signs, and those near zero, where they are even steps.
const CODES: [f32; 2] = [fp8::MAX, 0.02];
/// Rows of eight gates and eight ups, each as wide: of less than a block and of several.
const PANELS: [[usize; 2]; 2] = [[2, 16], [5, 208]];

pub(super) fn run(device: &mut dyn CheckDevice, _small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS.into_iter().chain([DType::U8]) {
        let scales = if dtype == DType::U8 { CODES } else { [1.0, 0.02] };
        for len in LENGTHS {
            for (seed, scale) in [3, 1 << 40].into_iter().zip(scales) {
                whole(device, dtype, len, seed, scale)?;
                ran += 1;
            }
        }
        for [panels, width] in PANELS {
            alternating(device, dtype, panels, width, scales[0])?;
            ran += 1;
        }
    }
    Ok(ran)
}

fn whole(
    device: &mut dyn CheckDevice,
    dtype: DType,
    len: usize,
    seed: u64,
    scale: f32,
) -> Result<(), String> {
    let name = format!("fill {dtype:?} [{len}] seed {seed} scale {scale}");
    device.clear();
    let out = device.alloc("out", len * dtype.size(), Use::Write)?;
    let mut launch = named(&name, fill(&Fill { out, dtype, len, seed, scale }))?;
    // So that blocks have to go on, as they do with the sizes of real weights.
    launch.grid[0] = launch.grid[0].min(2);
    named(&name, device.launch(&launch))?;
    let mut found = vec![0; len * dtype.size()];
    device.download(out, 0, &mut found)?;
    equal(&name, &found, &expected(dtype, len, seed, scale))
}

/// Two matrices whose runs have their places between one another.
fn alternating(
    device: &mut dyn CheckDevice,
    dtype: DType,
    panels: usize,
    width: usize,
    scale: f32,
) -> Result<(), String> {
    let name = format!("fill {dtype:?} [{panels}, 2, 8, {width}]");
    device.clear();
    let (run, rows) = (8 * width, 8 * panels);
    let len = rows * width;
    let out = device.alloc("out", 2 * len * dtype.size(), Use::Write)?;
    for (half, seed) in [(0, 5), (1, 6)] {
        let out = out.offset(half * run * dtype.size());
        let launch = fill_alternating(&Fill { out, dtype, len, seed, scale }, run);
        named(&name, device.launch(&named(&name, launch)?))?;
    }
    let mut found = vec![0; 2 * len * dtype.size()];
    device.download(out, 0, &mut found)?;
    let [gate, up] = [5, 6].map(|seed| expected(dtype, len, seed, scale));
    equal(&name, &found, &named(&name, interleave(&gate, &up, rows, width * dtype.size()))?)
}

fn expected(dtype: DType, len: usize, seed: u64, scale: f32) -> Vec<u8> {
    let scaled: Vec<f32> = crate::check::fill(len, seed).iter().map(|x| x * scale).collect();
    match dtype {
        DType::U8 => scaled.into_iter().map(fp8::encode).collect(),
        dtype => tensor(dtype, &scaled).bytes,
    }
}
