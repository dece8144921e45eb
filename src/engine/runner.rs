//! Carrying a step out.

use crate::model::{Decoder, ForwardBatch, KvCache};

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
    sampler: Sampler,
    max_model_len: usize,
    rows: Vec<u32>,
    steps: u64,
}

impl ModelRunner {
    /// A runner over `decoder` and its cache; contexts up to `max_model_len`.
    #[must_use]
    pub fn new(decoder: Decoder, kv: KvCache, max_model_len: usize) -> ModelRunner {
        ModelRunner { decoder, kv, sampler: Sampler::default(), max_model_len, rows: Vec::new(), steps: 0 }
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
        };
        let logits = self
            .decoder
            .forward(&batch, &mut self.kv)
            .map_err(|error| RunnerError { message: error.to_string() })?;
        let samples = plan
            .samples
            .iter()
            .enumerate()
            .map(|(at, sample)| self.sampler.sample(logits.row(at), sample))
            .collect();
        let prompt_logprobs = plan
            .prompt_logprobs
            .iter()
            .enumerate()
            .map(|(at, (_, id, n))| self.sampler.logprobs(logits.row(plan.samples.len() + at), *id, *n))
            .collect();
        Ok(StepOutput { samples, prompt_logprobs })
    }
}
