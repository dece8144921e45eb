//! `encoder_embed.cu` against plain sums.

use super::CheckDevice;
use super::compare::{FLOATS, Tolerance, close, fetch, indices, named, read_only, tensor};
use crate::DType;
use crate::check::{fill, hash};
use crate::device::encoder_embed::{EncoderEmbed, Table, encoder_embed};
use crate::device::{Ptr, Use};

/// Tokens (of which the last pads), width. Widths: one, odd, one pack a thread, more than one.
const SHAPES: [(usize, usize); 5] = [(1, 1), (5, 19), (3, 64), (2, 2304), (2, 517)];
/// Rows of the tables.
const WORDS: usize = 11;
const POSITIONS: usize = 7;

/// What is known of types.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Types {
    NoTable,
    AllFirst,
    Given,
}

pub(super) fn run(device: &mut dyn CheckDevice, _small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for (rows, h) in SHAPES {
            for types in [Types::NoTable, Types::AllFirst, Types::Given] {
                let name = format!("encoder_embed {dtype:?} [{rows}, {h}] types {types:?}");
                case(device, &name, dtype, rows, h, types)?;
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
    types: Types,
) -> Result<(), String> {
    device.clear();
    let type_rows = if types == Types::NoTable { 0 } else { 2 };
    // Of every table the last row, and one that it does not have.
    let some = |count: usize, seed: u64| -> Vec<u32> {
        let mut ids: Vec<u32> = (0..rows as u64).map(|at| hash(at, seed) as u32 % count as u32).collect();
        ids[rows - 1] = count as u32 - 1;
        if rows > 3 {
            ids[seed as usize % 3] = count as u32;
        }
        ids
    };
    let (ids, position_ids) = (some(WORDS, 1), some(POSITIONS, 2));
    let type_ids = if types == Types::Given { some(type_rows, 3) } else { vec![0; rows] };
    let [words, positions, kinds] = [(WORDS, 4), (POSITIONS, 5), (type_rows, 6)]
        .map(|(count, seed)| tensor(dtype, &fill(count * h, seed)));
    let op = EncoderEmbed {
        ids: indices(device, "ids", &ids)?,
        position_ids: indices(device, "position_ids", &position_ids)?,
        type_ids: if types == Types::Given { indices(device, "type_ids", &type_ids)? } else { Ptr::NONE },
        words: Table { rows: read_only(device, "words", &words.bytes)?, count: WORDS },
        positions: Table { rows: read_only(device, "positions", &positions.bytes)?, count: POSITIONS },
        types: if types == Types::NoTable {
            Table { rows: Ptr::NONE, count: 0 }
        } else {
            Table { rows: read_only(device, "types", &kinds.bytes)?, count: type_rows }
        },
        out: device.alloc("out", rows * h * dtype.size(), Use::Write)?,
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        max_rows: rows + 1,
        h,
    };
    named(name, device.launch(&named(name, encoder_embed(&op))?))?;

    let mut expected = vec![0.0; rows * h];
    for (row, sum) in expected.chunks_exact_mut(h).enumerate() {
        for (table, id) in [(&words, ids[row]), (&positions, position_ids[row]), (&kinds, type_ids[row])] {
            if let Some(from) = table.values.chunks_exact(h).nth(id as usize) {
                sum.iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
            }
        }
    }
    close(name, &fetch(device, op.out, dtype, rows * h)?, &expected, Tolerance::of(dtype, 3, 2.0))
}
