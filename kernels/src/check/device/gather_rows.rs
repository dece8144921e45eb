//! `gather_rows.cu` against a plain loop.

use super::CheckDevice;
use super::compare::{FLOATS, equal, fetch, indices, named, read_only, tensor};
use crate::DType;
use crate::check::{fill, hash};
use crate::device::gather_rows::{GatherRows, gather_rows};
use crate::device::{Ptr, Use};

/// Rows, rows of x, width. Widths: one, odd, a pack, a warp's packs, more than a block has; no row.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (3, 7, 19), (4, 3, 8), (5, 9, 256), (9, 5, 2056), (3, 4, 517), (0, 3, 16)];

pub(super) fn run(device: &mut dyn CheckDevice, _: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for (rows, of, h) in SHAPES {
            for summed in [true, false] {
                let name = format!("gather_rows {dtype:?} {rows} of [{of}, {h}] residual {summed}");
                case(device, &name, dtype, rows, of, h, summed)?;
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
    of: usize,
    h: usize,
    summed: bool,
) -> Result<(), String> {
    device.clear();
    let (x, before) = (tensor(dtype, &fill(of * h, 1)), tensor(dtype, &fill(of * h, 2)));
    // The first is the last of x, the third pads.
    let at: Vec<u32> = (0..rows as u64)
        .map(|row| match row {
            0 => of as u32 - 1,
            2 => u32::MAX,
            _ => (hash(row, 4) % of as u64) as u32,
        })
        .collect();
    let op = GatherRows {
        x: read_only(device, "x", &x.bytes)?,
        residual: if summed { read_only(device, "residual", &before.bytes)? } else { Ptr::NONE },
        at: indices(device, "at", &at)?,
        out: device.alloc("out", rows * h * dtype.size(), Use::Write)?,
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        max_rows: rows + 1,
        h,
    };
    named(name, device.launch(&named(name, gather_rows(&op))?))?;

    // The sum is rounded once.
    let sums: Vec<f32> = x.values.iter().zip(&before.values).map(|(x, before)| before + x).collect();
    let from = if summed { tensor(dtype, &sums).values } else { x.values };
    let zeros = vec![0.0; h];
    let expected: Vec<f32> =
        at.iter().flat_map(|at| from.chunks_exact(h).nth(*at as usize).unwrap_or(&zeros)).copied().collect();
    equal(name, &fetch(device, op.out, dtype, rows * h)?, &expected)
}
