//! An encoder's weights by name.

use tarn_kernels::{EmbeddingTable, WeightFormat, pack};

use super::super::config::EncoderConfig;
use super::super::error::Result;
use super::super::weights::{Elements, Tensors};
use super::layer::{Dense, Layer, Norm};

/// A product's weights as the files have them: `[n, k]` in one part or several, and a bias.
pub(super) struct DenseTensors<'a> {
    parts: Vec<Elements<'a>>,
    pub(super) bias: Vec<f32>,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// A layer's weights as the files have them.
pub(super) struct LayerTensors<'a> {
    pub(super) qkv: DenseTensors<'a>,
    pub(super) output: DenseTensors<'a>,
    pub(super) attention_norm: Norm,
    pub(super) up: DenseTensors<'a>,
    pub(super) down: DenseTensors<'a>,
    pub(super) mlp_norm: Norm,
}

/// What comes before the layers.
pub(super) struct EmbeddingTensors<'a> {
    pub(super) words: Elements<'a>,
    pub(super) positions: Elements<'a>,
    pub(super) types: Option<Elements<'a>>,
    pub(super) norm: Norm,
}

impl<'a> DenseTensors<'a> {
    /// The parts `names`, `[n, k]` each, one below the other.
    pub(super) fn find(
        tensors: &'a Tensors<'_>,
        names: &[String],
        n: usize,
        k: usize,
    ) -> Result<DenseTensors<'a>> {
        let (mut parts, mut bias) = (Vec::with_capacity(names.len()), Vec::new());
        for name in names {
            parts.push(tensors.get(&format!("{name}.weight"), &[n, k])?);
            bias.extend(tensors.vector(&format!("{name}.bias"), n)?);
        }
        Ok(DenseTensors { parts, n: n * names.len(), bias, k })
    }

    /// The parts with their rows.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&Elements<'a>, usize)> {
        self.parts.iter().map(|part| (part, self.n / self.parts.len()))
    }

    pub(super) fn pack(self, target: Option<WeightFormat>) -> Result<Dense> {
        let parts: Vec<_> = self.parts().map(|(part, rows)| (part.data(), rows)).collect();
        let weight = pack::dense_rows(&parts, self.k, target)?;
        Ok(Dense { weight, bias: self.bias })
    }
}

impl<'a> LayerTensors<'a> {
    /// The tensors of layer `at`, each of the shape that the configuration asks for.
    pub(super) fn find(
        config: &EncoderConfig,
        tensors: &'a Tensors<'_>,
        at: usize,
    ) -> Result<LayerTensors<'a>> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        let name = |part: &str| format!("encoder.layer.{at}.{part}");
        let dense = |part: &str, n: usize, k: usize| DenseTensors::find(tensors, &[name(part)], n, k);
        let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(LayerTensors {
            qkv: DenseTensors::find(tensors, &qkv, hidden, hidden)?,
            output: dense("attention.output.dense", hidden, hidden)?,
            attention_norm: norm(tensors, &name("attention.output.LayerNorm"), hidden)?,
            up: dense("intermediate.dense", inner, hidden)?,
            down: dense("output.dense", hidden, inner)?,
            mlp_norm: norm(tensors, &name("output.LayerNorm"), hidden)?,
        })
    }

    pub(super) fn pack(self, target: Option<WeightFormat>) -> Result<Layer> {
        Ok(Layer {
            qkv: self.qkv.pack(target)?,
            output: self.output.pack(target)?,
            attention_norm: self.attention_norm,
            up: self.up.pack(target)?,
            down: self.down.pack(target)?,
            mlp_norm: self.mlp_norm,
        })
    }
}

impl<'a> EmbeddingTensors<'a> {
    pub(super) fn find(config: &EncoderConfig, tensors: &'a Tensors<'_>) -> Result<EmbeddingTensors<'a>> {
        let table = |name: &str, rows: usize| {
            tensors.get(&format!("embeddings.{name}.weight"), &[rows, config.hidden])
        };
        Ok(EmbeddingTensors {
            words: table("word_embeddings", config.vocab)?,
            positions: table("position_embeddings", config.position_rows)?,
            types: (config.type_rows > 0)
                .then(|| table("token_type_embeddings", config.type_rows))
                .transpose()?,
            norm: norm(tensors, "embeddings.LayerNorm", config.hidden)?,
        })
    }
}

/// A copy of `rows` rows.
pub(super) fn table(elements: &Elements<'_>, rows: usize, hidden: usize) -> Result<EmbeddingTable> {
    Ok(EmbeddingTable::new(elements.data(), rows, hidden)?)
}

fn norm(tensors: &Tensors<'_>, name: &str, hidden: usize) -> Result<Norm> {
    Ok(Norm {
        weight: tensors.vector(&format!("{name}.weight"), hidden)?,
        bias: tensors.vector(&format!("{name}.bias"), hidden)?,
    })
}
