//! A pass as a list of launches: for a shape the same every time, whatever is in the buffers.

use tarn_kernels::DType;
use tarn_kernels::device::dense::{Dense, dense};
use tarn_kernels::device::embed_rows::{EmbedRows, embed_rows};
use tarn_kernels::device::expert_align::{ExpertAlign, expert_align};
use tarn_kernels::device::expert_stream::{self, Delta, expert_combine};
use tarn_kernels::device::expert_tiles;
use tarn_kernels::device::gather_rows::{GatherRows, gather_rows};
use tarn_kernels::device::kv_copy::{KvCopy, kv_copy};
use tarn_kernels::device::lora::{Adapters, lora_expand, lora_shrink};
use tarn_kernels::device::paged_decode::{PagedDecode, paged_decode};
use tarn_kernels::device::paged_prefill::{PagedPrefill, paged_prefill};
use tarn_kernels::device::rms_norm::{RmsNorm, rms_norm};
use tarn_kernels::device::rope_kv_write::{RopeKvWrite, rope_kv_write};
use tarn_kernels::device::route_topk::{RouteTopk, route_topk};
use tarn_kernels::device::sample::{Sample, sample};
use tarn_kernels::device::{Launch, Ptr, Weights};

use super::super::super::error::Result;
use super::adapters::{AdapterSlots, Update};
use super::buffers::{Activations, Inputs};
use super::shape::{Extents, Shape};
use super::weights::{DecoderWeights, LayerWeights};

/// All that the launches of a decoder point to.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) extents: Extents,
    pub(super) weights: DecoderWeights,
    pub(super) inputs: Inputs,
    pub(super) activations: Activations,
    pub(super) adapters: Option<AdapterSlots>,
    /// `[blocks][k|v][kv heads][16][dim]`, one a layer.
    pub(super) cache: Vec<Ptr>,
}

/// The launches of one pass, being written down.
struct Pass<'a> {
    parts: &'a Parts,
    shape: Shape,
    /// Where a token of the pass may have an adapter.
    adapters: Option<&'a AdapterSlots>,
    list: Vec<Launch>,
}

impl Parts {
    /// From token ids to the last layer's `residual` and `down`, whose sum is the result.
    pub(super) fn layers(&self, shape: Shape) -> Result<Vec<Launch>> {
        let adapters = self.adapters.as_ref().filter(|_| shape.adapted);
        let mut pass = Pass { parts: self, shape, adapters, list: Vec::new() };
        pass.begin()?;
        for (at, layer) in self.weights.layers.iter().enumerate() {
            // The first layer's input is the residual itself.
            let (x, residual) = match at {
                0 => (self.activations.residual, Ptr::NONE),
                _ => (self.activations.down, self.activations.residual),
            };
            pass.norm(x, residual, layer.attention_norm)?;
            pass.attention(at, layer)?;
            pass.norm(self.activations.down, self.activations.residual, layer.mlp_norm)?;
            pass.mlp(at, layer)?;
        }
        Ok(pass.list)
    }

    /// The logits of up to `rows` wanted rows, and the tokens drawn from them where they are `sampled`: the next step's ids.
    pub(super) fn head(&self, rows: usize, sampled: bool) -> Result<Vec<Launch>> {
        let Extents { dtype, hidden, vocab, eps, .. } = self.extents;
        let (to, count) = (&self.activations, self.inputs.rows);
        let gather = GatherRows {
            x: to.down,
            residual: to.residual,
            at: self.inputs.wanted,
            out: to.gathered,
            rows: count,
            dtype,
            max_rows: rows,
            h: hidden,
        };
        let norm = RmsNorm {
            x: to.gathered,
            residual: Ptr::NONE,
            weight: self.weights.norm,
            out: to.normed,
            rows: count,
            dtype,
            max_rows: rows,
            h: hidden,
            eps,
        };
        let head = Dense {
            x: to.normed,
            w: Weights::Plain(self.weights.head),
            bias: Ptr::NONE,
            out: to.logits,
            rows: count,
            dtype,
            out_dtype: DType::F32,
            max_rows: rows,
            n: vocab,
            k: hidden,
        };
        let mut list = vec![gather_rows(&gather)?, rms_norm(&norm)?, dense(&head)?];
        if sampled {
            let (logits, how, ids) = (to.logits, self.inputs.how, self.inputs.ids);
            list.push(sample(&Sample { logits, how, ids, rows: count, max_rows: rows, vocab })?);
        }
        Ok(list)
    }

