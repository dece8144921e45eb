//! The encoder on a device: a pass is a list of launches with fixed addresses.
//!
//! As for the decoder, a pure function writes down every launch of a pass for a padded shape, and the owner of the
//! [`Device`] carries the list out. Real counts are in device memory. Activations are of the weights' type; what is
//! pooled is f32.
//!
//! | file | what |
//! |---|---|
//! | [`pass`] | the list, and the buffers that it points to |
//! | [`weights`] | weights in the device's layout |

mod pass;
mod weights;

use tarn_kernels::DType;
use tarn_kernels::device::Device;

use super::super::config::EncoderConfig;
use super::super::error::{ModelError, Result};
use super::super::source::ModelSource;
use super::super::weights::{LoadProgress, Tensors};
use super::{check, config_of, count_positions};
use pass::{Buffers, Parts, Shape};
use weights::Weights;

/// How an encoder is brought to a device.
pub struct DeviceEncoderOptions {
    /// Element type of weights and activations: bf16 or f16.
    pub dtype: DType,
    /// Most tokens of one pass; raised to the model's longest input.
    pub max_num_batched_tokens: usize,
    /// Most sequences of one pass.
    pub max_num_seqs: usize,
    /// Random weights of the right shapes instead of the files'.
    pub dummy_weights: bool,
    /// Called after each layer.
    pub progress: Option<Box<dyn Fn(LoadProgress) + Send>>,
}

impl std::fmt::Debug for DeviceEncoderOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let DeviceEncoderOptions { dtype, max_num_batched_tokens, max_num_seqs, .. } = self;
        write!(
            f,
            "DeviceEncoderOptions({dtype:?}, {max_num_batched_tokens} tokens, {max_num_seqs} sequences)"
        )
    }
}

/// An embedder whose weights are on a device.
pub struct DeviceEncoder {
    config: EncoderConfig,
    device: Box<dyn Device>,
    parts: Parts,
    max_tokens: usize,
    max_sequences: usize,
    position_ids: Vec<u32>,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for DeviceEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceEncoder").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl DeviceEncoder {
    /// Brings the weights of `source` to `device`, makes room for the largest pass and writes it down: what no kernel
    /// can do is found here.
    ///
    /// # Errors
    /// [`ModelError`] that names the tensor or the limit and what to do, or of the device.
    pub fn load(
        mut device: Box<dyn Device>,
        source: &ModelSource,
        options: &DeviceEncoderOptions,
    ) -> Result<DeviceEncoder> {
        let config = config_of(source)?;
        let tensors = if options.dummy_weights { Tensors::Dummy } else { source.tensors()? };
        let max_tokens = options.max_num_batched_tokens.max(config.max_tokens);
        let max_sequences = options.max_num_seqs.clamp(1, max_tokens);
        let memory = &mut *device;
        let parts = Parts {
            dtype: options.dtype,
            weights: Weights::load(memory, config, &tensors, options)?,
            buffers: Buffers::new(memory, config, options.dtype, max_tokens, max_sequences)?,
        };
        let largest = Shape { tokens: max_tokens, sequences: max_sequences, longest: config.max_tokens };
        parts.list(config, largest)?;
        Ok(DeviceEncoder {
            config: config.clone(),
            device,
            parts,
            max_tokens,
            max_sequences,
            position_ids: vec![0; max_tokens],
            bytes: Vec::new(),
        })
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Most tokens of one pass, over all sequences.
    #[must_use]
    pub fn max_batch_tokens(&self) -> usize {
        self.max_tokens
    }

    /// As [`super::Encoder::forward`].
    ///
    /// # Errors
    /// As [`super::Encoder::forward`], for more sequences than there is room for and ids that are none, or of the
    /// device.
    pub fn forward(&mut self, input_ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let (config, tokens) = (&self.config, input_ids.len());
        check(config, self.max_tokens, self.max_sequences, tokens, cu_seqlens)?;
        if let Some(id) = input_ids.iter().find(|id| **id as usize >= config.vocab) {
            return Err(ModelError::Batch {
                what: format!("token {id}, the vocabulary has {}", config.vocab),
            });
        }
        let sequences = cu_seqlens.len() - 1;
        out.clear();
        out.resize(sequences * config.hidden, 0.0);
        if tokens == 0 {
            return Ok(());
        }
        let longest = cu_seqlens.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0) as usize;
        let shape = Shape {
            tokens: padded(tokens, self.max_tokens),
            sequences: padded(sequences, self.max_sequences),
            longest: padded(longest, config.max_tokens),
        };
        let mut bounds = cu_seqlens.to_vec();
        bounds.resize(shape.sequences + 1, tokens as u32);
        count_positions(config, cu_seqlens, &mut self.position_ids);
        let to = &self.parts.buffers;
        for (to, words) in [
            (to.tokens, &[tokens as u32][..]),
            (to.ids, input_ids),
            (to.positions, &self.position_ids[..tokens]),
            (to.cu_seqlens, &bounds),
        ] {
            self.bytes.clear();
            self.bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            self.device.upload(to, 0, &self.bytes)?;
        }
        for launch in &self.parts.list(config, shape)? {
            self.device.launch(launch)?;
        }
        self.bytes.resize(out.len() * 4, 0);
        self.device.download(to.pooled, 0, &mut self.bytes)?;
        for (value, bytes) in out.iter_mut().zip(self.bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

/// `count` rounded up to an eighth of the next power of two, at most `most`: few shapes cover all counts.
fn padded(count: usize, most: usize) -> usize {
    count.next_multiple_of((count.next_power_of_two() / 8).max(1)).min(most)
}
