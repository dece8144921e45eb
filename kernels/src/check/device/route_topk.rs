//! `route_topk.cu` against [`crate::route_topk()`].

use super::CheckDevice;
use super::compare::{
    FLOATS, Tolerance, close, equal, fetch, fetch_indices, indices, named, read_only, tensor,
};
use crate::check::fill;
use crate::device::Use;
use crate::device::route_topk::{RouteTopk, route_topk};
use crate::{DType, Exec, View};

/// Rows, experts, k: one of everything, Mixtral's, odd, a lane with several, all taken, the most.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (1, 8, 2), (9, 8, 2), (5, 7, 3), (6, 60, 4), (3, 33, 32), (4, 256, 8)];

pub(super) fn run(device: &mut dyn CheckDevice, _small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for (rows, experts, k) in SHAPES {
            for renormalize in [true, false] {
                let logits: Vec<f32> = fill(rows * experts, 3).iter().map(|x| x * 6.0).collect();
                // In steps of a half, so that many are equal and the lower index must win.
                let coarse: Vec<f32> = logits.iter().map(|x| (x * 2.0).round() / 2.0).collect();
                for (kind, logits) in [("spread", logits), ("with ties", coarse)] {
                    let name = format!(
                        "route_topk {dtype:?} [{rows}, {experts}] k {k} {kind}, renormalize {renormalize}"
                    );
                    case(device, &name, dtype, &logits, [rows, experts, k], renormalize)?;
                    ran += 1;
                }
            }
        }
        broken(device, dtype)?;
        ran += 1;
    }
    Ok(ran)
}

fn case(
    device: &mut dyn CheckDevice,
    name: &str,
    dtype: DType,
    logits: &[f32],
    [rows, experts, k]: [usize; 3],
    renormalize: bool,
) -> Result<(), String> {
    let logits = tensor(dtype, logits);
    let (ids, weights) = launch(device, name, dtype, &logits.bytes, [rows, experts, k], renormalize)?;
    let (mut expected_ids, mut expected) = (vec![0; rows * k], vec![0.0; rows * k]);
    let view = named(name, View::new(&logits.values, rows, experts))?;
    named(name, crate::route_topk(&Exec::Reference, view, k, renormalize, &mut expected_ids, &mut expected))?;
    equal(&format!("{name}: ids"), &ids, &expected_ids)?;
    // Weights are f32; the exponential of the device is good to two units, and a logit of 12 turns them into some 30.
    close(&format!("{name}: weights"), &weights, &expected, Tolerance::of(DType::F32, experts + 16, 1.0))
}

fn launch(
    device: &mut dyn CheckDevice,
    name: &str,
    dtype: DType,
    logits: &[u8],
    [rows, experts, k]: [usize; 3],
    renormalize: bool,
) -> Result<(Vec<u32>, Vec<f32>), String> {
    device.clear();
    let op = RouteTopk {
        logits: read_only(device, "logits", logits)?,
        ids: device.alloc("ids", rows * k * 4, Use::Write)?,
        weights: device.alloc("weights", rows * k * 4, Use::Write)?,
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        max_rows: rows + 5,
        experts,
        k,
        renormalize,
    };
    named(name, device.launch(&named(name, route_topk(&op))?))?;
    Ok((fetch_indices(device, op.ids, rows * k)?, fetch(device, op.weights, DType::F32, rows * k)?))
}

/// Logits that are no numbers still give distinct experts: ids index memory.
fn broken(device: &mut dyn CheckDevice, dtype: DType) -> Result<(), String> {
    let (experts, k) = (8, 2);
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let mut logits = vec![value; 2 * experts];
        logits[experts + 3] = 1.0;
        let name = format!("route_topk {dtype:?} with {value}");
        let (ids, _) = launch(device, &name, dtype, &tensor(dtype, &logits).bytes, [2, experts, k], true)?;
        equal(&name, &ids, &[0, 1, 3, 0])?;
    }
    Ok(())
}
