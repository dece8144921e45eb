//! The paged KV cache: blocks of 16 positions, keys transposed for the vector lanes.

use half::bf16;

use crate::error::{KernelError, Result};
use crate::{Buf, DType};

/// Positions in a block.
pub const BLOCK: usize = 16;

/// The KV cache of all layers: `[layer][block]`, and in a block of a layer K `[kv_head][head_dim][16]` and V
/// `[kv_head][16][head_dim]`.
///
/// Keys are stored dimension-major so that sixteen keys are the lanes of one vector and a score is a chain of
/// multiply-adds over the dimensions: no transposes and no sums across lanes in attention.
#[derive(Debug)]
pub struct KvCacheBuf {
    data: Buf,
    shape: KvShape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    layers: usize,
    pub(crate) blocks: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvShape {
    /// Elements of K, or of V, of one head in one block.
    pub(crate) fn head_len(&self) -> usize {
        self.head_dim * BLOCK
    }

    /// Elements of a block of one layer.
    fn block_len(&self) -> usize {
        2 * self.kv_heads * self.head_len()
    }

    fn layer_len(&self) -> usize {
        self.blocks * self.block_len()
    }

    /// Where K of a head in a block starts, from the layer's start.
    pub(crate) fn keys(&self, block: usize, head: usize) -> usize {
        block * self.block_len() + head * self.head_len()
    }

    /// Where V of a head in a block starts, from the layer's start.
    pub(crate) fn values(&self, block: usize, head: usize) -> usize {
        self.keys(block, head) + self.kv_heads * self.head_len()
    }
}

/// One layer of a cache, read-only.
#[derive(Debug, Clone, Copy)]
pub struct KvLayer<'a> {
    pub(crate) data: KvSlice<'a>,
    pub(crate) shape: KvShape,
}

/// One layer of a cache, writable.
#[derive(Debug)]
pub struct KvLayerMut<'a> {
    pub(crate) data: KvSliceMut<'a>,
    pub(crate) shape: KvShape,
}

/// A layer's elements.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KvSlice<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
}

/// A layer's elements, writable.
#[derive(Debug)]
pub(crate) enum KvSliceMut<'a> {
    F32(&'a mut [f32]),
    BF16(&'a mut [bf16]),
}

impl KvSlice<'_> {
    pub(crate) fn get(&self, at: usize) -> f32 {
        match self {
            KvSlice::F32(values) => values[at],
            KvSlice::BF16(values) => values[at].to_f32(),
        }
    }
}

impl KvSliceMut<'_> {
    pub(crate) fn set(&mut self, at: usize, value: f32) {
        match self {
            KvSliceMut::F32(values) => values[at] = value,
            KvSliceMut::BF16(values) => values[at] = bf16::from_f32(value),
        }
    }
}

impl KvCacheBuf {
    /// A zeroed cache; `dtype` is F32 or BF16.
    pub fn new(layers: usize, blocks: usize, kv_heads: usize, head_dim: usize, dtype: DType) -> Result<KvCacheBuf> {
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(KernelError::Unsupported { op: "KvCacheBuf::new", reason: format!("a cache of {dtype:?}") });
        }
        let shape = KvShape { layers, blocks, kv_heads, head_dim };
        Ok(KvCacheBuf { data: Buf::zeros(dtype, &[layers, blocks, 2, kv_heads, BLOCK, head_dim]), shape })
    }

    /// Memory that the cache takes.
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// Blocks in a layer.
    pub fn blocks(&self) -> usize {
        self.shape.blocks
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.shape.layers
    }

    /// Layer `layer`.
    pub fn layer(&self, layer: usize) -> Result<KvLayer<'_>> {
        let range = self.layer_range(layer)?;
        let data = match self.data.dtype() {
            DType::BF16 => KvSlice::BF16(&self.data.slice()?[range]),
            _ => KvSlice::F32(&self.data.slice()?[range]),
        };
        Ok(KvLayer { data, shape: self.shape })
    }

    /// Layer `layer`, writable.
    pub fn layer_mut(&mut self, layer: usize) -> Result<KvLayerMut<'_>> {
        let range = self.layer_range(layer)?;
        let data = match self.data.dtype() {
            DType::BF16 => KvSliceMut::BF16(&mut self.data.slice_mut()?[range]),
            _ => KvSliceMut::F32(&mut self.data.slice_mut()?[range]),
        };
        Ok(KvLayerMut { data, shape: self.shape })
    }

    fn layer_range(&self, layer: usize) -> Result<std::ops::Range<usize>> {
        if layer >= self.shape.layers {
            let limit = self.shape.layers;
            return Err(KernelError::Index { op: "KvCacheBuf::layer", what: "layer", index: layer, limit });
        }
        Ok(layer * self.shape.layer_len()..(layer + 1) * self.shape.layer_len())
    }

    /// Copies a block in every layer: a fork's copy on write.
    pub fn copy_block(&mut self, src: u32, dst: u32) -> Result<()> {
        for block in [src, dst] {
            if block as usize >= self.shape.blocks {
                let (index, limit) = (block as usize, self.shape.blocks);
                return Err(KernelError::Index { op: "KvCacheBuf::copy_block", what: "block", index, limit });
            }
        }
        let block = self.shape.block_len() * self.data.dtype().size();
        for layer in 0..self.shape.layers {
            let start = layer * self.shape.blocks;
            let src = (start + src as usize) * block;
            self.data.as_bytes_mut().copy_within(src..src + block, (start + dst as usize) * block);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_a_block_copies_it_in_every_layer_and_nothing_else() {
        let mut cache = KvCacheBuf::new(2, 3, 1, 4, DType::F32).unwrap();
        for layer in 0..2 {
            let KvSliceMut::F32(values) = cache.layer_mut(layer).unwrap().data else { unreachable!() };
            values.iter_mut().enumerate().for_each(|(i, v)| *v = (layer * 1000 + i) as f32);
        }
        cache.copy_block(0, 2).unwrap();
        for layer in 0..2 {
            let KvSlice::F32(values) = cache.layer(layer).unwrap().data else { unreachable!() };
            assert_eq!(values[256], (layer * 1000) as f32);
            assert_eq!(values[383], (layer * 1000 + 127) as f32);
            assert_eq!(values[128], (layer * 1000 + 128) as f32);
        }
        assert!(cache.copy_block(0, 3).is_err());
        assert!(cache.layer(2).is_err());
    }
}
