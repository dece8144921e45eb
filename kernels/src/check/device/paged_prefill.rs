//! `paged_prefill.cu` against [`crate::paged_attention()`].

use super::CheckDevice;
use super::cache::Cache;
use super::compare::{HALVES, Tolerance, close, fetch, indices, named, read_only, tensor, unit};
use crate::check::fill;
use crate::device::Use;
use crate::device::paged_prefill::{PagedPrefill, paged_prefill};
use crate::{DType, Exec, HeadLayout, SeqSpan, View, ViewMut};

struct Shape {
    heads: HeadLayout,
    /// Queries and context of each sequence.
    sequences: &'static [(u32, u32)],
    window: Option<u32>,
    long: bool,
}

/// Whole prompts and later chunks of them; one query; rows that end inside a warp, a block and a tile; groups that
/// straddle blocks; dimensions that fill a row and that do not; padding between sequences; windows.
const SHAPES: [Shape; 7] = [
    Shape { heads: heads(1, 1, 64), sequences: &[(1, 1)], window: None, long: false },
    Shape { heads: heads(3, 1, 64), sequences: &[(25, 25), (0, 0), (3, 60)], window: None, long: false },
    Shape { heads: heads(2, 1, 128), sequences: &[(40, 100)], window: None, long: false },
    Shape { heads: heads(4, 2, 80), sequences: &[(17, 33), (33, 33)], window: Some(10), long: false },
    Shape { heads: heads(1, 1, 24), sequences: &[(70, 130)], window: Some(40), long: false },
    Shape { heads: heads(8, 2, 128), sequences: &[(300, 300), (64, 512)], window: None, long: true },
    Shape { heads: heads(9, 3, 64), sequences: &[(200, 200), (1, 90)], window: Some(100), long: true },
];

const fn heads(q: usize, kv: usize, dim: usize) -> HeadLayout {
    HeadLayout { q, kv, dim }
}

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in HALVES {
        for shape in SHAPES.iter().filter(|shape| !small || !shape.long) {
            let name = format!(
                "paged_prefill {dtype:?} {:?} (queries, context) {:?} window {:?}",
                shape.heads, shape.sequences, shape.window
            );
            case(device, &name, dtype, shape)?;
            ran += 1;
        }
    }
    Ok(ran)
}

fn case(device: &mut dyn CheckDevice, name: &str, dtype: DType, shape: &Shape) -> Result<(), String> {
    device.clear();
    let heads = shape.heads;
    let contexts: Vec<u32> = shape.sequences.iter().map(|(_, context)| *context).collect();
    let mut cache = named(name, Cache::new(dtype, heads, &contexts))?;
    let rows: usize = shape.sequences.iter().map(|(queries, _)| *queries as usize).sum();
    let mut spans = Vec::new();
    let mut next = 0;
    for (at, (queries, context)) in shape.sequences.iter().enumerate() {
        let table_start = (at * cache.table_width) as u32;
        spans.push(SeqSpan { query_start: next, query_len: *queries, context_len: *context, table_start });
        next += queries;
    }
    let fields: Vec<u32> = spans
        .iter()
        .flat_map(|span| [span.query_start, span.query_len, span.context_len, span.table_start])
        .collect();
    let qkv = tensor(dtype, &fill(rows * heads.width(), 13));
    let scale = 1.0 / (heads.dim as f32).sqrt();
    let op = PagedPrefill {
        qkv: read_only(device, "qkv", &qkv.bytes)?,
        kv: read_only(device, "kv", &named(name, cache.on_device())?.bytes)?,
        tables: indices(device, "tables", &cache.tables)?,
        spans: indices(device, "spans", &fields)?,
        out: device.alloc("out", rows * heads.q * heads.dim * dtype.size(), Use::Write)?,
        dtype,
        sequences: spans.len(),
        max_queries: shape.sequences.iter().map(|(queries, _)| *queries as usize + 5).max().unwrap_or(0),
        heads,
        scale,
        window: shape.window,
    };
    named(name, device.launch(&named(name, paged_prefill(&op))?))?;

    let mut expected = vec![0.0; rows * heads.q * heads.dim];
    let out = named(name, ViewMut::new(&mut expected, rows, heads.q * heads.dim))?;
    let query = named(name, View::new(&qkv.values, rows, heads.width()))?;
    let tables = cache.tables.clone();
    let layer = named(name, cache.for_reference())?;
    let spans: Vec<SeqSpan> = spans.into_iter().filter(|span| span.query_len > 0).collect();
    let exec = Exec::Reference;
    named(
        name,
        crate::paged_attention(&exec, query, heads, layer, &spans, &tables, scale, shape.window, out),
    )?;
    // Probabilities are rounded to the element type before they are multiplied with values of at most 1.
    let tolerance = Tolerance::of(dtype, heads.dim + 64, 1.0).and(unit(dtype));
    close(name, &fetch(device, op.out, dtype, expected.len())?, &expected, tolerance)
}
