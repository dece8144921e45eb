//! Llama, Mistral and Mixtral: one forward pass.
//!
//! All activations are buffers sized once for the largest batch. A dense MLP is a mixture of one expert, so there is
//! one code path. q, k and v are one product, gate and up another.

use tarn_kernels::{
    Buf, DType, EmbeddingTable, Exec, ExpertGroups, HeadLayout, Packed, PackedExperts, RopeTable, WeightData,
    Workspace, embed_rows, expert_down, gated_up, matmul, pack, paged_attention, rms_norm, rope_kv_write,
    route_topk,
};

use super::batch::{ForwardBatch, KvCache, KvSpec, Logits};
use super::config::{DecoderConfig, ModelConfig};
use super::error::{ModelError, Result};
use super::rope_scaling::frequencies;
use super::source::ModelSource;
use super::weights::{Elements, LoadOptions, LoadProgress, Tensors};

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

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    qkv: Packed,
    qkv_bias: Option<Vec<f32>>,
    output: Packed,
    output_bias: Option<Vec<f32>>,
    mlp_norm: Vec<f32>,
    router: Option<Packed>,
    w13: PackedExperts,
    w2: PackedExperts,
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
}

impl Decoder {
    /// Loads the weights of `source` into the kernels' layout.
    ///
    /// # Errors
    /// [`ModelError`] that names the tensor or field and what to do.
    pub fn load(source: &ModelSource, options: LoadOptions) -> Result<Decoder> {
        let ModelConfig::Decoder(config) = source.config() else {
            return Err(ModelError::WrongKind {
                name: source.path().display().to_string(),
                found: "an encoder",
                needed: "a model that generates (Llama, Mistral, Mixtral)",
            });
        };
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
            layers.push(Layer::load(config, &tensors, &names, at, target)?);
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
        let tokens = batch.input_ids.len();
        let exec = &self.exec;
        let state = &mut self.state;
        let heads = HeadLayout { q: self.config.heads, kv: self.config.kv_heads, dim: self.config.head_dim };
        let scale = 1.0 / (self.config.head_dim as f32).sqrt();
        let window = self.config.sliding_window.map(|window| window as u32);
        let eps = self.config.eps;

        embed_rows(exec, batch.input_ids, &self.embeddings, state.residual.head_mut(tokens)?)?;
        for (at, layer) in self.layers.iter().enumerate() {
            if at == 0 {
                rms_norm(
                    exec,
                    state.residual.head(tokens)?,
                    None,
                    &layer.attention_norm,
                    eps,
                    state.x.head_mut(tokens)?,
                )?;
            } else {
                let residual = Some(state.residual.head_mut(tokens)?);
                rms_norm(
                    exec,
                    state.down.head(tokens)?,
                    residual,
                    &layer.attention_norm,
                    eps,
                    state.x.head_mut(tokens)?,
                )?;
            }
            let bias = layer.qkv_bias.as_deref();
            matmul(
                exec,
                &mut state.ws,
                state.x.head(tokens)?,
                &layer.qkv,
                bias,
                state.qkv.head_mut(tokens)?,
                false,
            )?;
            rope_kv_write(
                exec,
                state.qkv.head_mut(tokens)?,
                heads,
                &self.rope,
                batch.positions,
                batch.slot_mapping,
                kv.buf.layer_mut(at)?,
            )?;
            paged_attention(
                exec,
                state.qkv.head(tokens)?,
                heads,
                kv.buf.layer(at)?,
                batch.sequences,
                batch.block_tables,
                scale,
                window,
                state.attended.head_mut(tokens)?,
            )?;
            let bias = layer.output_bias.as_deref();
            let attended = state.attended.head(tokens)?;
            matmul(exec, &mut state.ws, attended, &layer.output, bias, state.down.head_mut(tokens)?, false)?;
            let residual = Some(state.residual.head_mut(tokens)?);
            rms_norm(
                exec,
                state.down.head(tokens)?,
                residual,
                &layer.mlp_norm,
                eps,
                state.x.head_mut(tokens)?,
            )?;
            layer.mlp(exec, state, tokens, self.config.moe.map_or(1, |moe| moe.top_k))?;
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
            rms_norm(exec, state.rows.head(rows)?, None, &self.norm, eps, state.x.head_mut(rows)?)?;
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

impl Layer {
    fn load(
        config: &DecoderConfig,
        tensors: &Tensors<'_>,
        names: &Names,
        at: usize,
        target: Option<tarn_kernels::WeightFormat>,
    ) -> Result<Layer> {
        let name = |part: &str| names.get(&format!("model.layers.{at}.{part}"));
        let (hidden, dim) = (config.hidden, config.head_dim);
        let (q_rows, kv_rows) = (config.heads * dim, config.kv_heads * dim);
        let rotary = |part: &str, rows: usize, heads: usize| -> Result<Elements<'_>> {
            let elements = tensors.get(&name(part), &[rows, hidden])?;
            // llama GGUF stores q and k with each head's rows interleaved for the other RoPE convention.
            Ok(if tensors.is_gguf() { unpermute(elements, heads, dim, hidden) } else { elements })
        };
        let q = rotary("self_attn.q_proj.weight", q_rows, config.heads)?;
        let k = rotary("self_attn.k_proj.weight", kv_rows, config.kv_heads)?;
        let v = tensors.get(&name("self_attn.v_proj.weight"), &[kv_rows, hidden])?;
        let qkv = pack::dense_rows(
            &[(q.data(), q_rows), (k.data(), kv_rows), (v.data(), kv_rows)],
            hidden,
            target,
        )?;
        let output = tensors.get(&name("self_attn.o_proj.weight"), &[hidden, q_rows])?;
        let (qkv_bias, output_bias) = if config.attention_bias {
            let mut all = tensors.vector(&name("self_attn.q_proj.bias"), q_rows)?;
            let mut k_bias = tensors.vector(&name("self_attn.k_proj.bias"), kv_rows)?;
            if tensors.is_gguf() {
                all = unpermute_rows(&all, config.heads, dim, 1);
                k_bias = unpermute_rows(&k_bias, config.kv_heads, dim, 1);
            }
            all.extend(k_bias);
            all.extend(tensors.vector(&name("self_attn.v_proj.bias"), kv_rows)?);
            let output = name("self_attn.o_proj.bias");
            (Some(all), if tensors.has(&output) { Some(tensors.vector(&output, hidden)?) } else { None })
        } else {
            (None, None)
        };
        let (router, gate, up, down) = mlp_tensors(config, tensors, names, at)?;
        let gate_data: Vec<WeightData<'_>> = gate.iter().map(Elements::data).collect();
        let up_data: Vec<WeightData<'_>> = up.iter().map(Elements::data).collect();
        let down_data: Vec<WeightData<'_>> = down.iter().map(Elements::data).collect();
        Ok(Layer {
            attention_norm: tensors.vector(&name("input_layernorm.weight"), hidden)?,
            qkv,
            qkv_bias,
            output: pack::dense(output.data(), hidden, q_rows, target)?,
            output_bias,
            mlp_norm: tensors.vector(&name("post_attention_layernorm.weight"), hidden)?,
            router: match (&router, config.moe) {
                (Some(router), Some(moe)) => Some(pack::dense(
                    router.data(),
                    moe.experts,
                    hidden,
                    target.or(Some(tarn_kernels::WeightFormat::F32)),
                )?),
                _ => None,
            },
            w13: pack::gate_up(&gate_data, &up_data, config.intermediate, hidden, target)?,
            w2: pack::experts(&down_data, hidden, config.intermediate, target)?,
        })
    }

    /// `down = MLP(x)`, dense or by experts.
    fn mlp(&self, exec: &Exec, state: &mut State, tokens: usize, top_k: usize) -> Result<()> {
        let pairs = tokens * top_k;
        let weights = if let Some(router) = &self.router {
            let x = state.x.head(tokens)?;
            matmul(exec, &mut state.ws, x, router, None, state.router_logits.head_mut(tokens)?, false)?;
            let (ids, weights) = (&mut state.ids[..pairs], &mut state.weights[..pairs]);
            route_topk(exec, state.router_logits.head(tokens)?, top_k, true, ids, weights)?;
            state.groups.align(ids)?;
            Some(&state.weights[..pairs])
        } else {
            state.groups.set_single(tokens)?;
            None
        };
        let x = state.x.head(tokens)?;
        gated_up(exec, &mut state.ws, x, &self.w13, &state.groups, state.gated.head_mut(pairs)?)?;
        expert_down(
            exec,
            &mut state.ws,
            state.gated.head(pairs)?,
            &self.w2,
            &state.groups,
            weights,
            state.scratch.view_mut()?,
            state.down.head_mut(tokens)?,
        )?;
        Ok(())
    }
}

type MlpTensors<'a> = (Option<Elements<'a>>, Vec<Elements<'a>>, Vec<Elements<'a>>, Vec<Elements<'a>>);

/// Router, and w1, w3, w2 of each expert (of the one, for a dense MLP).
fn mlp_tensors<'a>(
    config: &DecoderConfig,
    tensors: &'a Tensors<'_>,
    names: &Names,
    at: usize,
) -> Result<MlpTensors<'a>> {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let name = |part: &str| format!("model.layers.{at}.{part}");
    let Some(moe) = config.moe else {
        let one = |part: &str, shape: &[usize]| tensors.get(&names.get(&name(part)), shape);
        return Ok((
            None,
            vec![one("mlp.gate_proj.weight", &[inner, hidden])?],
            vec![one("mlp.up_proj.weight", &[inner, hidden])?],
            vec![one("mlp.down_proj.weight", &[hidden, inner])?],
        ));
    };
    let router = tensors.get(&names.get(&name("block_sparse_moe.gate.weight")), &[moe.experts, hidden])?;
    let all = |hf: &str, gguf: &str, shape: &[usize]| -> Result<Vec<Elements<'a>>> {
        (0..moe.experts)
            .map(|expert| {
                if !names.gguf {
                    return tensors
                        .get(&name(&format!("block_sparse_moe.experts.{expert}.{hf}.weight")), shape);
                }
                let (merged, split) =
                    (format!("blk.{at}.{gguf}_exps.weight"), format!("blk.{at}.{gguf}.{expert}.weight"));
                let found = tensors.first(&[&merged, &split])?;
                if found == merged {
                    tensors.part(&merged, expert, moe.experts, shape)
                } else {
                    tensors.get(&split, shape)
                }
            })
            .collect()
    };
    Ok((
        Some(router),
        all("w1", "ffn_gate", &[inner, hidden])?,
        all("w3", "ffn_up", &[inner, hidden])?,
        all("w2", "ffn_down", &[hidden, inner])?,
    ))
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
        })
    }
}

