//! `gelu.cu` against [`crate::gelu()`].

use super::CheckDevice;
use super::compare::{FLOATS, Tolerance, close, fetch, indices, named, read_only, tensor};
use crate::check::fill;
use crate::device::gelu::{Gelu, gelu};
use crate::device::{Ptr, Use};
use crate::{DType, Exec, GeluKind, ViewMut};

/// Rows (of which the last pads), width. Widths: one, odd, one pack a thread, several blocks, several and odd.
const SHAPES: [(usize, usize); 5] = [(1, 1), (3, 19), (2, 64), (3, 3072), (2, 771)];

pub(super) fn run(device: &mut dyn CheckDevice, _small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for kind in [GeluKind::Erf, GeluKind::Tanh, GeluKind::Relu] {
            for (at, (rows, n)) in SHAPES.into_iter().enumerate() {
                let with_bias = at % 2 == 0;
                let name = format!("gelu {dtype:?} {kind:?} [{rows}, {n}] bias {with_bias}");
                case(device, &name, (dtype, kind), rows, n, with_bias)?;
                ran += 1;
            }
        }
    }
    Ok(ran)
}

fn case(
    device: &mut dyn CheckDevice,
    name: &str,
    (dtype, kind): (DType, GeluKind),
    rows: usize,
    n: usize,
    with_bias: bool,
) -> Result<(), String> {
    device.clear();
    let x = tensor(dtype, &fill(rows * n, 1).iter().map(|x| x * 4.0).collect::<Vec<_>>());
    let bias = fill(n, 2);
    let at = device.alloc("x", x.bytes.len(), Use::ReadWrite)?;
    device.upload(at, 0, &x.bytes)?;
    // Room for a row more, which is not there.
    let op = Gelu {
        x: at,
        bias: if with_bias {
            read_only(device, "bias", &tensor(DType::F32, &bias).bytes)?
        } else {
            Ptr::NONE
        },
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        max_rows: rows + 1,
        n,
        kind,
    };
    named(name, device.launch(&named(name, gelu(&op))?))?;

    let mut expected = x.values;
    if with_bias {
        expected.iter_mut().enumerate().for_each(|(at, x)| *x += bias[at % n]);
    }
    let view = named(name, ViewMut::new(&mut expected, rows, n))?;
    named(name, crate::gelu(&Exec::Reference, view, kind))?;
    // One plus the function of a large negative number cancels: what is lost is relative to x.
    close(name, &fetch(device, at, dtype, rows * n)?, &expected, Tolerance::of(dtype, 1, 5.0))
}