    /// Up to `copies` copies of blocks in all layers.
    pub(super) fn copies(&self, copies: usize) -> Result<Vec<Launch>> {
        let (dtype, heads) = (self.extents.dtype, self.extents.heads);
        let (pairs, count) = (self.inputs.pairs, self.inputs.copies);
        let one =
            |kv: &Ptr| kv_copy(&KvCopy { kv: *kv, pairs, copies: count, dtype, max_copies: copies, heads });
        Ok(self.cache.iter().map(one).collect::<tarn_kernels::Result<_>>()?)
    }
}

impl Pass<'_> {
    fn push(&mut self, launch: tarn_kernels::Result<Launch>) -> Result<()> {
        self.list.push(launch?);
        Ok(())
    }

    /// The embeddings, and what does not depend on the layer.
    fn begin(&mut self) -> Result<()> {
        let Parts { extents, weights, inputs, activations, .. } = self.parts;
        self.push(embed_rows(&EmbedRows {
            ids: inputs.ids,
            table: weights.embeddings,
            out: activations.residual,
            rows: inputs.tokens,
            dtype: extents.dtype,
            max_rows: self.shape.tokens,
            vocab: extents.vocab,
            h: extents.hidden,
        }))?;
        if !extents.routed {
            self.align_experts()?;
        }
        let Some(AdapterSlots { scratch, .. }) = self.adapters else { return Ok(()) };
        self.push(expert_align(&ExpertAlign {
            ids: inputs.adapters,
            slots: Ptr::NONE,
            tokens: inputs.tokens,
            offsets: scratch.token_offsets,
            sorted_pairs: scratch.sorted_tokens,
            k: 1,
            base: extents.slots,
            experts: extents.slots,
        }))
    }

    /// Sorts pairs by expert, and by virtual expert where there are adapters.
    fn align_experts(&mut self) -> Result<()> {
        let Parts { extents, inputs, activations, .. } = self.parts;
        let align = ExpertAlign {
            ids: activations.expert_ids,
            slots: Ptr::NONE,
            tokens: inputs.tokens,
            offsets: activations.offsets,
            sorted_pairs: activations.sorted_pairs,
            k: extents.top_k,
            base: extents.experts,
            experts: extents.experts,
        };
        self.push(expert_align(&align))?;
        let adapters = self.adapters.filter(|_| extents.experts > 1);
        let Some(AdapterSlots { scratch, .. }) = adapters else { return Ok(()) };
        self.push(expert_align(&ExpertAlign {
            slots: inputs.adapters,
            offsets: scratch.pair_offsets,
            sorted_pairs: scratch.sorted_pairs,
            experts: extents.slots * extents.experts,
            ..align
        }))
    }

    /// `residual += x; x = norm(residual)`, or of `x` alone.
    fn norm(&mut self, x: Ptr, residual: Ptr, weight: Ptr) -> Result<()> {
        let Parts { extents, inputs, activations, .. } = self.parts;
        self.push(rms_norm(&RmsNorm {
            x,
            residual,
            weight,
            out: activations.x,
            rows: inputs.tokens,
            dtype: extents.dtype,
            max_rows: self.shape.tokens,
            h: extents.hidden,
            eps: extents.eps,
        }))
    }

    /// `out = x · w + bias`, plus what the tokens' adapters add.
    fn product(
        &mut self,
        x: Ptr,
        w: Weights,
        bias: Ptr,
        out: Ptr,
        [n, k]: [usize; 2],
        update: Option<Update>,
    ) -> Result<()> {
        let Parts { extents, inputs, .. } = self.parts;
        let (dtype, max_rows) = (extents.dtype, self.shape.tokens);
        self.push(dense(&Dense {
            x,
            w,
            bias,
            out,
            rows: inputs.tokens,
            dtype,
            out_dtype: dtype,
            max_rows,
            n,
            k,
        }))?;
        match update {
            Some(update) => self.update(x, update, 1, out, true),
            None => Ok(()),
        }
    }

    /// `out = B · A x` of each row with an adapter, or `+=`; a row of `x` has `ranks` rows of `out`.
    fn update(&mut self, x: Ptr, update: Update, ranks: usize, out: Ptr, add: bool) -> Result<()> {
        let Some(AdapterSlots { scratch, .. }) = self.adapters else { return Ok(()) };
        let extents = &self.parts.extents;
        // The pairs of one expert are the tokens.
        let (offsets, sorted_pairs, max_pairs) = match update.experts {
            1 => (scratch.token_offsets, scratch.sorted_tokens, self.shape.tokens),
            _ => (scratch.pair_offsets, scratch.sorted_pairs, self.shape.tokens * extents.top_k),
        };
        let shape = Adapters {
            offsets,
            sorted_pairs,
            v: scratch.v,
            dtype: extents.dtype,
            adapters: extents.slots * update.experts,
            experts: update.experts,
            max_pairs,
            rank: update.rank,
            parts: extents.shrink_parts(update.k),
        };
        self.push(lora_shrink(&shape, x, update.a, ranks, update.k))?;
        self.push(lora_expand(&shape, update.b, scratch.scales, out, update.n, add))
    }

    /// `down = attention(x)`.
    fn attention(&mut self, at: usize, layer: &LayerWeights) -> Result<()> {
        let Parts { extents, weights, inputs, activations: to, cache, .. } = self.parts;
        let Extents { dtype, hidden, heads, window, table_width, .. } = *extents;
        let (kv, scale) = (cache[at], 1.0 / (heads.dim as f32).sqrt());
        let updates = self.adapters.map(|adapters| &adapters.layers[at]);
        let qkv = updates.map(|updates| updates.qkv);
        self.product(to.x, layer.qkv, layer.qkv_bias, to.qkv, [heads.width(), hidden], qkv)?;
        self.push(rope_kv_write(&RopeKvWrite {
            qkv: to.qkv,
            table: weights.rope,
            positions: inputs.positions,
            slots: inputs.slots,
            kv,
            rows: inputs.tokens,
            dtype,
            max_rows: self.shape.tokens,
            heads,
        }))?;
        let Shape { sequences, queries, .. } = self.shape;
        if queries == 1 {
            let parts = extents.decode_parts(sequences);
            self.list.extend(paged_decode(&PagedDecode {
                qkv: to.qkv,
                kv,
                tables: inputs.tables,
                contexts: inputs.contexts,
                sums: to.sums,
                stats: to.stats,
                out: to.attended,
                dtype,
                sequences,
                table_width,
                parts,
                heads,
                scale,
                window,
            })?);
        } else {
            self.push(paged_prefill(&PagedPrefill {
                qkv: to.qkv,
                kv,
                tables: inputs.tables,
                spans: inputs.spans,
                out: to.attended,
                dtype,
                sequences,
                max_queries: queries,
                heads,
                scale,
                window,
            }))?;
        }
        let output = updates.map(|updates| updates.output);
        self.product(
            to.attended,
            layer.output,
            layer.output_bias,
            to.down,
            [hidden, extents.attended()],
            output,
        )
    }

    /// `down = MLP(x)`, dense or by experts.
    fn mlp(&mut self, at: usize, layer: &LayerWeights) -> Result<()> {
        let Parts { extents, inputs, activations: to, .. } = self.parts;
        let Extents { dtype, hidden, experts, top_k, routed, .. } = *extents;
        let tokens = self.shape.tokens;
        let updates = self.adapters.map(|adapters| &adapters.layers[at]);
        if routed {
            let router = updates.map(|updates| updates.router);
            self.product(
                to.x,
                Weights::Plain(layer.router),
                Ptr::NONE,
                to.router_logits,
                [experts, hidden],
                router,
            )?;
            self.push(route_topk(&RouteTopk {
                logits: to.router_logits,
                ids: to.expert_ids,
                weights: to.expert_weights,
                rows: inputs.tokens,
                dtype,
                max_rows: tokens,
                experts,
                k: top_k,
                renormalize: true,
            }))?;
            self.align_experts()?;
        }
        let shape = extents.experts_of(tokens, to.offsets, to.sorted_pairs);
        let in_tiles = extents.in_tiles(tokens);
        let (up, down) = match in_tiles {
            true => (expert_tiles::expert_up as Product, expert_tiles::expert_down as Product),
            false => (expert_stream::expert_up as Product, expert_stream::expert_down as Product),
        };
        let mut delta = [Delta::NONE; 2];
        if let (Some(updates), Some(AdapterSlots { scratch, .. })) = (updates, self.adapters) {
            delta = [scratch.up, scratch.down].map(|values| Delta { values, slots: inputs.adapters });
            self.update(to.x, updates.w13, top_k, scratch.up, false)?;
        }
        self.push(up(&shape, to.x, layer.w13, delta[0], to.gated))?;
        if let (Some(updates), Some(AdapterSlots { scratch, .. })) = (updates, self.adapters) {
            self.update(to.gated, updates.w2, 1, scratch.down, false)?;
        }
        self.push(down(&shape, to.gated, layer.w2, delta[1], to.expert_out))?;
        self.push(expert_combine(&shape, to.expert_out, to.expert_weights, to.down, inputs.tokens))
    }
}

/// One of the experts' two products.
type Product = fn(&expert_stream::Experts, Ptr, Weights, Delta, Ptr) -> tarn_kernels::Result<Launch>;
