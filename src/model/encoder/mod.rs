//! BERT and XLM-R: one forward pass over sequences packed without padding.
//!
//! | file | what |
//! |---|---|
//! | [`load`] | weights by name |
//! | [`layer`] | a layer's pass on the CPU |
//! | [`scoring_head`] | from the first token to a logit |
//! | [`device`] | weights and passes on a device |

mod device;
mod layer;
mod load;
mod scoring_head;

use std::sync::Arc;
use std::time::Duration;

use tarn_kernels::{
    Buf, DType, EmbeddingTable, Exec, Gate, ViewMut, Workspace, embed_rows, layer_norm, pool,
};

use super::config::{EncoderConfig, ModelConfig, PositionStyle};
use super::error::{ModelError, Result};
use super::source::ModelSource;
use super::weights::{LoadOptions, LoadProgress, Tensors};
use layer::{Layer, Norm};
use load::{EmbeddingTensors, LayerTensors, table};
use scoring_head::{HeadTensors, ScoringLayers, no_head};

pub use device::{DeviceEncoder, DeviceEncoderOptions};

/// A loaded embedder or reranker.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    exec: Exec,
    words: EmbeddingTable,
    positions: EmbeddingTable,
    types: Option<EmbeddingTable>,
    norm: Norm,
    layers: Vec<Layer>,
    head: Option<ScoringLayers>,
    state: State,
    max_tokens: usize,
    gate: Option<Arc<Gate>>,
}

/// Longest wait before a layer: bulk work is slowed down, never starved.
const GATE_WAIT: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct State {
    x: Buf,
    extra: Buf,
    qkv: Buf,
    attended: Buf,
    inner: Buf,
    position_ids: Vec<u32>,
    zeros: Vec<u32>,
    ws: Workspace,
}

/// The packed tokens of a pass; no types: all of the first.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    ids: &'a [u32],
    types: &'a [u32],
}

impl Encoder {
    /// Loads the weights of `source`. `options.max_num_batched_tokens` bounds one forward pass and is raised to the
    /// model's longest input.
    ///
    /// # Errors
    /// [`ModelError`] that names the tensor or field and what to do.
    pub fn load(source: &ModelSource, options: LoadOptions) -> Result<Encoder> {
        let config = config_of(source)?;
        let tensors = if options.dummy_weights { Tensors::Dummy } else { source.tensors()? };
        let (hidden, target) = (config.hidden, options.dtype.target());
        let mut layers = Vec::with_capacity(config.layers);
        for at in 0..config.layers {
            layers.push(LayerTensors::find(config, &tensors, at)?.pack(target)?);
            if let Some(progress) = &options.progress {
                progress(LoadProgress { layers: at + 1, of: config.layers });
            }
        }
        let found = EmbeddingTensors::find(config, &tensors)?;
        let max_tokens = options.max_num_batched_tokens.max(config.max_tokens);
        let head = match config.head {
            Some(head) => {
                let found = HeadTensors::find(&tensors, head.style, hidden)?;
                Some(ScoringLayers::new(found, hidden, max_tokens, target)?)
            }
            None => None,
        };
        Ok(Encoder {
            head,
            words: table(&found.words, config.vocab, hidden)?,
            positions: table(&found.positions, config.position_rows, hidden)?,
            types: found.types.as_ref().map(|types| table(types, config.type_rows, hidden)).transpose()?,
            norm: found.norm,
            state: State::new(config, max_tokens)?,
            config: config.clone(),
            exec: options.exec,
            layers,
            max_tokens,
            gate: None,
        })
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Width of a vector.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.config.hidden
    }

