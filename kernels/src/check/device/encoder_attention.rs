//! `encoder_attention.cu` against [`crate::encoder_attention()`].

use super::CheckDevice;
use super::compare::{HALVES, Tolerance, close, fetch, indices, named, read_only, tensor, unit};
use crate::check::fill;
use crate::device::Use;
use crate::device::encoder_attention::{EncoderAttention, encoder_attention};
use crate::{DType, Exec, View, ViewMut, Workspace};

struct Shape {
    heads: usize,
    dim: usize,
    /// Tokens of each sequence.
    sequences: &'static [usize],
    long: bool,
}

/// One token; ends inside a warp, a tile and a block, and on each; padding between and behind; many short sequences;
/// dimensions that fill a row, that do not, and less than a row of qkv does.
const SHAPES: [Shape; 10] = [
    Shape { heads: 1, dim: 64, sequences: &[1], long: false },
    Shape { heads: 2, dim: 32, sequences: &[1, 0, 33, 17], long: false },
    Shape { heads: 3, dim: 64, sequences: &[5, 32, 0, 0], long: false },
    Shape { heads: 2, dim: 32, sequences: &[3, 1, 7, 2, 9, 4, 1, 16, 5, 8, 31], long: false },
    Shape { heads: 1, dim: 128, sequences: &[40], long: false },
    Shape { heads: 1, dim: 8, sequences: &[70], long: false },
    Shape { heads: 2, dim: 24, sequences: &[13], long: false },
    Shape { heads: 1, dim: 80, sequences: &[65, 64], long: false },
    Shape { heads: 4, dim: 32, sequences: &[128, 300, 0, 257], long: true },
    Shape { heads: 3, dim: 64, sequences: &[512, 131], long: true },
];

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in HALVES {
        for shape in SHAPES.iter().filter(|shape| !small || !shape.long) {
            let Shape { heads, dim, sequences, .. } = shape;
            let name = format!("encoder_attention {dtype:?} {heads} heads of {dim}, tokens {sequences:?}");
            case(device, &name, dtype, shape)?;
            ran += 1;
        }
    }
    Ok(ran)
}

/// Where sequences of these lengths start, and the end.
pub(super) fn bounds(sequences: &[usize]) -> Vec<u32> {
    let mut bounds = vec![0];
    for len in sequences {
        bounds.push(bounds[bounds.len() - 1] + *len as u32);
    }
    bounds
}

fn case(device: &mut dyn CheckDevice, name: &str, dtype: DType, shape: &Shape) -> Result<(), String> {
    device.clear();
    let Shape { heads, dim, sequences, .. } = *shape;
    let (hidden, rows) = (heads * dim, sequences.iter().sum::<usize>());
    let cu_seqlens = bounds(sequences);
    let qkv = tensor(dtype, &fill(rows * 3 * hidden, 13));
    // Sharper than by the dimension's root, so that what a query sees shows.
    let scale = 3.0 / (dim as f32).sqrt();
    let op = EncoderAttention {
        qkv: read_only(device, "qkv", &qkv.bytes)?,
        cu_seqlens: indices(device, "cu_seqlens", &cu_seqlens)?,
        out: device.alloc("out", rows * hidden * dtype.size(), Use::Write)?,
        dtype,
        sequences: sequences.len(),
        max_tokens: sequences.iter().copied().max().unwrap_or(0) + 5,
        heads,
        dim,
        scale,
    };
    named(name, device.launch(&named(name, encoder_attention(&op))?))?;

    let mut expected = vec![0.0; rows * hidden];
    let out = named(name, ViewMut::new(&mut expected, rows, hidden))?;
    let view = named(name, View::new(&qkv.values, rows, 3 * hidden))?;
    let workspace =
        Workspace::new(1, 32).and_then(|ws| ws.with_encoder_attention(rows, sequences.len(), hidden));
    let mut ws = named(name, workspace)?;
    named(
        name,
        crate::encoder_attention(&Exec::Reference, &mut ws, view, heads, dim, &cu_seqlens, scale, out),
    )?;
    // Probabilities are rounded to the element type before they are multiplied with values of at most 1.
    let tolerance = Tolerance::of(dtype, dim + 64, 3.0).and(unit(dtype));
    close(name, &fetch(device, op.out, dtype, expected.len())?, &expected, tolerance)
}
