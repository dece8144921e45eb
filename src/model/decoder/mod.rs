//! Llama, Mistral and Mixtral: the CPU's forward pass; [`device`] has the one for devices.
//!
//! All activations are buffers sized once for the largest batch. A dense MLP is a mixture of one expert, so there is
//! one code path. q, k and v are one product, gate and up another.

mod device;
mod layer;
mod load;

use tarn_kernels::{
    AdapterRows, Buf, DType, EmbeddingTable, Exec, ExpertGroups, HeadLayout, Packed, RopeTable, Workspace,
    embed_rows, matmul, pack, rms_norm,
};

use super::batch::{ForwardBatch, KvCache, KvSpec, Logits, NO_ADAPTER};
use super::config::{DecoderConfig, ModelConfig};
use super::error::{ModelError, Result};
use super::footprint::ADAPTED_AT_ONCE;
use super::rope_scaling::frequencies;
use super::source::ModelSource;
use super::weights::{LoadOptions, LoadProgress, Tensors};
pub use device::{
    AdapterLoader, DeviceAdapters, DeviceDecoder, DeviceFootprint, DeviceFormat, DeviceOptions, DeviceStep,
    ExpertProbe,
};
pub(super) use device::{Counter, placed};
use layer::{Layer, Pass};
use load::Names;

/// A loaded generator.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    exec: Exec,
    embeddings: EmbeddingTable,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Packed,
    rope: RopeTable,
    state: State,
    max_rows: usize,
    max_tokens: usize,
}

/// Activations, `[max tokens, width]` each.
#[derive(Debug)]
struct State {
    residual: Buf,
    x: Buf,
    qkv: Buf,
    attended: Buf,
    gated: Buf,
    scratch: Buf,
    down: Buf,
    router_logits: Buf,
    ids: Vec<u32>,
    weights: Vec<f32>,
    rows: Buf,
    logits: Buf,
    groups: ExpertGroups,
    ws: Workspace,
    adapted: Option<Adapted>,
}

/// Scratch of the adapters' products.
#[derive(Debug)]
struct Adapted {
    max_rank: usize,
    /// Whether a token of this pass has an adapter.
    active: bool,
    /// For products of tokens.
    tokens: AdapterRows,
    /// For products of (token, expert) pairs.
    pairs: AdapterRows,
}

impl Decoder {
    /// Loads the weights of `source` into the kernels' layout.
    ///
    /// # Errors
    /// [`ModelError`] that names the tensor or field and what to do.
    pub fn load(source: &ModelSource, options: LoadOptions) -> Result<Decoder> {
        let ModelConfig::Decoder(config) = source.config() else { return Err(not_a_decoder(source)) };
        let tensors = if options.dummy_weights { Tensors::Dummy } else { source.tensors()? };
        let target = options.dtype.target();
        let names = Names { gguf: tensors.is_gguf() };
        let (hidden, vocab) = (config.hidden, config.vocab);

        let table = tensors.get(names.get("model.embed_tokens.weight").as_str(), &[vocab, hidden])?;
        let embeddings = EmbeddingTable::new(table.data(), vocab, hidden)?;
        let head = if config.tied {
            pack::dense(table.data(), vocab, hidden, target)?
        } else {
            let head = tensors.get(&names.get("lm_head.weight"), &[vocab, hidden])?;
            pack::dense(head.data(), vocab, hidden, target)?
        };
        drop(table);
        let mut layers = Vec::with_capacity(config.layers);
        for at in 0..config.layers {
            layers.push(Layer::load(config, &tensors, &names, at, options.dtype)?);
            if let Some(progress) = &options.progress {
                progress(LoadProgress { layers: at + 1, of: config.layers });
            }
        }
        let (inv_freq, scale) = frequencies(&config.rope, config.head_dim, config.max_positions);
        let max_rows = options.max_num_seqs.max(1);
        let max_tokens = options.max_num_batched_tokens.max(1);
        Ok(Decoder {
            norm: tensors.vector(&names.get("model.norm.weight"), hidden)?,
            rope: RopeTable::new(&inv_freq, scale, config.max_positions)?,
            state: State::new(config, max_tokens, max_rows)?,
            config: config.clone(),
            exec: options.exec,
            embeddings,
            layers,
            head,
            max_rows,
            max_tokens,
        })
    }