    /// Memory of the weights in bytes.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let tables = [Some(&self.words), Some(&self.positions), self.types.as_ref()];
        let layers: usize = self
            .layers
            .iter()
            .flat_map(|layer| [&layer.qkv, &layer.output, &layer.up, &layer.down])
            .map(|dense| dense.weight.bytes() + 4 * dense.bias.len())
            .sum();
        let norms = 8 * self.config.hidden * (2 * self.layers.len() + 1);
        let head = self.head.as_ref().map_or(0, ScoringLayers::weight_bytes);
        tables.into_iter().flatten().map(EmbeddingTable::bytes).sum::<usize>() + layers + norms + head
    }

    /// Most tokens of one forward pass, over all sequences.
    #[must_use]
    pub fn max_batch_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Pooled vectors `[sequences, dim]` of the sequences `cu_seqlens[i]..cu_seqlens[i + 1]` of `input_ids`, written
    /// to `out`; of norm 1 where the model says so.
    ///
    /// # Errors
    /// [`ModelError::Batch`] when the batch is larger than the encoder was sized for or a sequence is too long.
    pub fn forward(&mut self, input_ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        self.states(Tokens { ids: input_ids, types: &[] }, cu_seqlens, None)?;
        self.pool(input_ids.len(), cu_seqlens, out)
    }

    /// As [`Encoder::forward`], for work that nobody waits for: before each layer it makes way for whoever holds the
    /// gate, 50 ms at most.
    ///
    /// # Errors
    /// As [`Encoder::forward`].
    pub fn forward_bulk(&mut self, input_ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let gate = self.gate.clone();
        self.states(Tokens { ids: input_ids, types: &[] }, cu_seqlens, gate.as_deref())?;
        self.pool(input_ids.len(), cu_seqlens, out)
    }

    /// Logits `[sequences]` of the head on the sequences `cu_seqlens[i]..cu_seqlens[i + 1]`, written to `out`.
    /// `type_ids` `[tokens]` say which text of a pair a token is of; where it is empty all are of the first.
    ///
    /// # Errors
    /// [`ModelError::Batch`] as [`Encoder::forward`], for a sequence without a token, and where there is no head.
    pub fn score(
        &mut self,
        input_ids: &[u32],
        type_ids: &[u32],
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        self.states(Tokens { ids: input_ids, types: type_ids }, cu_seqlens, None)?;
        self.logits(cu_seqlens, out)
    }

    /// As [`Encoder::score`], making way as [`Encoder::forward_bulk`] does.
    ///
    /// # Errors
    /// As [`Encoder::score`].
    pub fn score_bulk(
        &mut self,
        input_ids: &[u32],
        type_ids: &[u32],
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let gate = self.gate.clone();
        self.states(Tokens { ids: input_ids, types: type_ids }, cu_seqlens, gate.as_deref())?;
        self.logits(cu_seqlens, out)
    }

    /// The gate that [`Encoder::forward_bulk`] waits at.
    pub fn set_gate(&mut self, gate: Arc<Gate>) {
        self.gate = Some(gate);
    }

    /// Runs the layers; the token states are then in `self.state.x`.
    fn states(&mut self, tokens: Tokens<'_>, cu_seqlens: &[u32], gate: Option<&Gate>) -> Result<()> {
        check(&self.config, self.max_tokens, self.max_tokens, tokens, cu_seqlens)?;
        let Tokens { ids: input_ids, types: type_ids } = tokens;
        let tokens = input_ids.len();
        let (exec, state, config) = (&self.exec, &mut self.state, &self.config);
        count_positions(config, cu_seqlens, &mut state.position_ids);
        embed_rows(exec, input_ids, &self.words, state.x.head_mut(tokens)?)?;
        embed_rows(exec, &state.position_ids[..tokens], &self.positions, state.extra.head_mut(tokens)?)?;
        add(state.extra.as_f32()?, state.x.as_f32_mut()?, tokens * config.hidden);
        if let Some(types) = &self.types {
            let type_ids = if type_ids.is_empty() { &state.zeros[..tokens] } else { type_ids };
            embed_rows(exec, type_ids, types, state.extra.head_mut(tokens)?)?;
            add(state.extra.as_f32()?, state.x.as_f32_mut()?, tokens * config.hidden);
        }
        let norm = &self.norm;
        layer_norm(
            exec,
            state.x.head(tokens)?,
            None,
            &norm.weight,
            &norm.bias,
            config.eps,
            state.extra.head_mut(tokens)?,
        )?;
        std::mem::swap(&mut state.x, &mut state.extra);
        for layer in &self.layers {
            if let Some(gate) = gate {
                gate.wait(GATE_WAIT);
            }
            layer.forward(exec, config, state, tokens, cu_seqlens)?;
        }
        Ok(())
    }

    /// One vector a sequence from the token states.
    fn pool(&self, tokens: usize, cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        let (config, sequences) = (&self.config, cu_seqlens.len() - 1);
        out.clear();
        out.resize(sequences * config.hidden, 0.0);
        let view = ViewMut::new(out, sequences, config.hidden)?;
        pool(&self.exec, self.state.x.head(tokens)?, cu_seqlens, config.pooling, config.normalize, view)?;
        Ok(())
    }

    fn logits(&mut self, cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<()> {
        match &mut self.head {
            Some(head) => head.logits(&self.exec, &mut self.state.ws, &self.state.x, cu_seqlens, out),
            None => Err(no_head()),
        }
    }
}

