//! A layer's weights by name, from a folder or a GGUF file.

use tarn_kernels::{WeightData, WeightFormat, pack};

use super::super::config::DecoderConfig;
use super::super::error::Result;
use super::super::weights::{DtypeChoice, Elements, Tensors};
use super::layer::Layer;

/// A layer's weights as the files have them.
pub(super) struct LayerTensors<'a> {
    pub(super) attention_norm: Vec<f32>,
    pub(super) q: Elements<'a>,
    pub(super) k: Elements<'a>,
    pub(super) v: Elements<'a>,
    pub(super) qkv_bias: Option<Vec<f32>>,
    pub(super) output: Elements<'a>,
    pub(super) output_bias: Option<Vec<f32>>,
    pub(super) mlp_norm: Vec<f32>,
    pub(super) mlp: MlpTensors<'a>,
}

/// Router, and w1, w3, w2 of each expert (of the one, for a dense MLP).
pub(super) struct MlpTensors<'a> {
    pub(super) router: Option<Elements<'a>>,
    pub(super) gate: Vec<Elements<'a>>,
    pub(super) up: Vec<Elements<'a>>,
    pub(super) down: Vec<Elements<'a>>,
}

impl<'a> LayerTensors<'a> {
    /// The tensors of layer `at`, each of the shape that the configuration asks for.
    pub(super) fn find(
        config: &DecoderConfig,
        tensors: &'a Tensors<'_>,
        names: &Names,
        at: usize,
    ) -> Result<LayerTensors<'a>> {
        let name = |part: &str| names.get(&format!("model.layers.{at}.{part}"));
        let (hidden, dim) = (config.hidden, config.head_dim);
        let (q_rows, kv_rows) = (config.heads * dim, config.kv_heads * dim);
        let rotary = |part: &str, rows: usize, heads: usize| -> Result<Elements<'a>> {
            let elements = tensors.get(&name(part), &[rows, hidden])?;
            // llama GGUF stores q and k with each head's rows interleaved for the other RoPE convention.
            Ok(if tensors.is_gguf() { unpermute(elements, heads, dim, hidden) } else { elements })
        };
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
        Ok(LayerTensors {
            attention_norm: tensors.vector(&name("input_layernorm.weight"), hidden)?,
            q: rotary("self_attn.q_proj.weight", q_rows, config.heads)?,
            k: rotary("self_attn.k_proj.weight", kv_rows, config.kv_heads)?,
            v: tensors.get(&name("self_attn.v_proj.weight"), &[kv_rows, hidden])?,
            qkv_bias,
            output: tensors.get(&name("self_attn.o_proj.weight"), &[hidden, q_rows])?,
            output_bias,
            mlp_norm: tensors.vector(&name("post_attention_layernorm.weight"), hidden)?,
            mlp: mlp_tensors(config, tensors, names, at)?,
        })
    }
}

impl Layer {
    pub(super) fn load(
        config: &DecoderConfig,
        tensors: &Tensors<'_>,
        names: &Names,
        at: usize,
        dtype: DtypeChoice,
    ) -> Result<Layer> {
        let found = LayerTensors::find(config, tensors, names, at)?;
        let (hidden, inner, target) = (config.hidden, config.intermediate, dtype.projections());
        let (q_rows, kv_rows) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let qkv = [(found.q.data(), q_rows), (found.k.data(), kv_rows), (found.v.data(), kv_rows)];
        fn all<'e>(experts: &'e [Elements<'_>]) -> Vec<WeightData<'e>> {
            experts.iter().map(Elements::data).collect()
        }
        let mlp = &found.mlp;
        Ok(Layer {
            qkv: pack::dense_rows(&qkv, hidden, target)?,
            output: pack::dense(found.output.data(), hidden, q_rows, target)?,
            router: match (&mlp.router, config.moe) {
                (Some(router), Some(moe)) => {
                    let target = dtype.target().or(Some(WeightFormat::F32));
                    Some(pack::dense(router.data(), moe.experts, hidden, target)?)
                }
                _ => None,
            },
            w13: pack::gate_up(&all(&mlp.gate), &all(&mlp.up), inner, hidden, target)?,
            w2: pack::experts(&all(&mlp.down), hidden, inner, target)?,
            attention_norm: found.attention_norm,
            qkv_bias: found.qkv_bias,
            output_bias: found.output_bias,
            mlp_norm: found.mlp_norm,
        })
    }
}

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
        return Ok(MlpTensors {
            router: None,
            gate: vec![one("mlp.gate_proj.weight", &[inner, hidden])?],
            up: vec![one("mlp.up_proj.weight", &[inner, hidden])?],
            down: vec![one("mlp.down_proj.weight", &[hidden, inner])?],
        });
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
    Ok(MlpTensors {
        router: Some(router),
        gate: all("w1", "ffn_gate", &[inner, hidden])?,
        up: all("w3", "ffn_up", &[inner, hidden])?,
        down: all("w2", "ffn_down", &[hidden, inner])?,
    })
}

/// HF names, or what GGUF calls the same tensor.
pub(super) struct Names {
    pub(super) gguf: bool,
}

impl Names {
    pub(super) fn get(&self, hf: &str) -> String {
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
