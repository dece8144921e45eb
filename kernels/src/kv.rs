//! The paged KV cache.
//!
//! A block holds 16 tokens of one layer: keys `[kv_head][head_dim][16]` (d-major, so that a vector register is one
//! dimension of 16 keys), values `[kv_head][16][padded head_dim]`. See docs/decisions/002.

use crate::buf::{Buf, DType};
use crate::error::{Result, inside};

/// Tokens of a block.
pub const BLOCK: usize = 16;

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDType {
    /// 32-bit floats.
    F32,
}

/// Keys and values of all layers and blocks.
#[derive(Debug)]
pub struct KvCacheBuf {
    layers: Vec<Buf>,
    shape: KvShape,
}

/// The extents of a layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) blocks: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvShape {
    /// Elements of a value row: the head's width rounded up to whole registers.
    pub(crate) fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }
    fn key_elements(&self) -> usize {
        self.head_dim * BLOCK
    }
    fn value_elements(&self) -> usize {
        self.padded() * BLOCK
    }
    fn block_elements(&self) -> usize {
        self.kv_heads * (self.key_elements() + self.value_elements())
    }
    pub(crate) fn key_at(&self, block: usize, head: usize) -> usize {
        block * self.block_elements() + head * self.key_elements()
    }
    pub(crate) fn value_at(&self, block: usize, head: usize) -> usize {
        block * self.block_elements() + self.kv_heads * self.key_elements() + head * self.value_elements()
    }
}

impl KvCacheBuf {
    /// Zeroed blocks; memory is touched when a block is first written.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`](crate::KernelError::OutOfMemory).
    pub fn new(layers: usize, blocks: usize, kv_heads: usize, head_dim: usize) -> Result<KvCacheBuf> {
        let shape = KvShape { blocks, kv_heads, head_dim };
        let layers = (0..layers)
            .map(|_| Buf::zeros(DType::F32, &[blocks, shape.block_elements()]))
            .collect::<Result<_>>()?;
        Ok(KvCacheBuf { layers, shape })
    }

    /// Bytes of one block over all layers.
    #[must_use]
    pub fn block_bytes(layers: usize, kv_heads: usize, head_dim: usize) -> usize {
        layers * KvShape { blocks: 1, kv_heads, head_dim }.block_elements() * 4
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.shape.blocks
    }

    /// Layer `at`, to read.
    ///
    /// # Errors
    /// [`KernelError::Index`](crate::KernelError::Index).
    pub fn layer(&self, at: usize) -> Result<KvLayer<'_>> {
        inside("kv_cache", "layer", at, self.layers.len())?;
        Ok(KvLayer { data: self.layers[at].as_f32()?, shape: self.shape })
    }

    /// Layer `at`, to write.
    ///
    /// # Errors
    /// [`KernelError::Index`](crate::KernelError::Index).
    pub fn layer_mut(&mut self, at: usize) -> Result<KvLayerMut<'_>> {
        inside("kv_cache", "layer", at, self.layers.len())?;
        Ok(KvLayerMut { data: self.layers[at].as_f32_mut()?, shape: self.shape })
    }

    /// Copies block `from` over block `to` in all layers.
    ///
    /// # Errors
    /// [`KernelError::Index`](crate::KernelError::Index).
    pub fn copy_block(&mut self, from: usize, to: usize) -> Result<()> {
        inside("kv_cache", "block", from.max(to), self.shape.blocks)?;
        let len = self.shape.block_elements();
        for layer in &mut self.layers {
            layer.as_f32_mut()?.copy_within(from * len..(from + 1) * len, to * len);
        }
        Ok(())
    }
}

/// One layer's blocks.
#[derive(Debug, Clone, Copy)]
pub struct KvLayer<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) shape: KvShape,
}

/// One layer's blocks, to write.
#[derive(Debug)]
pub struct KvLayerMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) shape: KvShape,
}
