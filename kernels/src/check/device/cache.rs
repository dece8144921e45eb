//! A paged cache with random keys and values, for the device and for the reference.

use super::compare::{Tensor, tensor};
use crate::check::hash;
use crate::error::Result;
use crate::kv::{BLOCK, KvCacheBuf, KvLayer};
use crate::{DType, HeadLayout};

/// One layer's cache and the block tables of some sequences.
pub(super) struct Cache {
    dtype: DType,
    buf: KvCacheBuf,
    /// `[sequences, table_width]`; what no token needs is no block.
    pub(super) tables: Vec<u32>,
    pub(super) table_width: usize,
}

impl Cache {
    /// Keys and values of `contexts` tokens a sequence. Blocks are handed out from the back, every other first; what no
    /// token has written is NaN, as memory may be.
    pub(super) fn new(dtype: DType, heads: HeadLayout, contexts: &[u32]) -> Result<Cache> {
        let needed = |context: &u32| (*context as usize).div_ceil(BLOCK);
        let table_width = contexts.iter().map(needed).max().unwrap_or(0).max(1) + 1;
        let blocks = contexts.iter().map(needed).sum::<usize>() + 2;
        let mut buf = KvCacheBuf::new(1, blocks, heads.kv, heads.dim)?;
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        free.sort_by_key(|block| std::cmp::Reverse((block % 2, *block)));
        let mut free = free.into_iter();
        let mut tables = vec![u32::MAX; contexts.len() * table_width];
        let layer = buf.layer_mut(0)?;
        layer.data.fill(f32::NAN);
        let mut at = 0;
        let mut next = || {
            at += 1;
            let value = (hash(at, 11) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0;
            tensor(dtype, &[value]).values[0]
        };
        for (sequence, context) in contexts.iter().enumerate() {
            for index in 0..needed(context) {
                let block = free.next().expect("as many blocks as are needed");
                tables[sequence * table_width + index] = block;
                for head in 0..heads.kv {
                    let key = layer.shape.key_at(block as usize, head);
                    let value = layer.shape.value_at(block as usize, head);
                    for token in 0..BLOCK.min(*context as usize - index * BLOCK) {
                        for d in 0..heads.dim {
                            layer.data[key + d * BLOCK + token] = next();
                            layer.data[value + token * layer.shape.padded() + d] = next();
                        }
                    }
                }
            }
        }
        Ok(Cache { dtype, buf, tables, table_width })
    }

    /// The device's layout.
    pub(super) fn on_device(&self) -> Result<Tensor> {
        Ok(tensor(self.dtype, &device_layout(&self.buf.layer(0)?)))
    }

    /// The CPU's. The reference would multiply the NaN of a block's tail with zero: it gets zeros there.
    pub(super) fn for_reference(&mut self) -> Result<KvLayer<'_>> {
        let layer = self.buf.layer_mut(0)?;
        layer.data.iter_mut().filter(|value| value.is_nan()).for_each(|value| *value = 0.0);
        self.buf.layer(0)
    }
}

/// A layer of the CPU's cache as the device's `[blocks][k|v][kv_heads][16][dim]`.
pub(super) fn device_layout(layer: &KvLayer<'_>) -> Vec<f32> {
    let shape = layer.shape;
    let mut out = Vec::with_capacity(shape.blocks * 2 * shape.kv_heads * BLOCK * shape.head_dim);
    for block in 0..shape.blocks {
        for head in 0..shape.kv_heads {
            let keys = &layer.data[shape.key_at(block, head)..];
            for token in 0..BLOCK {
                out.extend((0..shape.head_dim).map(|d| keys[d * BLOCK + token]));
            }
        }
        for head in 0..shape.kv_heads {
            let values = &layer.data[shape.value_at(block, head)..];
            for token in 0..BLOCK {
                out.extend_from_slice(&values[token * shape.padded()..][..shape.head_dim]);
            }
        }
    }
    out
}
