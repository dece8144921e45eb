//! Carrying a step out.

use std::sync::Arc;

use tarn_kernels::Gate;

use crate::model::{Decoder, Exec, ForwardBatch, KvCache};

use super::request::{SampleError, SampledToken, TokenLogprobs};
use super::sampler::Sampler;
use super::step::{StepOutput, StepPlan, Ticket};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RunnerError {
    /// What happened.
    pub message: String,
}

/// Owns the model and the KV cache. `launch` starts a step, `collect` waits for it; on a CPU all work happens in
/// `collect`, on a GPU the host plans the next step in between.
pub trait StepRunner {
    /// Blocks of its KV cache.
    fn num_blocks(&self) -> usize;
    /// Tokens of the vocabulary.
    fn vocab_size(&self) -> usize;
    /// Longest context.
    fn max_model_len(&self) -> usize;
    /// Starts a step.
    ///
    /// # Errors
    /// When the plan cannot run; nothing is then in flight.
    fn launch(&mut self, plan: &StepPlan) -> Result<Ticket, RunnerError>;
    /// Waits for a step.
    ///
    /// # Errors
    /// When the step failed; the runner can go on with other sequences.
    fn collect(&mut self, plan: &StepPlan, ticket: Ticket) -> Result<StepOutput, RunnerError>;
}

/// Runs steps on a [`Decoder`].
#[derive(Debug)]
pub struct ModelRunner {
    decoder: Decoder,
    kv: KvCache,
    exec: Exec,
    /// One a worker.
    samplers: Vec<Sampler>,
    max_model_len: usize,
    rows: Vec<u32>,
    steps: u64,
    gate: Option<Arc<Gate>>,
}

/// What a row of logits becomes.
#[derive(Clone)]
enum RowResult {
    Pending,
    Token(Result<SampledToken, SampleError>),
    Prompt(TokenLogprobs),
}

impl ModelRunner {
    /// A runner over `decoder` and its cache; contexts up to `max_model_len`.
    #[must_use]
    pub fn new(decoder: Decoder, kv: KvCache, max_model_len: usize) -> ModelRunner {
        let exec = decoder.exec().clone();
        let samplers = (0..exec.threads()).map(|_| Sampler::default()).collect();
        ModelRunner { decoder, kv, exec, samplers, max_model_len, rows: Vec::new(), steps: 0, gate: None }
    }

    /// Holds `gate` in every step that draws a token for somebody who waits, so that bulk work makes way.
    #[must_use]
    pub fn with_gate(mut self, gate: Arc<Gate>) -> ModelRunner {
        self.gate = Some(gate);
        self
    }
}

impl StepRunner for ModelRunner {
    fn num_blocks(&self) -> usize {
        self.kv.blocks()
    }

    fn vocab_size(&self) -> usize {
        self.decoder.config().vocab
    }

    fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    fn launch(&mut self, _plan: &StepPlan) -> Result<Ticket, RunnerError> {
        self.steps += 1;
        Ok(Ticket(self.steps))
    }

    fn collect(&mut self, plan: &StepPlan, _ticket: Ticket) -> Result<StepOutput, RunnerError> {
        let _held = self.gate.as_ref().filter(|_| !plan.samples.is_empty()).map(|gate| gate.hold());
        // Rows for drawn tokens first, then those for the prompt's log probabilities.
        self.rows.clear();
        self.rows.extend(plan.samples.iter().map(|sample| sample.row));
        self.rows.extend(plan.prompt_logprobs.iter().map(|(row, _, _)| *row));
        let batch = ForwardBatch {
            input_ids: &plan.input_ids,
            positions: &plan.positions,
            slot_mapping: &plan.slot_mapping,
            sequences: &plan.sequences,
            block_tables: &plan.block_tables,
            logits_rows: &self.rows,
            adapters: &plan.adapters,
            adapter_of: &plan.adapter_of,
        };
        let logits = self
            .decoder
            .forward(&batch, &mut self.kv)
            .map_err(|error| RunnerError { message: error.to_string() })?;
        // A row depends on nothing but itself, so workers may take rows in any order.
        let mut rows = vec![RowResult::Pending; self.rows.len()];
        self.exec.each_with(&mut self.samplers, &mut rows, &|sampler, at, result| {
            *result = match plan.samples.get(at) {
                Some(sample) => RowResult::Token(sampler.sample(logits.row(at), sample)),
                None => {
                    let (_, id, n) = plan.prompt_logprobs[at - plan.samples.len()];
                    RowResult::Prompt(sampler.logprobs(logits.row(at), id, n))
                }
            };
        });
        let mut output = StepOutput::default();
        for row in rows {
            match row {
                RowResult::Token(token) => output.samples.push(token),
                RowResult::Prompt(logprobs) => output.prompt_logprobs.push(logprobs),
                RowResult::Pending => {}
            }
        }
        Ok(output)
    }
}
