//! `pool.cu` against [`crate::pool()`].

use super::CheckDevice;
use super::compare::{FLOATS, Tolerance, close, fetch, indices, named, read_only, tensor};
use super::encoder_attention::bounds;
use crate::check::fill;
use crate::device::Use;
use crate::device::pool::{Pool, pool};
use crate::{DType, Exec, Pooling, View, ViewMut};

struct Shape {
    /// Tokens of each sequence.
    sequences: &'static [usize],
    h: usize,
    long: bool,
}

/// One token, fewer and more than there are strips, many short sequences, padding before, between and behind. Widths: one, odd,
/// strips that fill a block and that do not, one strip, more columns than threads.
const SHAPES: [Shape; 7] = [
    Shape { sequences: &[1], h: 1, long: false },
    Shape { sequences: &[3, 0, 70], h: 19, long: false },
    Shape { sequences: &[0, 2, 1, 5, 1, 3, 0, 0], h: 64, long: false },
    Shape { sequences: &[33], h: 384, long: false },
    Shape { sequences: &[4], h: 771, long: false },
    Shape { sequences: &[2, 3], h: 4160, long: false },
    Shape { sequences: &[512, 300], h: 768, long: true },
];

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for shape in SHAPES.iter().filter(|shape| !small || !shape.long) {
            for pooling in [Pooling::Mean, Pooling::Cls, Pooling::LastToken] {
                for normalize in [true, false] {
                    let Shape { sequences, h, .. } = shape;
                    let name = format!("pool {dtype:?} {pooling:?} of {sequences:?}, {h} norm {normalize}");
                    case(device, &name, dtype, shape, pooling, normalize)?;
                    ran += 1;
                }
            }
        }
    }
    Ok(ran)
}

fn case(
    device: &mut dyn CheckDevice,
    name: &str,
    dtype: DType,
    shape: &Shape,
    pooling: Pooling,
    normalize: bool,
) -> Result<(), String> {
    device.clear();
    let Shape { sequences, h, .. } = *shape;
    let rows: usize = sequences.iter().sum();
    let cu_seqlens = bounds(sequences);
    let x = tensor(dtype, &fill(rows * h, 1));
    let op = Pool {
        x: read_only(device, "x", &x.bytes)?,
        cu_seqlens: indices(device, "cu_seqlens", &cu_seqlens)?,
        out: device.alloc("out", sequences.len() * h * 4, Use::Write)?,
        dtype,
        sequences: sequences.len(),
        h,
        pooling,
        normalize,
    };
    named(name, device.launch(&named(name, pool(&op))?))?;

    let mut expected = vec![0.0; sequences.len() * h];
    let view = named(name, View::new(&x.values, rows, h))?;
    let out = named(name, ViewMut::new(&mut expected, sequences.len(), h))?;
    named(name, crate::pool(&Exec::Reference, view, &cu_seqlens, pooling, normalize, out))?;
    let found = fetch(device, op.out, DType::F32, expected.len())?;
    close(name, &found, &expected, Tolerance::of(DType::F32, rows.max(h), 1.0))
}
