//! Carrying a step out.

use std::sync::Arc;
use std::time::Instant;

use tarn_kernels::Gate;

use crate::model::{Decoder, Exec, ForwardBatch, KvCache};

use super::constraint::{BitMask, Grammar};
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
    /// Waits for a step; fills the plan's grammars before it draws.
    ///
    /// # Errors
    /// When the step failed; the runner can go on with other sequences.
    fn collect(&mut self, plan: &mut StepPlan, ticket: Ticket) -> Result<StepOutput, RunnerError>;
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

/// What rows of logits become.
#[derive(Clone)]
enum Drawn {
    Pending,
    Tokens(Result<Vec<SampledToken>, SampleError>),
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

    /// Asks for the logits of every drawn token, then of the prompts' positions; returns where each begins. Answers
    /// that part from one prompt stand side by side and share their row.
    fn gather_rows(&mut self, plan: &StepPlan) -> Vec<usize> {
        self.rows.clear();
        let mut first_rows = Vec::with_capacity(plan.samples.len() + plan.prompt_logprobs.len());
        let mut previous = None;
        for sample in &plan.samples {
            if previous != Some(sample.row) {
                first_rows.push(self.rows.len());
                self.rows.extend(sample.row..=sample.row + sample.drafts.len() as u32);
            } else if let Some(first) = first_rows.last().copied() {
                first_rows.push(first);
            }
            previous = Some(sample.row);
        }
        for (row, _, _) in &plan.prompt_logprobs {
            first_rows.push(self.rows.len());
            self.rows.push(*row);
        }
        first_rows
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

    fn collect(&mut self, plan: &mut StepPlan, _ticket: Ticket) -> Result<StepOutput, RunnerError> {
        let since = Instant::now();
        let first_rows = self.gather_rows(plan);
        let _held = self.gate.as_ref().filter(|_| !plan.samples.is_empty()).map(|gate| gate.hold());
        self.kv.copy_blocks(&plan.copies).map_err(|error| RunnerError { message: error.to_string() })?;
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
        self.exec.each_with(&mut self.samplers, &mut plan.grammars, &|_, _, grammar| grammar.fill());
        let allowed: Vec<Option<&BitMask>> = plan.grammars.iter().map(Grammar::mask).collect();
        // An answer's rows go in order on one worker; answers depend on nothing but their own rows.
        let mut drawn = vec![Drawn::Pending; first_rows.len()];
        let (samples, scored) = (&plan.samples, &plan.prompt_logprobs);
        self.exec.each_with(&mut self.samplers, &mut drawn, &|sampler, at, result| {
            let first = first_rows[at];
            *result = match samples.get(at) {
                Some(sample) => {
                    Drawn::Tokens(match sample.grammar.map(|grammar| allowed[grammar as usize]) {
                        // Its grammar failed, and its request with it.
                        Some(None) => Err(SampleError::NothingAllowed),
                        Some(mask) => {
                            sampler.sample(logits.row(first), sample, mask).map(|token| vec![token])
                        }
                        None => sampler.sample_run(|next| logits.row(first + next), sample),
                    })
                }
                None => {
                    let (_, id, n) = scored[at - samples.len()];
                    Drawn::Prompt(sampler.logprobs(logits.row(first), id, n))
                }
            };
        });
        let mut output = StepOutput::default();
        for result in drawn {
            match result {
                Drawn::Tokens(tokens) => output.samples.push(tokens),
                Drawn::Prompt(logprobs) => output.prompt_logprobs.push(logprobs),
                Drawn::Pending => {}
            }
        }
        output.took = since.elapsed();
        Ok(output)
    }
}
