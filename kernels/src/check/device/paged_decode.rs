//! `paged_decode.cu` against [`crate::paged_attention()`].

use super::CheckDevice;
use super::cache::Cache;
use super::compare::{FLOATS, Tolerance, close, fetch, indices, named, read_only, tensor};
use crate::check::fill;
use crate::device::Use;
use crate::device::paged_decode::{PagedDecode, paged_decode};
use crate::{DType, Exec, HeadLayout, SeqSpan, View, ViewMut};

struct Shape {
    heads: HeadLayout,
    contexts: &'static [u32],
    parts: usize,
    window: Option<u32>,
    long: bool,
}

/// Group sizes 1, 3, 4, 5, 12; dimensions that fill a warp's rows and that do not; contexts of one token, at and around
/// block boundaries, shorter than the parts, so long that a warp fills each of its stages twice, padding; windows inside
/// and outside of the context.
const SHAPES: [Shape; 9] = [
    Shape { heads: heads(1, 1, 64), contexts: &[1], parts: 1, window: None, long: false },
    Shape { heads: heads(9, 3, 64), contexts: &[1, 16, 0, 17, 40], parts: 3, window: None, long: false },
    Shape { heads: heads(8, 2, 128), contexts: &[33, 150], parts: 2, window: None, long: false },
    Shape { heads: heads(4, 1, 80), contexts: &[77, 5], parts: 2, window: Some(20), long: false },
    Shape { heads: heads(5, 1, 96), contexts: &[100], parts: 1, window: Some(33), long: false },
    Shape { heads: heads(12, 1, 64), contexts: &[50, 300], parts: 4, window: Some(1), long: false },
    Shape { heads: heads(2, 1, 80), contexts: &[280], parts: 1, window: None, long: false },
    Shape { heads: heads(2, 2, 128), contexts: &[700, 3], parts: 4, window: Some(512), long: true },
    Shape { heads: heads(32, 8, 128), contexts: &[1000, 1, 513, 64], parts: 8, window: None, long: true },
];

const fn heads(q: usize, kv: usize, dim: usize) -> HeadLayout {
    HeadLayout { q, kv, dim }
}

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in FLOATS {
        for shape in SHAPES.iter().filter(|shape| !small || !shape.long) {
            let name = format!(
                "paged_decode {dtype:?} {:?} contexts {:?} parts {} window {:?}",
                shape.heads, shape.contexts, shape.parts, shape.window
            );
            case(device, &name, dtype, shape)?;
            ran += 1;
        }
    }
    Ok(ran)
}

fn case(device: &mut dyn CheckDevice, name: &str, dtype: DType, shape: &Shape) -> Result<(), String> {
    device.clear();
    let (heads, contexts) = (shape.heads, shape.contexts);
    let mut cache = named(name, Cache::new(dtype, heads, contexts))?;
    let qkv = tensor(dtype, &fill(contexts.len() * heads.width(), 13));
    let scale = 1.0 / (heads.dim as f32).sqrt();
    let scratch = contexts.len() * heads.q * shape.parts * 4;
    let op = PagedDecode {
        qkv: read_only(device, "qkv", &qkv.bytes)?,
        kv: read_only(device, "kv", &named(name, cache.on_device())?.bytes)?,
        tables: indices(device, "tables", &cache.tables)?,
        contexts: indices(device, "contexts", contexts)?,
        sums: device.alloc("sums", scratch * heads.dim, Use::Write)?,
        stats: device.alloc("stats", scratch * 2, Use::Write)?,
        out: device.alloc("out", contexts.len() * heads.q * heads.dim * dtype.size(), Use::Write)?,
        dtype,
        sequences: contexts.len(),
        table_width: cache.table_width,
        parts: shape.parts,
        heads,
        scale,
        window: shape.window,
    };
    for launch in named(name, paged_decode(&op))? {
        named(name, device.launch(&launch))?;
    }

    // A query a sequence: padding has none.
    let width = heads.q * heads.dim;
    let mut expected = vec![0.0; contexts.len() * width];
    let (exec, tables) = (Exec::Reference, cache.tables.clone());
    let layer = named(name, cache.for_reference())?;
    for (sequence, context) in contexts.iter().enumerate().filter(|(_, context)| **context > 0) {
        let query = &qkv.values[sequence * heads.width()..][..heads.width()];
        let query = named(name, View::new(query, 1, heads.width()))?;
        let table_start = (sequence * op.table_width) as u32;
        let span = SeqSpan { query_start: 0, query_len: 1, context_len: *context, table_start };
        let out = named(name, ViewMut::new(&mut expected[sequence * width..][..width], 1, width))?;
        named(
            name,
            crate::paged_attention(&exec, query, heads, layer, &[span], &tables, scale, shape.window, out),
        )?;
    }
    // Scores are sums of `dim` products and enter an exponential; values are averaged.
    let found = fetch(device, op.out, dtype, expected.len())?;
    close(name, &found, &expected, Tolerance::of(dtype, heads.dim + 64, 1.0))
}
