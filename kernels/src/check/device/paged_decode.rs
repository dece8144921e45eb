//! `paged_decode.cu` against [`crate::paged_attention()`].

use super::compare::{FLOATS, Tolerance, close, fetch, indices, named, read_only, tensor};
use super::rope_kv_write::device_cache;
use super::{Device, Use};
use crate::check::{fill, hash};
use crate::device::paged_decode::{PagedDecode, paged_decode};
use crate::kv::{BLOCK, KvCacheBuf};
use crate::{DType, Exec, HeadLayout, SeqSpan, View, ViewMut};

struct Shape {
    heads: HeadLayout,
    contexts: &'static [u32],
    parts: usize,
    window: Option<u32>,
    long: bool,
}

/// Group sizes 1, 3, 4, 5, 12; dimensions that fill a warp's rows and that do not; contexts of one token, at and around
/// block boundaries, shorter than the parts, padding; windows inside and outside of the context.
const SHAPES: [Shape; 8] = [
    Shape { heads: heads(1, 1, 64), contexts: &[1], parts: 1, window: None, long: false },
    Shape { heads: heads(9, 3, 64), contexts: &[1, 16, 0, 17, 40], parts: 3, window: None, long: false },
    Shape { heads: heads(8, 2, 128), contexts: &[33, 150], parts: 2, window: None, long: false },
    Shape { heads: heads(4, 1, 80), contexts: &[77, 5], parts: 2, window: Some(20), long: false },
    Shape { heads: heads(5, 1, 96), contexts: &[100], parts: 1, window: Some(33), long: false },
    Shape { heads: heads(12, 1, 64), contexts: &[50, 300], parts: 4, window: Some(1), long: false },
    Shape { heads: heads(2, 2, 128), contexts: &[700, 3], parts: 4, window: Some(512), long: true },
    Shape { heads: heads(32, 8, 128), contexts: &[1000, 1, 513, 64], parts: 8, window: None, long: true },
];

const fn heads(q: usize, kv: usize, dim: usize) -> HeadLayout {
    HeadLayout { q, kv, dim }
}

pub(super) fn run(device: &mut dyn Device, small: bool) -> Result<usize, String> {
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

fn case(device: &mut dyn Device, name: &str, dtype: DType, shape: &Shape) -> Result<(), String> {
    device.clear();
    let (heads, contexts) = (shape.heads, shape.contexts);
    let needed = |context: &u32| (*context as usize).div_ceil(BLOCK);
    let table_width = contexts.iter().map(needed).max().unwrap_or(0).max(1) + 1;
    let blocks = contexts.iter().map(needed).sum::<usize>() + 2;

    // Blocks are handed out from the back, every other first. What no token has written is NaN, as memory may be.
    let mut cache = named(name, KvCacheBuf::new(1, blocks, heads.kv, heads.dim))?;
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    free.sort_by_key(|block| std::cmp::Reverse((block % 2, *block)));
    let mut tables = vec![u32::MAX; contexts.len() * table_width];
    let layer = named(name, cache.layer_mut(0))?;
    layer.data.fill(f32::NAN);
    let mut next = free.into_iter();
    let rounded = |at: u64, seed: u64| tensor(dtype, &[value(at, seed)]).values[0];
    for (sequence, context) in contexts.iter().enumerate() {
        for index in 0..needed(context) {
            let block = next.next().unwrap_or(0);
            tables[sequence * table_width + index] = block;
            for token in 0..BLOCK.min(*context as usize - index * BLOCK) {
                for head in 0..heads.kv {
                    let (key, value) = (layer.shape.key_at(block as usize, head), layer.shape.value_at(block as usize, head));
                    for d in 0..heads.dim {
                        let at = (((sequence * 4096 + index * BLOCK + token) * heads.kv + head) * heads.dim + d) as u64;
                        layer.data[key + d * BLOCK + token] = rounded(at, 11);
                        layer.data[value + token * layer.shape.padded() + d] = rounded(at, 12);
                    }
                }
            }
        }
    }
    let qkv = tensor(dtype, &fill(contexts.len() * heads.width(), 13));
    let scale = 1.0 / (heads.dim as f32).sqrt();
    let stored = tensor(dtype, &device_cache(&named(name, cache.layer(0))?));
    let scratch = contexts.len() * heads.q * shape.parts * 4;
    let op = PagedDecode {
        qkv: read_only(device, "qkv", &qkv.bytes),
        kv: read_only(device, "kv", &stored.bytes),
        tables: indices(device, "tables", &tables),
        contexts: indices(device, "contexts", contexts),
        sums: device.alloc("sums", scratch * heads.dim, Use::Write),
        stats: device.alloc("stats", scratch * 2, Use::Write),
        out: device.alloc("out", contexts.len() * heads.q * heads.dim * dtype.size(), Use::Write),
        dtype,
        sequences: contexts.len(),
        table_width,
        parts: shape.parts,
        heads,
        scale,
        window: shape.window,
    };
    for launch in named(name, paged_decode(&op))? {
        named(name, device.launch(&launch))?;
    }

    // The reference would take NaN times zero from the tail of a block: it gets zeros there.
    for layer in [named(name, cache.layer_mut(0))?] {
        layer.data.iter_mut().filter(|value| value.is_nan()).for_each(|value| *value = 0.0);
    }
    let rows = contexts.len();
    let mut expected = vec![0.0; rows * heads.q * heads.dim];
    for (sequence, context) in contexts.iter().enumerate().filter(|(_, context)| **context > 0) {
        let query = &qkv.values[sequence * heads.width()..][..heads.width()];
        let span = SeqSpan { query_start: 0, query_len: 1, context_len: *context, table_start: 0 };
        let width = heads.q * heads.dim;
        let out = named(name, ViewMut::new(&mut expected[sequence * width..][..width], 1, width))?;
        let table = &tables[sequence * table_width..][..needed(context)];
        let query = named(name, View::new(query, 1, heads.width()))?;
        let layer = named(name, cache.layer(0))?;
        let exec = Exec::Reference;
        named(name, crate::paged_attention(&exec, query, heads, layer, &[span], table, scale, shape.window, out))?;
    }
    // Scores are sums of `dim` products and enter an exponential; values are averaged.
    let found = fetch(device, op.out, dtype, expected.len());
    close(name, &found, &expected, Tolerance::of(dtype, heads.dim + 64, 1.0))
}

/// In -1..1.
fn value(at: u64, seed: u64) -> f32 {
    (hash(at, seed) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}
