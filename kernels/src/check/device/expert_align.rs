//! `expert_align.cu` against [`crate::ExpertGroups`].

use super::CheckDevice;
use super::compare::{equal, fetch_indices, indices, named};
use crate::ExpertGroups;
use crate::check::hash;
use crate::device::Ptr;
use crate::device::Use;
use crate::device::expert_align::{ExpertAlign, expert_align};

/// Tokens, k, experts.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (1, 2, 8), (2, 2, 3), (33, 2, 8), (100, 4, 60), (700, 2, 8), (1500, 8, 256)];

/// How ids are spread.
#[derive(Debug, Clone, Copy)]
enum Spread {
    Even,
    AllToOne,
    EmptyExperts,
}

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for (tokens, k, experts) in SHAPES {
        if small && tokens > 700 {
            continue;
        }
        for spread in [Spread::Even, Spread::AllToOne, Spread::EmptyExperts] {
            let ids: Vec<u32> = (0..(tokens * k) as u64)
                .map(|pair| match spread {
                    Spread::Even => (hash(pair, 1) % experts as u64) as u32,
                    Spread::AllToOne => experts as u32 - 1,
                    Spread::EmptyExperts => (hash(pair, 2) % experts as u64) as u32 / 2 * 2,
                })
                .map(|id| id.min(experts as u32 - 1))
                .collect();
            let name = format!("expert_align {tokens} tokens k {k} of {experts} {spread:?}");
            let (offsets, sorted) = launch(device, &name, &ids, None, tokens, k, experts, experts)?;
            let mut groups = ExpertGroups::new(tokens, k, experts);
            named(&name, groups.align(&ids))?;
            let mut expected = vec![0; ids.len()];
            for (pair, row) in groups.position().iter().enumerate() {
                expected[*row as usize] = pair as u32;
            }
            let mut starts: Vec<u32> = (0..experts).map(|expert| groups.range(expert).start as u32).collect();
            starts.push(ids.len() as u32);
            equal(&format!("{name}: offsets"), &offsets, &starts)?;
            equal(&format!("{name}: sorted pairs"), &sorted, &expected)?;
            ran += 1;
        }
    }
    left_out(device)?;
    virtual_experts(device)?;
    Ok(ran + 2)
}

fn launch(
    device: &mut dyn CheckDevice,
    name: &str,
    ids: &[u32],
    slots: Option<&[u32]>,
    tokens: usize,
    k: usize,
    base: usize,
    experts: usize,
) -> Result<(Vec<u32>, Vec<u32>), String> {
    device.clear();
    let op = ExpertAlign {
        ids: indices(device, "ids", ids)?,
        slots: match slots {
            Some(slots) => indices(device, "slots", slots)?,
            None => Ptr::NONE,
        },
        tokens: indices(device, "tokens", &[tokens as u32])?,
        offsets: device.alloc("offsets", (experts + 1) * 4, Use::Write)?,
        sorted_pairs: device.alloc("sorted_pairs", ids.len() * 4, Use::Write)?,
        k,
        base,
        experts,
    };
    named(name, device.launch(&named(name, expert_align(&op))?))?;
    Ok((fetch_indices(device, op.offsets, experts + 1)?, fetch_indices(device, op.sorted_pairs, ids.len())?))
}

/// Ids that are no expert take no place.
fn left_out(device: &mut dyn CheckDevice) -> Result<(), String> {
    let ids = [2, u32::MAX, 3, 0, u32::MAX, 1];
    let name = "expert_align with pairs left out";
    let (offsets, sorted) = launch(device, name, &ids, None, 3, 2, 3, 3)?;
    equal(name, &offsets, &[0, 1, 2, 3])?;
    equal(name, &sorted[..3], &[3, 5, 0])
}

/// With adapter slots an expert is one of an adapter's, and tokens without an adapter take no place.
fn virtual_experts(device: &mut dyn CheckDevice) -> Result<(), String> {
    let (ids, slots) = ([1, 0, 1, 2, 0, 1, 2, u32::MAX], [1, u32::MAX, 0, 1]);
    let name = "expert_align with adapters";
    let (offsets, sorted) = launch(device, name, &ids, Some(&slots), 4, 2, 3, 6)?;
    // Token 0 has (1, 1) and (1, 0), token 2 has (0, 0) and (0, 1), token 3 has (1, 2).
    equal(name, &offsets, &[0, 1, 2, 2, 3, 4, 5])?;
    equal(name, &sorted[..5], &[4, 5, 1, 0, 6])
}
