//! Weights in the device's layout: row-major in one element type, vectors in f32.

use tarn_kernels::device::encoder_embed::Table;
use tarn_kernels::device::{self, Device, Ptr};

use super::super::super::config::EncoderConfig;
use super::super::super::decoder::DeviceFormat;
use super::super::super::error::Result;
use super::super::super::upload::Uploader;
use super::super::super::weights::{Elements, LoadProgress, Tensors};
use super::super::layer::Norm;
use super::super::load::{DenseTensors, EmbeddingTensors, LayerTensors};
use super::super::scoring_head::{HeadTensors, Label};
use super::DeviceEncoderOptions;

/// Addresses of a model's weights.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) words: Table,
    pub(super) positions: Table,
    pub(super) types: Table,
    pub(super) norm: NormWeights,
    pub(super) layers: Vec<LayerWeights>,
    /// The dense layer of what scores pairs.
    pub(super) head: Option<DenseWeights>,
}

/// Addresses of a layer's weights.
#[derive(Debug)]
pub(super) struct LayerWeights {
    pub(super) qkv: DenseWeights,
    pub(super) output: DenseWeights,
    pub(super) attention_norm: NormWeights,
    pub(super) up: DenseWeights,
    pub(super) down: DenseWeights,
    pub(super) mlp_norm: NormWeights,
}

/// A product's.
#[derive(Debug)]
pub(super) struct DenseWeights {
    /// `[n, k]`.
    pub(super) weight: device::Weights,
    /// `[n]` f32.
    pub(super) bias: Ptr,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// A norm's, `[hidden]` f32 each.
#[derive(Debug)]
pub(super) struct NormWeights {
    pub(super) weight: Ptr,
    pub(super) bias: Ptr,
}

impl Weights {
    /// Brings all weights to the device, one tensor at a time; what is left of a head stays on the host.
    pub(super) fn load(
        device: &mut dyn Device,
        config: &EncoderConfig,
        tensors: &Tensors<'_>,
        options: &DeviceEncoderOptions,
    ) -> Result<(Weights, Option<Label>)> {
        let uploader = &mut Uploader::new(device, options.dtype, DeviceFormat::Plain, tensors.r#use());
        let found = EmbeddingTensors::find(config, tensors)?;
        let hidden = config.hidden;
        let words = table(uploader, "words", &found.words, config.vocab, hidden)?;
        let positions = table(uploader, "positions", &found.positions, config.position_rows, hidden)?;
        let types = match &found.types {
            Some(types) => table(uploader, "types", types, config.type_rows, hidden)?,
            None => Table { rows: Ptr::NONE, count: 0 },
        };
        let norm = norm(uploader, "norm", &found.norm)?;
        let mut layers = Vec::with_capacity(config.layers);
        for at in 0..config.layers {
            layers.push(LayerWeights::load(uploader, &LayerTensors::find(config, tensors, at)?, at)?);
            if let Some(progress) = &options.progress {
                progress(LoadProgress { layers: at + 1, of: config.layers });
            }
        }
        let (head, label) = match config.head {
            Some(head) => {
                let found = HeadTensors::find(tensors, head.style, hidden)?;
                (Some(dense(uploader, "head", &found.dense)?), Some(found.label))
            }
            None => (None, None),
        };
        Ok((Weights { words, positions, types, norm, layers, head }, label))
    }
}

impl LayerWeights {
    fn load(uploader: &mut Uploader<'_>, found: &LayerTensors<'_>, at: usize) -> Result<LayerWeights> {
        let name = |part: &str| format!("layer {at}: {part}");
        Ok(LayerWeights {
            qkv: dense(uploader, &name("qkv"), &found.qkv)?,
            output: dense(uploader, &name("output"), &found.output)?,
            attention_norm: norm(uploader, &name("attention norm"), &found.attention_norm)?,
            up: dense(uploader, &name("up"), &found.up)?,
            down: dense(uploader, &name("down"), &found.down)?,
            mlp_norm: norm(uploader, &name("MLP norm"), &found.mlp_norm)?,
        })
    }
}

fn table(
    uploader: &mut Uploader<'_>,
    name: &str,
    found: &Elements<'_>,
    count: usize,
    hidden: usize,
) -> Result<Table> {
    Ok(Table { rows: uploader.table(name, found, hidden)?, count })
}

fn norm(uploader: &mut Uploader<'_>, name: &str, found: &Norm) -> Result<NormWeights> {
    let weight = uploader.vector(name, &found.weight)?;
    Ok(NormWeights { weight, bias: uploader.vector(&format!("{name}'s bias"), &found.bias)? })
}

fn dense(uploader: &mut Uploader<'_>, name: &str, found: &DenseTensors<'_>) -> Result<DenseWeights> {
    let (n, k) = (found.n, found.k);
    let weight = uploader.projection(name, n, k)?;
    let mut first = 0;
    for (part, rows) in found.parts() {
        uploader.rows(weight, first, part, k)?;
        first += rows;
    }
    Ok(DenseWeights { weight, bias: uploader.vector(&format!("{name}'s bias"), &found.bias)?, n, k })
}
