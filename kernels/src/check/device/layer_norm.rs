//! `layer_norm.cu` against [`crate::layer_norm()`].

use super::CheckDevice;
use super::compare::{FLOATS, Tolerance, close, fetch, indices, named, read_only, tensor};
use crate::check::fill;
use crate::device::layer_norm::{LayerNorm, layer_norm};
use crate::device::{Ptr, Use};
use crate::{DType, Exec, View, ViewMut};

/// Rows (of which the last pads), width. Widths: one, odd, a thread's one pack, several packs, more than one a thread.
const SHAPES: [(usize, usize); 7] = [(1, 1), (3, 19), (2, 64), (5, 384), (2, 4096), (2, 2051), (1, 16384)];
/// Large enough to show beside the variance, which is some 1/3.
const EPS: f32 = 0.02;

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for (rows, h) in SHAPES {
            if small && h > 4096 {
                continue;
            }
            for with_residual in [true, false] {
                let name = format!("layer_norm {dtype:?} [{rows}, {h}] residual {with_residual}");
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
    // A mean well away from zero.
    let x = tensor(dtype, &fill(rows * h, 1).iter().map(|x| x + 2.0).collect::<Vec<_>>());
    let before = tensor(dtype, &fill(rows * h, 2));
    let (weight, bias) = (fill(h, 3), fill(h, 4));
    let residual = if with_residual { read_only(device, "residual", &before.bytes)? } else { Ptr::NONE };
    // Room for a row more, which is not there.
    let op = LayerNorm {
        x: read_only(device, "x", &x.bytes)?,
        residual,
        weight: read_only(device, "weight", &tensor(DType::F32, &weight).bytes)?,
        bias: read_only(device, "bias", &tensor(DType::F32, &bias).bytes)?,
        out: device.alloc("out", rows * h * dtype.size(), Use::Write)?,
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        max_rows: rows + 1,
        h,
        eps: EPS,
    };
    named(name, device.launch(&named(name, layer_norm(&op))?))?;

    let mut expected = vec![0.0; rows * h];
    let view = named(name, View::new(&x.values, rows, h))?;
    let before = named(name, with_residual.then(|| View::new(&before.values, rows, h)).transpose())?;
    let to = named(name, ViewMut::new(&mut expected, rows, h))?;
    named(name, crate::layer_norm(&Exec::Reference, view, before, &weight, &bias, EPS, to))?;
    // Values of up to 4 lose their mean, and are divided by a deviation of some 1/2.
    let found = fetch(device, op.out, dtype, rows * h)?;
    close(name, &found, &expected, Tolerance::of(dtype, h, 8.0))
}
