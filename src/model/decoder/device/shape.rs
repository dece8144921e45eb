//! What a list of launches depends on: extents that never change, and counts rounded up.

use tarn_kernels::device::expert_stream::Experts;
use tarn_kernels::device::lora::MAX_RANK;
use tarn_kernels::device::route_topk::MAX_EXPERTS;
use tarn_kernels::{BLOCK, DType, HeadLayout};

use super::super::super::config::DecoderConfig;
use super::super::super::error::{ModelError, Result};
use super::DeviceOptions;

/// Blocks of a grid that keep a large device busy: contexts are split until there are about as many.
const BUSY: usize = 512;
/// Cache blocks of a part of a context, at least.
const PART_BLOCKS: usize = 4;
/// Columns of a part of an adapter's way down, about.
const SHRINK_COLUMNS: usize = 512;
/// Pairs an expert from which tiles read weights less often than streams do.
const TILES_FROM: usize = 32;

/// Extents of the model and the largest counts of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    /// Element type of weights, activations and cache.
    pub(super) dtype: DType,
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) vocab: usize,
    pub(super) heads: HeadLayout,
    /// 1 for a dense MLP.
    pub(super) experts: usize,
    pub(super) top_k: usize,
    pub(super) routed: bool,
    pub(super) window: Option<u32>,
    pub(super) eps: f32,
    /// Most tokens of a step.
    pub(super) tokens: usize,
    /// Most sequences of a step, and rows of logits at a time.
    pub(super) sequences: usize,
    /// Positions that a token may have.
    pub(super) positions: usize,
    /// Cache blocks of the longest context.
    pub(super) table_width: usize,
    /// Adapters that a step may have; 0 for none.
    pub(super) slots: usize,
    /// Largest rank of an adapter.
    pub(super) max_rank: usize,
}

/// Counts of a step, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) tokens: usize,
    pub(super) sequences: usize,
    /// Most tokens of one sequence; 1: the attention of decoding.
    pub(super) queries: usize,
    /// Whether a token has an adapter.
    pub(super) adapted: bool,
}

/// `count` rounded up, at most `most`: exact up to 8, then by at most a quarter, so that few shapes cover all counts.
pub(super) fn padded(count: usize, most: usize) -> usize {
    let step = (count.next_power_of_two() / 8).max(1);
    count.next_multiple_of(step).min(most)
}

impl Extents {
    /// What `options` make of a model.
    ///
    /// # Errors
    /// [`ModelError::DeviceLimit`] for what no kernel has room for.
    pub(super) fn new(config: &DecoderConfig, options: &DeviceOptions) -> Result<Extents> {
        let (experts, top_k) = config.moe.map_or((1, 1), |moe| (moe.experts, moe.top_k));
        let tokens = options.max_num_batched_tokens.max(1);
        let (slots, max_rank) =
            options.adapters.map_or((0, 0), |adapters| (adapters.slots, adapters.max_rank));
        let extents = Extents {
            dtype: options.dtype,
            layers: config.layers,
            hidden: config.hidden,
            inner: config.intermediate,
            vocab: config.vocab,
            heads: HeadLayout { q: config.heads, kv: config.kv_heads, dim: config.head_dim },
            experts,
            top_k,
            routed: config.moe.is_some(),
            window: config.sliding_window.map(|window| window as u32),
            eps: config.eps,
            tokens,
            sequences: options.max_num_seqs.clamp(1, tokens),
            positions: config.max_positions,
            table_width: options.max_model_len.div_ceil(BLOCK).max(1),
            slots,
            max_rank,
        };
        extents.check_adapters()?;
        Ok(extents)
    }

    fn check_adapters(&self) -> Result<()> {
        let refuse = |what: String| Err(ModelError::DeviceLimit { what });
        if self.slots * self.experts > MAX_EXPERTS {
            return refuse(format!(
                "{} adapters on {} experts are more than the device's kernels take at once: set the number of adapters \
                 to {} or less",
                self.slots,
                self.experts,
                MAX_EXPERTS / self.experts
            ));
        }
        if self.slots > 0 && (self.max_rank == 0 || 3 * self.max_rank > MAX_RANK) {
            return refuse(format!(
                "adapters of rank {}: q, k and v are one product on the device, whose ranks together are at most \
                 {MAX_RANK}: set the largest rank to 1 to {}",
                self.max_rank,
                MAX_RANK / 3
            ));
        }
        Ok(())
    }

    /// Bytes of `count` elements.
    pub(super) fn bytes(&self, count: usize) -> usize {
        count * self.dtype.size()
    }

    /// Width of the rows that attention gives.
    pub(super) fn attended(&self) -> usize {
        self.heads.q * self.heads.dim
    }

    /// Elements of a layer's cache of `blocks` blocks.
    pub(super) fn cache(&self, blocks: usize) -> usize {
        blocks * 2 * self.heads.kv * BLOCK * self.heads.dim
    }

    /// The rank of an update of `fused` products, as the kernels pad it.
    pub(super) fn rank(&self, fused: usize) -> usize {
        (fused * self.max_rank).next_multiple_of(8)
    }

    /// Parts that contexts are split into where `sequences` are decoded.
    pub(super) fn decode_parts(&self, sequences: usize) -> usize {
        (BUSY / (sequences * self.heads.kv)).clamp(1, self.table_width.div_ceil(PART_BLOCKS))
    }

    /// Parts that an adapter's way down of `k` columns is split into.
    pub(super) fn shrink_parts(&self, k: usize) -> usize {
        (k / SHRINK_COLUMNS).clamp(1, 8)
    }

    /// Whether the experts' products of `tokens` tokens are computed in tiles.
    pub(super) fn in_tiles(&self, tokens: usize) -> bool {
        tokens * self.top_k >= TILES_FROM * self.experts
    }

    /// The experts' products of up to `tokens` tokens over the alignment in `offsets` and `sorted_pairs`.
    pub(super) fn experts_of(
        &self,
        tokens: usize,
        offsets: tarn_kernels::device::Ptr,
        sorted_pairs: tarn_kernels::device::Ptr,
    ) -> Experts {
        Experts {
            offsets,
            sorted_pairs,
            dtype: self.dtype,
            experts: self.experts,
            ranks: self.top_k,
            max_tokens: tokens,
            h: self.hidden,
            inner: self.inner,
        }
    }

    /// The shape of a step.
    pub(super) fn shape(&self, tokens: usize, sequences: usize, queries: usize, adapted: bool) -> Shape {
        let sequences = padded(sequences, self.sequences);
        if queries <= 1 {
            return Shape { tokens: sequences, sequences, queries: 1, adapted };
        }
        let tokens = padded(tokens, self.tokens);
        Shape { tokens, sequences, queries: padded(queries, self.tokens), adapted }
    }

    /// The largest shapes: of a prefill and of decoding.
    pub(super) fn largest(&self) -> [Shape; 2] {
        let adapted = self.slots > 0;
        [self.tokens, 1].map(|queries| self.shape(self.tokens, self.sequences, queries, adapted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_shapes_cover_all_counts() {
        let mut shapes = std::collections::BTreeSet::new();
        for count in 1..=256 {
            let up = padded(count, 250);
            assert!(up >= count.min(250) && up <= count + count / 4, "{count} becomes {up}");
            assert_eq!(padded(up, 250), up);
            shapes.insert(up);
        }
        assert!(shapes.len() <= 8 + 4 * 5, "{shapes:?}");
    }
}
