//! Weights in the device's layout: row-major in one element type, gate and up interleaved.

use tarn_kernels::RopeTable;
use tarn_kernels::device::{Device, Ptr, Weights};

use super::super::super::config::DecoderConfig;
use super::super::super::error::Result;
use super::super::super::rope_scaling::frequencies;
use super::super::super::upload::Uploader;
use super::super::super::weights::{LoadProgress, Tensors};
use super::super::load::{LayerTensors, Names};
use super::DeviceOptions;
use super::shape::Extents;

/// Addresses of a model's weights.
#[derive(Debug)]
pub(super) struct DecoderWeights {
    /// `[vocab, hidden]`.
    pub(super) embeddings: Ptr,
    /// `[vocab, hidden]`; the embeddings, where they are tied.
    pub(super) head: Ptr,
    /// `[hidden]` f32.
    pub(super) norm: Ptr,
    /// `[positions][cos dim/2 | sin dim/2]` f32.
    pub(super) rope: Ptr,
    pub(super) layers: Vec<LayerWeights>,
}

/// Addresses of a layer's weights.
#[derive(Debug)]
pub(super) struct LayerWeights {
    /// `[hidden]` f32.
    pub(super) attention_norm: Ptr,
    /// `[(q + 2 kv) dim, hidden]`.
    pub(super) qkv: Weights,
    /// f32, or none.
    pub(super) qkv_bias: Ptr,
    /// `[hidden, q dim]`.
    pub(super) output: Weights,
    /// f32, or none.
    pub(super) output_bias: Ptr,
    /// `[hidden]` f32.
    pub(super) mlp_norm: Ptr,
    /// `[experts, hidden]`, or none.
    pub(super) router: Ptr,
    /// `[experts, 2 inner, hidden]`.
    pub(super) w13: Weights,
    /// `[experts, hidden, inner]`.
    pub(super) w2: Weights,
}

impl DecoderWeights {
    /// Brings all weights to the device, one tensor at a time.
    pub(super) fn load(
        device: &mut dyn Device,
        config: &DecoderConfig,
        extents: &Extents,
        tensors: &Tensors<'_>,
        options: &DeviceOptions,
    ) -> Result<DecoderWeights> {
        let mut uploader = Uploader::new(device, extents.dtype, options.projections, tensors.r#use());
        let names = Names { gguf: tensors.is_gguf() };
        let (hidden, vocab) = (config.hidden, config.vocab);
        let mut table = |hf: &str| {
            let name = names.get(hf);
            uploader.table(&name, &tensors.get(&name, &[vocab, hidden])?, hidden)
        };
        let embeddings = table("model.embed_tokens.weight")?;
        let head = if config.tied { embeddings } else { table("lm_head.weight")? };
        let (inv_freq, scale) = frequencies(&config.rope, config.head_dim, config.max_positions);
        let rope = RopeTable::new(&inv_freq, scale, config.max_positions)?;
        let rope = uploader.vector("rope", rope.values()?)?;
        let norm = uploader.vector("norm", &tensors.vector(&names.get("model.norm.weight"), hidden)?)?;
        let mut layers = Vec::with_capacity(config.layers);
        for at in 0..config.layers {
            let found = LayerTensors::find(config, tensors, &names, at)?;
            layers.push(LayerWeights::load(&mut uploader, extents, &found, at)?);
            if let Some(progress) = &options.progress {
                progress(LoadProgress { layers: at + 1, of: config.layers });
            }
        }
        Ok(DecoderWeights { embeddings, head, norm, rope, layers })
    }
}

impl LayerWeights {
    fn load(
        uploader: &mut Uploader<'_>,
        extents: &Extents,
        found: &LayerTensors<'_>,
        at: usize,
    ) -> Result<LayerWeights> {
        let Extents { hidden, inner, heads, experts, .. } = *extents;
        let name = |part: &str| format!("layer {at}: {part}");
        let qkv = uploader.projection(&name("qkv"), heads.width(), hidden)?;
        let (q, kv) = (heads.q * heads.dim, heads.kv * heads.dim);
        for (first, part) in [(0, &found.q), (q, &found.k), (q + kv, &found.v)] {
            uploader.rows(qkv, first, part, hidden)?;
        }
        let output = uploader.projection(&name("output"), hidden, q)?;
        uploader.rows(output, 0, &found.output, q)?;
        let router = match &found.mlp.router {
            Some(found) => uploader.table(&name("router"), found, hidden)?,
            None => Ptr::NONE,
        };
        let w13 = uploader.projection(&name("w13"), experts * 2 * inner, hidden)?;
        for (expert, (gate, up)) in found.mlp.gate.iter().zip(&found.mlp.up).enumerate() {
            uploader.gated(w13, expert * 2 * inner, gate, up, hidden)?;
        }
        let w2 = uploader.projection(&name("w2"), experts * hidden, inner)?;
        for (expert, down) in found.mlp.down.iter().enumerate() {
            uploader.rows(w2, expert * hidden, down, inner)?;
        }
        let mut bias = |part: &str, values: &Option<Vec<f32>>| match values {
            Some(values) => uploader.vector(&name(part), values),
            None => Ok(Ptr::NONE),
        };
        Ok(LayerWeights {
            qkv_bias: bias("bias of qkv", &found.qkv_bias)?,
            output_bias: bias("bias of output", &found.output_bias)?,
            attention_norm: uploader.vector(&name("attention norm"), &found.attention_norm)?,
            mlp_norm: uploader.vector(&name("MLP norm"), &found.mlp_norm)?,
            qkv,
            output,
            router,
            w13,
            w2,
        })
    }
}
