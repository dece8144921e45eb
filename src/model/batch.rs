//! What a step feeds a decoder.

use std::sync::Arc;

use tarn_kernels::{BLOCK, KvCacheBuf, SeqSpan, View};

use super::error::{ModelError, Result};
use super::lora::LoraAdapter;

/// One forward pass over parts of several sequences. All slices are borrowed from the engine's runner.
#[derive(Debug, Clone, Copy)]
pub struct ForwardBatch<'a> {
    /// Token ids, `[tokens]`.
    pub input_ids: &'a [u32],
    /// Position of each token in its sequence, `[tokens]`.
    pub positions: &'a [u32],
    /// Where each token's key and value go: block * 16 + offset, `[tokens]`.
    pub slot_mapping: &'a [u32],
    /// Which tokens belong to which sequence.
    pub sequences: &'a [SeqSpan],
    /// All sequences' block tables, one after another.
    pub block_tables: &'a [u32],
    /// Rows (tokens) whose logits are wanted.
    pub logits_rows: &'a [u32],
    /// The adapters of this pass.
    pub adapters: &'a [Arc<LoraAdapter>],
    /// Index into `adapters` of each token's adapter, `[tokens]`; [`NO_ADAPTER`] for the base model. Empty where
    /// `adapters` is.
    pub adapter_of: &'a [u32],
}

/// A token of the base model alone.
pub const NO_ADAPTER: u32 = u32::MAX;

impl ForwardBatch<'_> {
    /// Lengths agree and the batch fits; the ops check every index themselves.
    pub(super) fn check(&self, max_tokens: usize, max_rows: usize) -> Result<()> {
        let tokens = self.input_ids.len();
        let wrong = |what: String| Err(ModelError::Batch { what });
        if tokens == 0 || tokens > max_tokens {
            return wrong(format!("{tokens} tokens, the decoder was sized for 1 to {max_tokens}"));
        }
        if self.positions.len() != tokens || self.slot_mapping.len() != tokens {
            return wrong(format!(
                "{tokens} tokens, {} positions, {} slots",
                self.positions.len(),
                self.slot_mapping.len()
            ));
        }
        if self.adapters.is_empty() != self.adapter_of.is_empty()
            || !matches!(self.adapter_of.len(), 0) && self.adapter_of.len() != tokens
        {
            return wrong(format!("{tokens} tokens, adapters of {}", self.adapter_of.len()));
        }
        if let Some(at) =
            self.adapter_of.iter().find(|at| **at != NO_ADAPTER && **at as usize >= self.adapters.len())
        {
            return wrong(format!("adapter {at} of {}", self.adapters.len()));
        }
        if self.logits_rows.len() > max_rows {
            return wrong(format!("{} rows of logits, sized for {max_rows}", self.logits_rows.len()));
        }
        if let Some(row) = self.logits_rows.iter().find(|row| **row as usize >= tokens) {
            return wrong(format!("logits of row {row} of {tokens}"));
        }
        let covered: usize = self.sequences.iter().map(|seq| seq.query_len as usize).sum();
        if covered != tokens {
            return wrong(format!("sequences cover {covered} of {tokens} tokens"));
        }
        Ok(())
    }

    /// Every index is inside of what it points to: on a device no op checks.
    pub(super) fn check_indices(&self, positions: usize, blocks: usize) -> Result<()> {
        let wrong = |what: String| Err(ModelError::Batch { what });
        let past = |all: &[u32], bound: usize| all.iter().find(|at| **at as usize >= bound).copied();
        if let Some(at) = past(self.positions, positions) {
            return wrong(format!("position {at} of {positions}"));
        }
        if let Some(at) = past(self.slot_mapping, blocks * BLOCK) {
            return wrong(format!("slot {at} of {blocks} blocks"));
        }
        for span in self.sequences {
            let needed = (span.context_len as usize).div_ceil(BLOCK);
            let from = span.table_start as usize;
            let Some(table) = self.block_tables.get(from..from + needed) else {
                return wrong(format!("a table of {needed} blocks at {from} of {}", self.block_tables.len()));
            };
            if let Some(at) = past(table, blocks) {
                return wrong(format!("block {at} of {blocks}"));
            }
            let end = span.query_start as usize + span.query_len as usize;
            if end > self.input_ids.len() || span.query_len > span.context_len {
                return wrong(format!("{span:?} of {} tokens", self.input_ids.len()));
            }
        }
        Ok(())
    }
}

/// The extents of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl KvSpec {
    /// Tokens of a block.
    pub const BLOCK_SIZE: usize = BLOCK;

    /// Bytes of one block over all layers.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        KvCacheBuf::block_bytes(self.layers, self.kv_heads, self.head_dim)
    }
}

/// Keys and values of all sequences, in blocks of 16 tokens.
#[derive(Debug)]
pub struct KvCache {
    pub(super) buf: KvCacheBuf,
}

impl KvCache {
    /// `blocks` zeroed blocks.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn new(spec: KvSpec, blocks: usize) -> Result<KvCache> {
        Ok(KvCache { buf: KvCacheBuf::new(spec.layers, blocks, spec.kv_heads, spec.head_dim)? })
    }

    /// Blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.buf.blocks()
    }

    /// Copies whole blocks, `(from, to)` each, in order.
    ///
    /// # Errors
    /// When a block does not exist.
    pub fn copy_blocks(&mut self, copies: &[(u32, u32)]) -> Result<()> {
        for (from, to) in copies {
            self.buf.copy_block(*from as usize, *to as usize)?;
        }
        Ok(())
    }
}

/// Logits of the rows that were asked for, `[rows, vocab]`, in the order of `logits_rows`.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    pub(super) view: View<'a>,
}

impl<'a> Logits<'a> {
    /// Row `at`, `[vocab]`.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    pub fn row(&self, at: usize) -> &'a [f32] {
        self.view.row(at)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.view.n_rows()
    }
}
