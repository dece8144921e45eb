//! One layer: attention, then an MLP, dense or of experts.

use std::sync::Arc;

use tarn_kernels::{
    AdapterRows, Deltas, Exec, HeadLayout, LowRank, Packed, PackedExperts, RopeTable, RowsOf, View,
    expert_down, gated_up, matmul_adapted, paged_attention, rope_kv_write, route_topk, shrink,
};

use super::super::batch::{ForwardBatch, KvCache};
use super::super::error::Result;
use super::super::lora::{LoraAdapter, LoraLayer};
use super::{Adapted, State};

/// A layer's weights.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) qkv: Packed,
    pub(super) qkv_bias: Option<Vec<f32>>,
    pub(super) output: Packed,
    pub(super) output_bias: Option<Vec<f32>>,
    pub(super) mlp_norm: Vec<f32>,
    pub(super) router: Option<Packed>,
    pub(super) w13: PackedExperts,
    pub(super) w2: PackedExperts,
}

/// What every layer needs beside its own weights.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) exec: &'a Exec,
    pub(super) batch: &'a ForwardBatch<'a>,
    pub(super) heads: HeadLayout,
    pub(super) rope: &'a RopeTable,
    pub(super) window: Option<u32>,
    pub(super) eps: f32,
    pub(super) top_k: usize,
    /// Number of the layer.
    pub(super) at: usize,
}

impl<'a> Pass<'a> {
    /// What `adapter` of the batch does to this layer.
    fn adapter(&self, adapter: usize) -> &'a LoraLayer {
        let adapter: &'a Arc<LoraAdapter> = &self.batch.adapters[adapter];
        adapter.layer(self.at)
    }
}

impl Layer {
    /// `down = attention(x)`.
    pub(super) fn attention(&self, pass: &Pass<'_>, state: &mut State, kv: &mut KvCache) -> Result<()> {
        let Pass { exec, batch, heads, .. } = *pass;
        let tokens = batch.input_ids.len();
        let scale = 1.0 / (heads.dim as f32).sqrt();
        let rows = active(&mut state.adapted).map(|adapted| &mut adapted.tokens);
        let x = state.x.head(tokens)?;
        let deltas = self::deltas(exec, x, rows, &|adapter, _| pass.adapter(adapter).qkv.as_ref())?;
        let (bias, qkv) = (self.qkv_bias.as_deref(), state.qkv.head_mut(tokens)?);
        matmul_adapted(exec, &mut state.ws, x, &self.qkv, bias, qkv, deltas)?;
        let cache = kv.buf.layer_mut(pass.at)?;
        let qkv = state.qkv.head_mut(tokens)?;
        rope_kv_write(exec, qkv, heads, pass.rope, batch.positions, batch.slot_mapping, cache)?;
        paged_attention(
            exec,
            state.qkv.head(tokens)?,
            heads,
            kv.buf.layer(pass.at)?,
            batch.sequences,
            batch.block_tables,
            scale,
            pass.window,
            state.attended.head_mut(tokens)?,
        )?;
        let rows = active(&mut state.adapted).map(|adapted| &mut adapted.tokens);
        let x = state.attended.head(tokens)?;
        let deltas = self::deltas(exec, x, rows, &|adapter, _| pass.adapter(adapter).output.as_ref())?;
        let (bias, down) = (self.output_bias.as_deref(), state.down.head_mut(tokens)?);
        matmul_adapted(exec, &mut state.ws, x, &self.output, bias, down, deltas)?;
        Ok(())
    }

    /// `down = MLP(x)`, dense or by experts.
    pub(super) fn mlp(&self, pass: &Pass<'_>, state: &mut State) -> Result<()> {
        let Pass { exec, batch, top_k, .. } = *pass;
        let tokens = batch.input_ids.len();
        let pairs = tokens * top_k;
        let weights = if let Some(router) = &self.router {
            let rows = active(&mut state.adapted).map(|adapted| &mut adapted.tokens);
            let x = state.x.head(tokens)?;
            let deltas = self::deltas(exec, x, rows, &|adapter, _| pass.adapter(adapter).router.as_ref())?;
            let logits = state.router_logits.head_mut(tokens)?;
            matmul_adapted(exec, &mut state.ws, x, router, None, logits, deltas)?;
            let (ids, weights) = (&mut state.ids[..pairs], &mut state.weights[..pairs]);
            route_topk(exec, state.router_logits.head(tokens)?, top_k, true, ids, weights)?;
            state.groups.align(ids)?;
            Some(&state.weights[..pairs])
        } else {
            state.groups.set_single(tokens)?;
            None
        };
        let adapted = active(&mut state.adapted);
        let mut rows = match (adapted, &self.router) {
            (Some(adapted), Some(_)) => {
                adapted.pairs.group_experts(batch.adapter_of, batch.adapters.len(), &state.groups)?;
                Some(&mut adapted.pairs)
            }
            (adapted, _) => adapted.map(|adapted| &mut adapted.tokens),
        };
        let x = state.x.head(tokens)?;
        let w13 = |adapter: usize, expert: usize| pass.adapter(adapter).w13[expert].as_ref();
        let up = match rows.as_deref_mut() {
            Some(rows) => shrink(exec, x, RowsOf::Tokens, rows, &w13)?,
            None => None,
        };
        gated_up(exec, &mut state.ws, x, &self.w13, &state.groups, state.gated.head_mut(pairs)?, up)?;
        let gated = state.gated.head(pairs)?;
        let w2 = |adapter: usize, expert: usize| pass.adapter(adapter).w2[expert].as_ref();
        expert_down(
            exec,
            &mut state.ws,
            gated,
            &self.w2,
            &state.groups,
            weights,
            state.scratch.view_mut()?,
            state.down.head_mut(tokens)?,
            self::deltas(exec, gated, rows, &w2)?,
        )?;
        Ok(())
    }
}

/// The adapters' scratch, where a token of this pass has an adapter.
fn active(adapted: &mut Option<Adapted>) -> Option<&mut Adapted> {
    adapted.as_mut().filter(|adapted| adapted.active)
}

/// What adapters add to a product of `x`; nothing where no row has one.
fn deltas<'a>(
    exec: &Exec,
    x: View<'_>,
    rows: Option<&'a mut AdapterRows>,
    update: &(dyn Fn(usize, usize) -> Option<&'a LowRank> + Sync),
) -> Result<Option<Deltas<'a>>> {
    match rows {
        Some(rows) => Ok(shrink(exec, x, RowsOf::Output, rows, update)?),
        None => Ok(None),
    }
}