/// HF names, or what GGUF calls the same tensor.
struct Names {
    gguf: bool,
}

impl Names {
    fn get(&self, hf: &str) -> String {
        if !self.gguf {
            return hf.to_owned();
        }
        let whole = [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.norm.weight", "output_norm.weight"),
            ("lm_head.weight", "output.weight"),
        ];
        if let Some((_, name)) = whole.iter().find(|(name, _)| *name == hf) {
            return (*name).to_owned();
        }
        hf.replace("model.layers.", "blk.")
            .replace("input_layernorm", "attn_norm")
            .replace("post_attention_layernorm", "ffn_norm")
            .replace("self_attn.q_proj", "attn_q")
            .replace("self_attn.k_proj", "attn_k")
            .replace("self_attn.v_proj", "attn_v")
            .replace("self_attn.o_proj", "attn_output")
            .replace("mlp.gate_proj", "ffn_gate")
            .replace("mlp.up_proj", "ffn_up")
            .replace("mlp.down_proj", "ffn_down")
            .replace("block_sparse_moe.gate", "ffn_gate_inp")
    }
}

/// Brings a llama GGUF's q or k rows from `[heads, dim / 2, 2]` to `[heads, 2, dim / 2]`: whole rows move, so blocks do.
fn unpermute<'a>(elements: Elements<'_>, heads: usize, dim: usize, hidden: usize) -> Elements<'a> {
    match elements.data() {
        WeightData::F32(data) => Elements::F32(unpermute_rows(data, heads, dim, hidden)),
        WeightData::F16(data) => Elements::F16(unpermute_rows(data, heads, dim, hidden)),
        WeightData::BF16(data) => Elements::BF16(unpermute_rows(data, heads, dim, hidden)),
        WeightData::Blocks(format, data) => {
            Elements::Blocks(format, unpermute_rows(data, heads, dim, data.len() / (heads * dim)))
        }
    }
}

fn unpermute_rows<T: Copy>(data: &[T], heads: usize, dim: usize, row: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(data.len());
    for head in 0..heads {
        for half in 0..2 {
            for at in 0..dim / 2 {
                let from = (head * dim + at * 2 + half) * row;
                out.extend_from_slice(&data[from..from + row]);
            }
        }
    }
    out
}
