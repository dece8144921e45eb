//! `rms_norm.cu` against [`crate::rms_norm()`].

use super::CheckDevice;
use super::compare::{FLOATS, Tolerance, close, equal, fetch, indices, named, read_only, tensor};
use crate::check::fill;
use crate::device::Ptr;
use crate::device::Use;
use crate::device::rms_norm::{RmsNorm, rms_norm};
use crate::{DType, Exec, View, ViewMut};

/// Rows (of which the last pads), width. Widths: one, odd, a thread's one pack, several packs, more than one a thread.
const SHAPES: [(usize, usize); 7] = [(1, 1), (3, 19), (2, 64), (5, 576), (2, 4096), (2, 2051), (1, 16384)];

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for (rows, h) in SHAPES {
            if small && h > 4096 {
                continue;
            }
            for with_residual in [true, false] {
                let name = format!("rms_norm {dtype:?} [{rows}, {h}] residual {with_residual}");
                case(device, &name, dtype, rows, h, with_residual)?;
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
    rows: usize,
    h: usize,
    with_residual: bool,
) -> Result<(), String> {
    device.clear();
    let x = tensor(dtype, &fill(rows * h, 1));
    let before = tensor(dtype, &fill(rows * h, 2));
    let weight = fill(h, 3);
    let residual = if with_residual {
        let at = device.alloc("residual", rows * h * dtype.size(), Use::ReadWrite)?;
        device.upload(at, 0, &before.bytes)?;
        at
    } else {
        Ptr::NONE
    };
    // Room for a row more, which is not there.
    let op = RmsNorm {
        x: read_only(device, "x", &x.bytes)?,
        residual,
        weight: read_only(device, "weight", &tensor(DType::F32, &weight).bytes)?,
        out: device.alloc("out", rows * h * dtype.size(), Use::Write)?,
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        max_rows: rows + 1,
        h,
        eps: 1e-5,
    };
    named(name, device.launch(&named(name, rms_norm(&op))?))?;

    // The sum is rounded to the element type before it is normalised.
    let sums = if with_residual {
        let sums: Vec<f32> = x.values.iter().zip(&before.values).map(|(x, before)| before + x).collect();
        tensor(dtype, &sums).values
    } else {
        x.values
    };
    let mut expected = vec![0.0; rows * h];
    let view = named(name, View::new(&sums, rows, h))?;
    let to = named(name, ViewMut::new(&mut expected, rows, h))?;
    named(name, crate::rms_norm(&Exec::Reference, view, None, &weight, 1e-5, to))?;
    if with_residual {
        equal(&format!("{name}: residual"), &fetch(device, residual, dtype, rows * h)?, &sums)?;
    }
    // The sum of squares is relative to itself: what its roundings cost is relative to the value.
    let found = fetch(device, op.out, dtype, rows * h)?;
    close(name, &found, &expected, Tolerance::of(dtype, h, 2.0))
}
