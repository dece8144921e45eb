//! `embed_rows.cu` against a plain loop.

use super::CheckDevice;
use super::compare::{FLOATS, equal, fetch, indices, named, read_only, tensor};
use crate::DType;
use crate::check::{fill, hash};
use crate::device::Use;
use crate::device::embed_rows::{EmbedRows, embed_rows};

/// Rows, rows of the table, width. Widths: one, odd, a pack, a warp's packs, more than a block has; no row.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (3, 7, 19), (4, 3, 8), (5, 9, 256), (9, 5, 2056), (3, 2, 517), (0, 3, 16)];

pub(super) fn run(device: &mut dyn CheckDevice, _: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for (rows, vocab, h) in SHAPES {
            let name = format!("embed_rows {dtype:?} {rows} of [{vocab}, {h}]");
            case(device, &name, dtype, rows, vocab, h)?;
            ran += 1;
        }
    }
    Ok(ran)
}

fn case(
    device: &mut dyn CheckDevice,
    name: &str,
    dtype: DType,
    rows: usize,
    vocab: usize,
    h: usize,
) -> Result<(), String> {
    device.clear();
    let table = tensor(dtype, &fill(vocab * h, 1));
    // The third and the fourth are not in the table.
    let ids: Vec<u32> = (0..rows as u64)
        .map(|row| match row {
            2 => vocab as u32,
            3 => u32::MAX,
            _ => (hash(row, 4) % vocab as u64) as u32,
        })
        .collect();
    let op = EmbedRows {
        ids: indices(device, "ids", &ids)?,
        table: read_only(device, "table", &table.bytes)?,
        out: device.alloc("out", rows * h * dtype.size(), Use::Write)?,
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        max_rows: rows + 1,
        vocab,
        h,
    };
    named(name, device.launch(&named(name, embed_rows(&op))?))?;

    let zeros = vec![0.0; h];
    let expected: Vec<f32> = ids
        .iter()
        .flat_map(|id| table.values.chunks_exact(h).nth(*id as usize).unwrap_or(&zeros))
        .copied()
        .collect();
    equal(name, &fetch(device, op.out, dtype, rows * h)?, &expected)
}
