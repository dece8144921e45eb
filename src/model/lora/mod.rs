//! LoRA adapters: PEFT folders in the kernels' layout.
//!
//! | file | what |
//! |---|---|
//! | [`settings`] | `adapter_config.json`: scales, and what is refused |
//! | [`tensors`] | `adapter_model.safetensors`: which tensor updates what |
//! | [`update`] | packs one product's update |

mod settings;
mod tensors;
mod update;

use std::path::Path;

use tarn_kernels::LowRank;

use super::config::DecoderConfig;
use super::error::Result;
use settings::Settings;
use tensors::AdapterFile;

/// What an adapter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoraOptions {
    /// The largest rank.
    pub max_rank: usize,
}

/// The low-rank updates of one adapter, packed for the base model that it was loaded for.
///
/// `W' x = W x + scale · B (A x)` with A `[rank, in]` and B `[out, rank]`; scale is alpha / rank, or alpha / √rank
/// for rsLoRA (Kalajdzievski 2023). B is multiplied with it at load.
#[derive(Debug)]
pub struct LoraAdapter {
    layers: Vec<LoraLayer>,
    extents: Extents,
    rank: usize,
    bytes: usize,
    dummy: Option<u64>,
}

/// The updates of a layer's products; `None` where the adapter has none.
#[derive(Debug)]
pub(super) struct LoraLayer {
    pub(super) qkv: Option<LowRank>,
    pub(super) output: Option<LowRank>,
    pub(super) router: Option<LowRank>,
    /// Of each expert (of the one, for a dense MLP).
    pub(super) w13: Vec<Option<LowRank>>,
    pub(super) w2: Vec<Option<LowRank>>,
}

/// The extents of a base model that an adapter depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extents {
    layers: usize,
    hidden: usize,
    inner: usize,
    q: usize,
    kv: usize,
    /// 0 for a dense MLP.
    experts: usize,
}

impl Extents {
    fn of(config: &DecoderConfig) -> Extents {
        Extents {
            layers: config.layers,
            hidden: config.hidden,
            inner: config.intermediate,
            q: config.heads * config.head_dim,
            kv: config.kv_heads * config.head_dim,
            experts: config.moe.map_or(0, |moe| moe.experts),
        }
    }
}

impl LoraAdapter {
    /// Reads a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) into memory and packs it.
    ///
    /// # Errors
    /// [`ModelError`](super::ModelError) that names the file, the tensor or the setting and what to do.
    pub fn load(path: &Path, config: &DecoderConfig, options: LoraOptions) -> Result<LoraAdapter> {
        let extents = Extents::of(config);
        let settings = Settings::read(path)?;
        let file = AdapterFile::read(path, &extents, options.max_rank)?;
        let found = file.pairs(&settings, &extents, options.max_rank)?;
        let rank = found.rank();
        let layers = (0..extents.layers)
            .map(|at| update::layer(&found, &extents, at))
            .collect::<Result<Vec<LoraLayer>>>()?;
        let bytes = layers.iter().flat_map(LoraLayer::updates).map(LowRank::bytes).sum();
        Ok(LoraAdapter { layers, extents, rank, bytes, dummy: None })
    }

    /// Random updates of rank `rank` of every product, for measuring: a device with dummy weights fills a slot with values
    /// that follow from `seed`. The host has none of them, and the CPU's decoder refuses it.
    #[must_use]
    pub fn of_dummies(config: &DecoderConfig, rank: usize, seed: u64) -> LoraAdapter {
        LoraAdapter { layers: Vec::new(), extents: Extents::of(config), rank, bytes: 0, dummy: Some(seed) }
    }

    /// What its values follow from, where it is a dummy: it has no layers then.
    pub(super) fn dummy(&self) -> Option<u64> {
        self.dummy
    }

    /// Its largest rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it was loaded for a model of these extents.
    pub(super) fn is_for(&self, config: &DecoderConfig) -> bool {
        self.extents == Extents::of(config)
    }

    /// What it does, unless it is a dummy, to layer `at`, which the model that it was loaded for has.
    pub(super) fn layer(&self, at: usize) -> &LoraLayer {
        &self.layers[at]
    }
}

impl LoraLayer {
    fn updates(&self) -> impl Iterator<Item = &LowRank> {
        let experts = self.w13.iter().chain(&self.w2);
        [&self.qkv, &self.output, &self.router].into_iter().chain(experts).flatten()
    }
}

#[cfg(test)]
mod tests;
