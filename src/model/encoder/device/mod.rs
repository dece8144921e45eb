//! The encoder on a device: a pass is a list of launches with fixed addresses.
//!
//! As for the decoder, a pure function writes down every launch of a pass for a padded shape, and the owner of the
//! [`Device`] carries the list out. Real counts are in device memory. Activations are of the weights' type; what comes
//! back is f32.
//!
//! Lists of single short texts are recorded (a GPU captures a graph of each): for a query, launching some two hundred
//! kernels one by one takes the host longer than they run. Other lists are launched: their passes are few and large.
//!
//! | file | what |
//! |---|---|
//! | [`shape`] | extents, and counts rounded up: what a list depends on |
//! | [`pass`] | the list, and the buffers that it points to |
//! | [`weights`] | weights in the device's layout |
//! | [`footprint`] | what all of it takes, before there is a device |

mod footprint;
mod pass;
mod shape;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::HashMap;

use tarn_kernels::DType;
use tarn_kernels::device::{Device, Launch, Ptr};

use super::super::config::EncoderConfig;
use super::super::error::{ModelError, Result};
use super::super::source::ModelSource;
use super::super::weights::{LoadProgress, Tensors};
use super::scoring_head::{Label, check_first_tokens, no_head};
use super::{Tokens, check, config_of, count_positions};
use pass::{Buffers, Parts};
use shape::{Limits, Shape, Wanted};
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

/// An embedder or a reranker whose weights are on a device.
pub struct DeviceEncoder {
    config: EncoderConfig,
    device: Box<dyn Device>,
    parts: Parts,
    /// What the host makes of the rows of a head.
    label: Option<Label>,
    limits: Limits,
    /// Numbers of the lists of queries, which come again.
    queries: HashMap<Shape, usize>,
    /// The last list of another pass: of many texts passes are of one shape for long.
    last: Option<(Shape, Vec<Launch>)>,
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
        let limits = Limits::new(config, options);
        let memory = &mut *device;
        let (weights, label) = Weights::load(memory, config, &tensors, options)?;
        let buffers = Buffers::new(memory, config, options.dtype, limits)?;
        let parts = Parts { dtype: options.dtype, weights, buffers };
        parts.list(config, limits.largest(Wanted::Vectors))?;
        if label.is_some() {
            parts.list(config, limits.largest(Wanted::HeadRows))?;
        }
        Ok(DeviceEncoder {
            config: config.clone(),
            device,
            parts,
            label,
            limits,
            queries: HashMap::new(),
            last: None,
            position_ids: vec![0; limits.tokens],
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
        self.limits.tokens
    }

    /// As [`super::Encoder::forward`].
    ///
    /// # Errors
    /// As [`super::Encoder::forward`], for more sequences than there is room for and ids that are none, or of the
    /// device.
    pub fn forward(&mut self, input_ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        self.pass(Tokens { ids: input_ids, types: &[] }, cu_seqlens, Wanted::Vectors, out)
    }

    /// As [`super::Encoder::score`]. The device computes the head's product, the host what is left, a row a text.
    ///
    /// # Errors
    /// As [`super::Encoder::score`] and [`DeviceEncoder::forward`].
    pub fn score(
        &mut self,
        input_ids: &[u32],
        type_ids: &[u32],
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        if self.label.is_none() {
            return Err(no_head());
        }
        check_first_tokens(cu_seqlens)?;
        let mut rows = Vec::new();
        self.pass(Tokens { ids: input_ids, types: type_ids }, cu_seqlens, Wanted::HeadRows, &mut rows)?;
        let label = self.label.as_ref().ok_or_else(no_head)?;
        out.clear();
        out.extend(rows.chunks_exact(self.config.hidden).map(|row| label.logit(row)));
        Ok(())
    }

    /// One pass; rows `[sequences, hidden]` of what is wanted go to `out`.
    fn pass(
        &mut self,
        tokens: Tokens<'_>,
        cu_seqlens: &[u32],
        wanted: Wanted,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let Limits { tokens: most, sequences, .. } = self.limits;
        check(&self.config, most, sequences, tokens, cu_seqlens)?;
        check_indices(&self.config, tokens)?;
        out.clear();
        out.resize((cu_seqlens.len() - 1) * self.config.hidden, 0.0);
        if tokens.ids.is_empty() {
            return Ok(());
        }
        let shape = self.limits.shape(cu_seqlens, wanted);
        self.upload(tokens, cu_seqlens, shape.sequences)?;
        self.launch(shape)?;
        self.bytes.resize(out.len() * 4, 0);
        self.device.download(self.parts.buffers.pooled, 0, &mut self.bytes)?;
        for (value, bytes) in out.iter_mut().zip(self.bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }

    /// Brings a batch to the device; sequences up to `sequences` pad.
    fn upload(&mut self, tokens: Tokens<'_>, cu_seqlens: &[u32], sequences: usize) -> Result<()> {
        let count = tokens.ids.len();
        let mut bounds = cu_seqlens.to_vec();
        bounds.resize(sequences + 1, count as u32);
        count_positions(&self.config, cu_seqlens, &mut self.position_ids);
        let (bytes, device, to) = (&mut self.bytes, &mut *self.device, &self.parts.buffers);
        let mut send = |to: Ptr, words: &[u32]| {
            bytes.clear();
            bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            device.upload(to, 0, bytes)
        };
        send(to.tokens, &[count as u32])?;
        send(to.ids, tokens.ids)?;
        send(to.positions, &self.position_ids[..count])?;
        send(to.cu_seqlens, &bounds)?;
        if let Some(head) = &to.head {
            send(head.sequences, &[(cu_seqlens.len() - 1) as u32])?;
            match tokens.types {
                [] => send(head.types, &vec![0; count])?,
                types => send(head.types, types)?,
            }
        }
        Ok(())
    }

    /// Queues the list of `shape`: a query's as it was recorded, another one launch by launch.
    fn launch(&mut self, shape: Shape) -> Result<()> {
        if shape.is_query() {
            let list = match self.queries.get(&shape) {
                Some(list) => *list,
                None => {
                    let list = self.device.record(self.parts.list(&self.config, shape)?)?;
                    self.queries.insert(shape, list);
                    list
                }
            };
            return Ok(self.device.replay(list)?);
        }
        let list = match self.last.take() {
            Some((of, list)) if of == shape => list,
            _ => self.parts.list(&self.config, shape)?,
        };
        let (_, list) = self.last.insert((shape, list));
        Ok(list.iter().try_for_each(|launch| self.device.launch(launch))?)
    }
}

/// Refuses an index that no table has; the kernels would take it for nothing.
fn check_indices(config: &EncoderConfig, tokens: Tokens<'_>) -> Result<()> {
    let Tokens { ids, types } = tokens;
    let types: &[u32] = if config.type_rows > 0 { types } else { &[] };
    for (what, ids, rows) in [("token", ids, config.vocab), ("type", types, config.type_rows)] {
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            return Err(ModelError::Batch { what: format!("{what} {id}, the model has {rows}") });
        }
    }
    Ok(())
}
