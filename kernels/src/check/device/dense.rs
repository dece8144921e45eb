//! `dense.cu` and `dense_tiles.cu` against plain loops.

use super::CheckDevice;
use super::compare::{FLOATS, HALVES, Tolerance, close, fetch, indices, named, read_only, tensor};
use super::weights::{Rows, Stored};
use crate::DType;
use crate::check::fill;
use crate::device::dense::{Dense, dense};
use crate::device::{Ptr, Use};

#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    max_rows: usize,
    n: usize,
    k: usize,
}

const fn shape(rows: usize, max_rows: usize, n: usize, k: usize) -> Shape {
    Shape { rows, max_rows, n, k }
}

/// Up to 256 weight rows: one of each, odd, several tiles of tokens, more of k than a block has at once, nothing. Above:
/// a panel's rows and beside them, tokens of each number of tiles, more of k than the ring has, nothing.
const FEW: [Shape; 12] = [
    shape(1, 1, 1, 8),
    shape(3, 5, 7, 72),
    shape(9, 12, 13, 520),
    shape(2, 2, 3, 2120),
    shape(16, 16, 64, 64),
    shape(0, 4, 5, 64),
    shape(1, 1, 257, 1608),
    shape(8, 8, 288, 72),
    shape(9, 16, 264, 1328),
    shape(17, 20, 271, 136),
    shape(32, 32, 320, 264),
    shape(0, 8, 300, 64),
];

/// Small tiles: one token, beside a tile, a tile, odd, more steps than stages, nothing. Large ones, which take a bound of
/// many rows: beside a tile, odd, one token.
const MANY: [Shape; 9] = [
    shape(1, 33, 1, 8),
    shape(70, 72, 72, 72),
    shape(64, 64, 64, 64),
    shape(33, 40, 65, 328),
    shape(130, 140, 136, 136),
    shape(0, 40, 64, 64),
    shape(130, 4200, 264, 72),
    shape(129, 4200, 257, 200),
    shape(1, 4200, 264, 8),
];

pub(super) fn run(device: &mut dyn CheckDevice, _: bool) -> Result<usize, String> {
    run_shapes(device, "dense", &FLOATS, &FEW)
}

pub(super) fn run_tiles(device: &mut dyn CheckDevice, _: bool) -> Result<usize, String> {
    run_shapes(device, "dense_tiles", &HALVES, &MANY)
}

/// Each shape to its own element type and to f32, one of them with a bias; with plain weights, and for tensor cores with
/// codes.
fn run_shapes(
    device: &mut dyn CheckDevice,
    kernel: &str,
    dtypes: &[DType],
    shapes: &[Shape],
) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in dtypes {
        let kinds: &[(Stored, DType)] = match dtype {
            DType::F32 => &[(Stored::Plain, DType::F32)],
            own => &[
                (Stored::Plain, *own),
                (Stored::Plain, DType::F32),
                (Stored::Fp8, *own),
                (Stored::Fp8, DType::F32),
            ],
        };
        for (stored, out) in kinds {
            for (index, shape) in shapes.iter().enumerate() {
                let shape = Shape { k: stored.width(shape.k), ..*shape };
                let biased = (index % 2 == 0) == (*out == DType::F32);
                let name = format!("{kernel} {dtype:?} {stored:?} to {out:?} {shape:?} bias {biased}");
                case(device, &name, (*dtype, *stored), *out, shape, biased)?;
                ran += 1;
            }
        }
    }
    Ok(ran)
}

fn case(
    device: &mut dyn CheckDevice,
    name: &str,
    (dtype, stored): (DType, Stored),
    out_dtype: DType,
    shape: Shape,
    biased: bool,
) -> Result<(), String> {
    device.clear();
    let Shape { rows, max_rows, n, k } = shape;
    let (x, bias) = (tensor(dtype, &fill(rows * k, 1)), fill(n, 3));
    let w = [Rows::new(stored, dtype, fill(n * k, 2), k)];
    // What may be a library's product has room for all of its rows, with NaN where there are none. The others show that a
    // kernel keeps to those that there are.
    let room = if biased || stored == Stored::Fp8 { rows } else { max_rows };
    let mut given = x.bytes;
    given.resize(room * k * dtype.size(), 0xff);
    let op = Dense {
        x: read_only(device, "x", &given)?,
        w: Rows::upload(&w, device, "w")?,
        bias: if biased { read_only(device, "bias", &tensor(DType::F32, &bias).bytes)? } else { Ptr::NONE },
        out: device.alloc("out", room * n * out_dtype.size(), Use::Write)?,
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        out_dtype,
        max_rows,
        n,
        k,
    };
    let launch = named(name, dense(&op))?;
    // Beside what a library makes of it, what the kernel does.
    let both = device.has_library() && launch.product.is_some();

    let mut expected = Vec::with_capacity(rows * n);
    for x in x.values.chunks_exact(k) {
        for (w, bias) in w[0].values.chunks_exact(k).zip(&bias) {
            let sum = x.iter().zip(w).fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum));
            expected.push(if biased { sum + bias } else { sum });
        }
    }
    for launch in std::iter::once(launch.clone()).chain(both.then(|| launch.by_kernel())) {
        device.upload(op.out, 0, &vec![0xff; rows * n * out_dtype.size()])?;
        named(name, device.launch(&launch))?;
        let found = fetch(device, op.out, out_dtype, rows * n)?;
        close(name, &found, &expected, Tolerance::of(out_dtype, k, 1.0 + (k as f32 / 9.0).sqrt()))?;
    }
    Ok(())
}