/// What an encoder is, or that it is none.
fn config_of(source: &ModelSource) -> Result<&EncoderConfig> {
    match source.config() {
        ModelConfig::Encoder(config) => Ok(config),
        ModelConfig::Decoder(_) => Err(ModelError::WrongKind {
            name: source.path().display().to_string(),
            found: "a model that generates",
            needed: "an encoder (BERT, XLM-RoBERTa)",
        }),
    }
}

/// Refuses a batch of more than `max_tokens` tokens or `max_sequences` sequences, types of other tokens, bounds that do
/// not cover its tokens, and a sequence that is too long.
fn check(
    config: &EncoderConfig,
    max_tokens: usize,
    max_sequences: usize,
    tokens: Tokens<'_>,
    cu_seqlens: &[u32],
) -> Result<()> {
    let wrong = |what: String| Err(ModelError::Batch { what });
    let Tokens { ids, types } = tokens;
    let tokens = ids.len();
    if tokens > max_tokens {
        return wrong(format!("{tokens} tokens, the encoder was sized for {max_tokens}"));
    }
    if !types.is_empty() && types.len() != tokens {
        return wrong(format!("{tokens} tokens, {} type ids", types.len()));
    }
    if cu_seqlens.first() != Some(&0) || cu_seqlens.last().is_none_or(|end| *end as usize != tokens) {
        return wrong(format!("sequence bounds {cu_seqlens:?} do not cover {tokens} tokens"));
    }
    for pair in cu_seqlens.windows(2) {
        if pair[1] < pair[0] || (pair[1] - pair[0]) as usize > config.max_tokens {
            return wrong(format!(
                "a sequence of {}..{}, at most {} tokens",
                pair[0], pair[1], config.max_tokens
            ));
        }
    }
    if cu_seqlens.len() - 1 > max_sequences {
        return wrong(format!("{} sequences", cu_seqlens.len() - 1));
    }
    Ok(())
}

/// The position of each token in its sequence, as the model counts.
fn count_positions(config: &EncoderConfig, cu_seqlens: &[u32], ids: &mut [u32]) {
    let first = if let PositionStyle::Offset(offset) = config.positions { offset as u32 } else { 0 };
    for pair in cu_seqlens.windows(2) {
        for (at, id) in ids[pair[0] as usize..pair[1] as usize].iter_mut().enumerate() {
            *id = first + at as u32;
        }
    }
}

fn add(from: &[f32], to: &mut [f32], len: usize) {
    to[..len].iter_mut().zip(&from[..len]).for_each(|(sum, x)| *sum += x);
}

impl State {
    fn new(config: &EncoderConfig, tokens: usize) -> Result<State> {
        let buf = |cols: usize| Buf::zeros(DType::F32, &[tokens, cols]);
        let widest = config.hidden.max(config.intermediate);
        Ok(State {
            x: buf(config.hidden)?,
            extra: buf(config.hidden)?,
            qkv: buf(3 * config.hidden)?,
            attended: buf(config.hidden)?,
            inner: buf(config.intermediate)?,
            position_ids: vec![0; tokens],
            zeros: vec![0; tokens],
            ws: Workspace::new(tokens, widest)?.with_encoder_attention(
                tokens,
                tokens.min(1024),
                config.hidden,
            )?,
        })
    }
}