    /// Makes room for adapters of rank up to `max_rank` in its passes; without, it takes none.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn with_adapters(mut self, max_rank: usize) -> Result<Decoder> {
        let moe = self.config.moe;
        let pairs = moe.map_or(0, |moe| self.max_tokens * moe.top_k);
        let [token, pair] = ADAPTED_AT_ONCE;
        self.state.adapted = match max_rank {
            0 => None,
            _ => Some(Adapted {
                max_rank,
                active: false,
                tokens: AdapterRows::new(self.max_tokens, token * max_rank)?,
                pairs: AdapterRows::new(pairs, pair * max_rank)?,
            }),
        };
        Ok(self)
    }

    /// The largest rank of an adapter that its passes have room for; 0 for none.
    #[must_use]
    pub fn max_adapter_rank(&self) -> usize {
        self.state.adapted.as_ref().map_or(0, |adapted| adapted.max_rank)
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The extents of its KV cache.
    #[must_use]
    pub fn kv_spec(&self) -> KvSpec {
        KvSpec { layers: self.config.layers, kv_heads: self.config.kv_heads, head_dim: self.config.head_dim }
    }

    /// Memory of the weights in bytes.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .map(|layer| layer.qkv.bytes() + layer.output.bytes() + layer.w13.bytes() + layer.w2.bytes())
            .sum();
        layers + self.embeddings.bytes() + self.head.bytes()
    }

    /// Memory of activations, logits, scratch and tables in bytes: what [`Footprint::workspace`](super::Footprint) and
    /// [`DecoderConfig::adapter_scratch_bytes`] plan for.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        self.rope.bytes() + self.state.bytes()
    }

    /// How its ops run.
    #[must_use]
    pub fn exec(&self) -> &Exec {
        &self.exec
    }

    /// Most tokens of one forward pass.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// One pass: writes the new tokens' keys and values into `kv`, returns the logits of the rows asked for.
    ///
    /// # Errors
    /// [`ModelError::Batch`] or [`ModelError::Kernel`] for a batch that does not fit the model or the cache; the
    /// cache then holds garbage in the batch's slots only.
    pub fn forward(&mut self, batch: &ForwardBatch<'_>, kv: &mut KvCache) -> Result<Logits<'_>> {
        batch.check(self.max_tokens, self.max_rows)?;
        check_adapters(&self.config, self.max_adapter_rank(), batch)?;
        if batch.adapters.iter().any(|adapter| adapter.dummy().is_some()) {
            return Err(ModelError::Batch { what: "a dummy adapter, which only a device has".to_owned() });
        }
        let tokens = batch.input_ids.len();
        let exec = &self.exec;
        let state = &mut self.state;
        let mut pass = Pass {
            exec,
            batch,
            heads: HeadLayout { q: self.config.heads, kv: self.config.kv_heads, dim: self.config.head_dim },
            rope: &self.rope,
            window: self.config.sliding_window.map(|window| window as u32),
            eps: self.config.eps,
            top_k: self.config.moe.map_or(1, |moe| moe.top_k),
            at: 0,
        };
        state.group_adapters(batch)?;

        embed_rows(exec, batch.input_ids, &self.embeddings, state.residual.head_mut(tokens)?)?;
        for (at, layer) in self.layers.iter().enumerate() {
            pass.at = at;
            if at == 0 {
                let (from, to) = (state.residual.head(tokens)?, state.x.head_mut(tokens)?);
                rms_norm(exec, from, None, &layer.attention_norm, pass.eps, to)?;
            } else {
                state.add_and_norm(exec, tokens, &layer.attention_norm, pass.eps)?;
            }
            layer.attention(&pass, state, kv)?;
            state.add_and_norm(exec, tokens, &layer.mlp_norm, pass.eps)?;
            layer.mlp(&pass, state)?;
        }
        // Only the rows that are asked for go through the last norm and the head.
        let rows = batch.logits_rows.len();
        for (to, from) in batch.logits_rows.iter().enumerate() {
            let from = *from as usize;
            let (down, residual) = (state.down.view()?.row(from), state.residual.view()?.row(from));
            let mut gathered = state.rows.view_mut()?;
            for ((out, a), b) in gathered.row(to).iter_mut().zip(residual).zip(down) {
                *out = a + b;
            }
        }
        if rows > 0 {
            rms_norm(exec, state.rows.head(rows)?, None, &self.norm, pass.eps, state.x.head_mut(rows)?)?;
            matmul(
                exec,
                &mut state.ws,
                state.x.head(rows)?,
                &self.head,
                None,
                state.logits.head_mut(rows)?,
                false,
            )?;
        }
        Ok(Logits { view: state.logits.head(rows)? })
    }
}

