//! The decoder on a device: a step is a list of launches with fixed addresses.
//!
//! The CPU's pass calls one op after another, each of which knows its operands. Here a pure function writes down every
//! launch of a pass for a padded shape, and the owner of the [`Device`] carries the list out: that is what a CUDA graph
//! captures. Real counts are in device memory. The two passes share weights by name, not code (decision 015).
//!
//! | file | what |
//! |---|---|
//! | [`shape`] | extents, and counts rounded up: what a list depends on |
//! | [`pass`] | the list |
//! | [`weights`] | weights in the device's layout |
//! | [`adapters`], [`adapter_loader`] | slots of adapters; filling them beside the steps |
//! | [`footprint`] | what all of it takes, before there is a device |
//! | [`probe`] | how many experts steps hit, where somebody measures |
//! | [`buffers`], [`step`] | what a step reads and writes; from a [`ForwardBatch`](super::super::ForwardBatch) to it |

mod adapter_loader;
mod adapters;
mod buffers;
mod footprint;
mod pass;
mod probe;
mod shape;
mod step;
mod weights;

use std::collections::HashMap;
use std::sync::Arc;

use tarn_kernels::DType;
use tarn_kernels::device::{Device, READ, Use};

use super::super::config::{DecoderConfig, ModelConfig};
use super::super::error::Result;
use super::super::source::ModelSource;
use super::super::weights::{LoadProgress, Tensors};
pub use adapter_loader::AdapterLoader;
use adapters::AdapterSlots;
use buffers::{Activations, Inputs};
pub use footprint::DeviceFootprint;
pub(in crate::model) use footprint::{Counter, placed};
use pass::Parts;
pub use probe::ExpertProbe;
use shape::{Extents, Shape};
pub use step::DeviceStep;
use weights::DecoderWeights;

/// How a decoder is brought to a device.
pub struct DeviceOptions {
    /// Element type of activations, cache and weights: bf16 or f16.
    pub dtype: DType,
    /// Weights of the layers' projections, all but the router.
    pub projections: DeviceFormat,
    /// Most tokens of a step.
    pub max_num_batched_tokens: usize,
    /// Most sequences of a step.
    pub max_num_seqs: usize,
    /// Longest context in tokens.
    pub max_model_len: usize,
    /// Room for adapters.
    pub adapters: Option<DeviceAdapters>,
    /// Random weights of the right shapes instead of the files', filled on the device.
    pub dummy_weights: bool,
    /// Called after each layer.
    pub progress: Option<Box<dyn Fn(LoadProgress) + Send>>,
}

/// How a projection's weights are stored on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceFormat {
    /// In the activations' type.
    Plain,
    /// 8-bit floats with a scale a row.
    Fp8,
}

/// Room for adapters on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceAdapters {
    /// How many at once.
    pub slots: usize,
    /// The largest rank.
    pub max_rank: usize,
}

impl std::fmt::Debug for DeviceOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let DeviceOptions { dtype, projections, max_num_batched_tokens, adapters, .. } = self;
        write!(f, "DeviceOptions({dtype:?}, {projections:?}, {max_num_batched_tokens} tokens, {adapters:?})")
    }
}

/// A generator whose weights and cache are on a device.
pub struct DeviceDecoder {
    config: DecoderConfig,
    device: Box<dyn Device>,
    parts: Parts,
    blocks: usize,
    /// The lists that come again, which are few: layers of decoding, and heads by rows and whether they draw.
    decoding: HashMap<Shape, usize>,
    heads: HashMap<(usize, bool), usize>,
    /// Steps that were launched.
    launched: u64,
    /// Tokens that the last of them draws.
    drawn: usize,
    probe: Option<Arc<ExpertProbe>>,
    logits: Vec<f32>,
}

impl std::fmt::Debug for DeviceDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceDecoder").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl DeviceDecoder {
    /// Brings the weights of `source` to `device` and makes room for the largest step, but for no cache yet.
    ///
    /// # Errors
    /// [`ModelError`](super::super::ModelError) that names the tensor or the limit and what to do, or of the device.
    pub fn load(
        mut device: Box<dyn Device>,
        source: &ModelSource,
        options: &DeviceOptions,
    ) -> Result<DeviceDecoder> {
        let ModelConfig::Decoder(config) = source.config() else { return Err(super::not_a_decoder(source)) };
        let tensors = if options.dummy_weights { Tensors::Dummy } else { source.tensors()? };
        let extents = Extents::new(config, options)?;
        let memory = &mut *device;
        let parts = Parts {
            weights: DecoderWeights::load(memory, config, &extents, &tensors, options)?,
            inputs: Inputs::new(memory, &extents)?,
            activations: Activations::new(memory, &extents)?,
            adapters: (extents.slots > 0)
                .then(|| AdapterSlots::new(memory, &extents, tensors.r#use()))
                .transpose()?,
            cache: Vec::new(),
            extents,
        };
        device.synchronize()?;
        Ok(DeviceDecoder {
            config: config.clone(),
            device,
            parts,
            blocks: 0,
            decoding: HashMap::new(),
            heads: HashMap::new(),
            launched: 0,
            drawn: 0,
            probe: None,
            logits: Vec::new(),
        })
    }

    /// Makes room for `blocks` blocks of keys and values, and writes down the largest steps: what no kernel can do is
    /// found here.
    ///
    /// # Errors
    /// As [`DeviceDecoder::load`].
    pub fn with_blocks(mut self, blocks: usize) -> Result<DeviceDecoder> {
        let bytes = self.parts.extents.bytes(self.parts.extents.cache(blocks));
        for layer in 0..self.config.layers {
            // Not [`Use::Write`]: a copied block brings what is behind its last token, which nobody has written.
            let cache = self.device.alloc(&format!("layer {layer}: cache"), bytes, Use::ReadWrite)?;
            self.parts.cache.push(cache);
        }
        self.blocks = blocks;
        for shape in self.parts.extents.largest() {
            self.parts.layers(shape)?;
        }
        self.parts.head(self.parts.extents.sequences, true)?;
        Ok(self)
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Blocks of its cache.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of one cache block over all layers.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.config.layers * self.parts.extents.bytes(self.parts.extents.cache(1))
    }

    /// The device, to ask it for its free memory.
    #[must_use]
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// What brings adapters to its slots beside its steps; `None` without slots.
    ///
    /// # Errors
    /// [`ModelError`](super::super::ModelError) of the device.
    pub fn adapter_loader(&self) -> Result<Option<AdapterLoader>> {
        let Parts { adapters, extents, .. } = &self.parts;
        adapters.as_ref().map(|slots| slots.loader(&*self.device, extents)).transpose()
    }

    /// Rows of logits that a step may draw tokens from on the device.
    #[must_use]
    pub fn max_rows(&self) -> usize {
        self.parts.extents.sequences.min(READ / 4)
    }
}
