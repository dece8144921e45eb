//! `kv_copy.cu` against a plain loop.

use super::CheckDevice;
use super::compare::{FLOATS, equal, fetch, indices, named, tensor};
use crate::check::fill;
use crate::device::Use;
use crate::device::kv_copy::{KvCopy, kv_copy};
use crate::kv::BLOCK;
use crate::{DType, HeadLayout};

/// Heads whose blocks are a part of a thread block's packs, and more of them than it has.
const HEADS: [HeadLayout; 3] = [
    HeadLayout { q: 1, kv: 1, dim: 2 },
    HeadLayout { q: 9, kv: 3, dim: 20 },
    HeadLayout { q: 8, kv: 2, dim: 128 },
];

/// None, one, several that share a source; the first and the last block as source and as target.
const PAIRS: [&[[u32; 2]]; 4] = [&[], &[[0, 6]], &[[6, 0]], &[[5, 1], [2, 6], [5, 0], [3, 4]]];
const BLOCKS: usize = 7;

pub(super) fn run(device: &mut dyn CheckDevice, _: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for heads in HEADS {
            for pairs in PAIRS {
                let name = format!("kv_copy {dtype:?} {heads:?} {pairs:?}");
                case(device, &name, dtype, heads, pairs)?;
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
    heads: HeadLayout,
    pairs: &[[u32; 2]],
) -> Result<(), String> {
    device.clear();
    let block = 2 * heads.kv * BLOCK * heads.dim;
    let before = tensor(dtype, &fill(BLOCKS * block, 1));
    let kv = device.alloc("kv", before.bytes.len(), Use::ReadWrite)?;
    device.upload(kv, 0, &before.bytes)?;
    let op = KvCopy {
        kv,
        pairs: indices(device, "pairs", pairs.as_flattened())?,
        copies: indices(device, "copies", &[pairs.len() as u32])?,
        dtype,
        max_copies: pairs.len() + 1,
        heads,
    };
    named(name, device.launch(&named(name, kv_copy(&op))?))?;

    let mut expected = before.values.clone();
    for [from, to] in pairs {
        let from = *from as usize * block;
        expected[*to as usize * block..][..block].copy_from_slice(&before.values[from..from + block]);
    }
    equal(name, &fetch(device, kv, dtype, expected.len())?, &expected)
}
