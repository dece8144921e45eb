//! `fill.cu` against the hash of the tests' own inputs, to the bit.

use super::CheckDevice;
use super::compare::{FLOATS, equal, fetch, named, tensor};
use crate::device::Use;
use crate::device::fill::{Fill, fill};

/// Less than a pack, a pack, a tail, a block, several blocks.
const LENGTHS: [usize; 5] = [1, 8, 13, 256 * 8, 20_001];

pub(super) fn run(device: &mut dyn CheckDevice, _small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for len in LENGTHS {
            for (seed, scale) in [(3, 1.0), (1 << 40, 0.02)] {
                let name = format!("fill {dtype:?} [{len}] seed {seed} scale {scale}");
                device.clear();
                let out = device.alloc("out", len * dtype.size(), Use::Write)?;
                let op = Fill { out, dtype, len, seed, scale };
                let mut launch = named(&name, fill(&op))?;
                // So that blocks have to go on, as they do with the sizes of real weights.
                launch.grid[0] = launch.grid[0].min(2);
                named(&name, device.launch(&launch))?;
                let scaled: Vec<f32> = crate::check::fill(len, seed).iter().map(|x| x * scale).collect();
                equal(&name, &fetch(device, out, dtype, len)?, &tensor(dtype, &scaled).values)?;
                ran += 1;
            }
        }
    }
    Ok(ran)
}
