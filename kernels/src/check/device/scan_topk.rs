//! `scan_topk.cu` against [`crate::scan_topk()`]. Values are small multiples of a power of two: sums are exact whatever
//! their order, equal scores are many, and ids and scores are compared exactly.

use super::CheckDevice;
use super::compare::{FLOATS, equal, fetch, fetch_indices, indices, named, read_only, tensor};
use crate::check::hash;
use crate::device::scan_topk::{ScanTopk, scan_topk};
use crate::device::{Ptr, Use};
use crate::{DType, Exec, View};

struct Shape {
    rows: usize,
    d: usize,
    queries: usize,
    k: usize,
    max_parts: usize,
    filtered: bool,
    order: Order,
}

/// How rows follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    Random,
    /// Every row is better than those before it.
    Ascending,
    /// Every row is worse than those before it; only the last is the one that the best k lack.
    Descending,
}

const SHAPE: Shape =
    Shape { rows: 1, d: 8, queries: 1, k: 1, max_parts: 1, filtered: false, order: Order::Random };

/// One row, fewer rows than are asked for, none; widths that fill the lanes and that do not; one query, fewer than a
/// tile of them, more; one part, several, more than there are rows; buffers that fill up at once and late.
const SHAPES: [Shape; 13] = [
    SHAPE,
    Shape { rows: 0, k: 3, ..SHAPE },
    Shape { rows: 5, d: 24, k: 9, ..SHAPE },
    Shape { rows: 5, d: 24, queries: 2, k: 5, max_parts: 4, filtered: true, ..SHAPE },
    Shape { rows: 256, d: 64, queries: 4, k: 10, ..SHAPE },
    Shape { rows: 700, d: 24, queries: 7, k: 20, max_parts: 2, ..SHAPE },
    Shape { rows: 360, d: 136, k: 100, max_parts: 100, filtered: true, ..SHAPE },
    Shape { rows: 1300, k: 255, order: Order::Ascending, ..SHAPE },
    Shape { rows: 1300, queries: 2, k: 256, order: Order::Ascending, ..SHAPE },
    Shape { rows: 900, k: 600, max_parts: 3, order: Order::Ascending, ..SHAPE },
    Shape { rows: 513, k: 30, order: Order::Descending, ..SHAPE },
    Shape { rows: 2100, d: 16, k: 150, max_parts: 9, ..SHAPE },
    Shape { rows: 3000, d: 384, queries: 9, k: 37, max_parts: 5, filtered: true, ..SHAPE },
];

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for shape in SHAPES.iter().filter(|shape| !small || shape.rows * shape.d < 50_000) {
            let Shape { rows, d, queries, k, max_parts, filtered, order } = shape;
            let name = format!(
                "scan_topk {dtype:?} [{rows}, {d}] queries {queries} k {k} parts {max_parts} filtered {filtered} \
                 {order:?}"
            );
            case(device, &name, dtype, shape)?;
            ran += 1;
        }
    }
    Ok(ran)
}

/// Multiples of 1/4 from -1 to 1.
fn quarters(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64).map(|at| (hash(at, seed) % 9) as f32 / 4.0 - 1.0).collect()
}

/// Rows with the dot products `scores`, each from 0 to 65535, and the query for it.
fn scored(scores: &[u32], d: usize) -> (Vec<f32>, Vec<f32>) {
    let with = |low: f32, high: f32| {
        let mut row = vec![0.0; d];
        (row[0], row[1]) = (high, low);
        row
    };
    let matrix = scores.iter().flat_map(|score| with((score % 256) as f32, (score / 256) as f32)).collect();
    (matrix, with(1.0, 256.0))
}

fn case(device: &mut dyn CheckDevice, name: &str, dtype: DType, shape: &Shape) -> Result<(), String> {
    device.clear();
    let Shape { rows, d, queries: count, k, max_parts, order, .. } = *shape;
    let (matrix, query) = match order {
        Order::Random => (quarters(rows * d, 1), quarters(count * d, 2)),
        Order::Ascending => scored(&(0..rows as u32).collect::<Vec<_>>(), d),
        Order::Descending => {
            let mut scores: Vec<u32> = (0..rows as u32).map(|row| 2 * (rows as u32 - row)).collect();
            scores[rows - 1] = scores[k - 1] + 1;
            scored(&scores, d)
        }
    };
    let queries: Vec<f32> = query.iter().copied().cycle().take(count * d).collect();
    let keep: Option<Vec<u64>> =
        shape.filtered.then(|| (0..rows.div_ceil(64) as u64).map(|word| hash(word, 3)).collect());
    let words = keep.as_ref().map(|keep| -> Vec<u32> {
        keep.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]).collect()
    });
    let mut op = ScanTopk {
        matrix: read_only(device, "matrix", &tensor(dtype, &matrix).bytes)?,
        queries: read_only(device, "queries", &tensor(DType::F32, &queries).bytes)?,
        keep: match words {
            Some(words) => indices(device, "keep", &words)?,
            None => Ptr::NONE,
        },
        scratch: Ptr::NONE,
        ids: device.alloc("ids", count * k * 4, Use::Write)?,
        scores: device.alloc("scores", count * k * 4, Use::Write)?,
        rows: indices(device, "rows", &[rows as u32])?,
        dtype,
        max_rows: rows + 300,
        max_parts,
        count,
        d,
        k,
    };
    op.scratch = device.alloc("scratch", op.scratch_bytes(), Use::Write)?;
    for launch in named(name, scan_topk(&op))? {
        named(name, device.launch(&launch))?;
    }

    let view = named(name, View::new(&matrix, rows, d))?;
    let (mut ids, mut scores) = (Vec::new(), Vec::new());
    for query in queries.chunks_exact(d) {
        let mut found = named(name, crate::scan_topk(&Exec::Reference, view, query, k, keep.as_deref()))?;
        found.resize(k, (u32::MAX, f32::NEG_INFINITY));
        ids.extend(found.iter().map(|(id, _)| *id));
        scores.extend(found.iter().map(|(_, score)| *score));
    }
    equal(&format!("{name}: ids"), &fetch_indices(device, op.ids, count * k)?, &ids)?;
    equal(&format!("{name}: scores"), &fetch(device, op.scores, DType::F32, count * k)?, &scores)
}