/// What has no pass here.
fn not_a_decoder(source: &ModelSource) -> ModelError {
    ModelError::WrongKind {
        name: source.path().display().to_string(),
        found: "an encoder",
        needed: "a model that generates (Llama, Mistral, Mixtral)",
    }
}

/// Each adapter was loaded for this model and has rank `most` at most.
fn check_adapters(config: &DecoderConfig, most: usize, batch: &ForwardBatch<'_>) -> Result<()> {
    for adapter in batch.adapters {
        if adapter.rank() > most {
            let what = format!("an adapter of rank {}, the decoder was sized for {most}", adapter.rank());
            return Err(ModelError::Batch { what });
        }
        if !adapter.is_for(config) {
            return Err(ModelError::Batch { what: "an adapter of another model".to_owned() });
        }
    }
    Ok(())
}

impl State {
    fn new(config: &DecoderConfig, tokens: usize, rows: usize) -> Result<State> {
        let buf = |rows: usize, cols: usize| Buf::zeros(DType::F32, &[rows, cols]);
        let heads = HeadLayout { q: config.heads, kv: config.kv_heads, dim: config.head_dim };
        let (experts, top_k) = config.moe.map_or((1, 1), |moe| (moe.experts, moe.top_k));
        let pairs = tokens * top_k;
        let widest = config.hidden.max(config.intermediate).max(config.heads * config.head_dim);
        Ok(State {
            residual: buf(tokens, config.hidden)?,
            x: buf(tokens.max(rows), config.hidden)?,
            qkv: buf(tokens, heads.width())?,
            attended: buf(tokens, config.heads * config.head_dim)?,
            gated: buf(pairs, config.intermediate)?,
            scratch: buf(if config.moe.is_some() { pairs } else { 0 }, config.hidden)?,
            down: buf(tokens, config.hidden)?,
            router_logits: buf(tokens, experts)?,
            ids: vec![0; pairs],
            weights: vec![0.0; pairs],
            rows: buf(rows, config.hidden)?,
            logits: buf(rows, config.vocab)?,
            groups: if config.moe.is_some() {
                ExpertGroups::new(tokens, top_k, experts)
            } else {
                ExpertGroups::single(tokens)
            },
            ws: Workspace::new(pairs.max(rows), widest)?,
            adapted: None,
        })
    }

    fn bytes(&self) -> usize {
        let State { residual, x, qkv, attended, gated, scratch, down, router_logits, rows, logits, .. } =
            self;
        let bufs = [residual, x, qkv, attended, gated, scratch, down, router_logits, rows, logits];
        let adapted =
            self.adapted.as_ref().map_or(0, |adapted| adapted.tokens.bytes() + adapted.pairs.bytes());
        bufs.iter().map(|buf| buf.bytes().len()).sum::<usize>()
            + 4 * (self.ids.len() + self.weights.len())
            + self.groups.bytes()
            + self.ws.bytes()
            + adapted
    }

    /// Groups the tokens of a batch by their adapters, if any has one.
    fn group_adapters(&mut self, batch: &ForwardBatch<'_>) -> Result<()> {
        if let Some(adapted) = &mut self.adapted {
            adapted.active = batch.adapter_of.iter().any(|adapter| *adapter != NO_ADAPTER);
            if adapted.active {
                adapted.tokens.group(batch.adapter_of, batch.adapters.len())?;
            }
        }
        Ok(())
    }

    /// `residual += down; x = norm(residual)`.
    fn add_and_norm(&mut self, exec: &Exec, tokens: usize, weight: &[f32], eps: f32) -> Result<()> {
        let residual = Some(self.residual.head_mut(tokens)?);
        rms_norm(exec, self.down.head(tokens)?, residual, weight, eps, self.x.head_mut(tokens)?)?;
        Ok(())
    }
}
