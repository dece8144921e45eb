//! Carrying a step out.

use std::sync::Arc;
use std::time::Instant;

use tarn_kernels::Gate;

use crate::model::{Decoder, KvCache, ModelError};

use super::draws::Draws;
use super::step::{StepOutput, StepPlan, Ticket};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RunnerError {
    /// What happened.
    pub message: String,
}

impl From<ModelError> for RunnerError {
    fn from(error: ModelError) -> RunnerError {
        RunnerError { message: error.to_string() }
    }
}

/// Owns the model and the KV cache. `launch` starts a step, `collect` waits for it; on a CPU all work happens in
/// `collect`, on a GPU the host may plan and launch the next step in between.
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
    /// Whether a step of [`InputIds::Drawn`](super::step::InputIds::Drawn) ids, whose samples are all plain, could be
    /// launched now, before the one that was launched last is collected.
    fn runs_ahead(&self) -> bool {
        false
    }
    /// Waits for the step that was launched first of those in flight; fills the plan's grammars before it draws.
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
    draws: Draws,
    max_model_len: usize,
    steps: u64,
    gate: Option<Arc<Gate>>,
}

impl ModelRunner {
    /// A runner over `decoder` and its cache; contexts up to `max_model_len`.
    #[must_use]
    pub fn new(decoder: Decoder, kv: KvCache, max_model_len: usize) -> ModelRunner {
        let draws = Draws::new(decoder.exec().clone());
        ModelRunner { decoder, kv, draws, max_model_len, steps: 0, gate: None }
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

    fn collect(&mut self, plan: &mut StepPlan, _ticket: Ticket) -> Result<StepOutput, RunnerError> {
        let since = Instant::now();
        self.draws.ask(plan);
        let _held = self.gate.as_ref().filter(|_| !plan.samples.is_empty()).map(|gate| gate.hold());
        self.kv.copy_blocks(&plan.copies)?;
        let logits = self.decoder.forward(&plan.batch(self.draws.rows()), &mut self.kv)?;
        let output = self.draws.draw(plan, &logits);
        Ok(StepOutput { took: since.elapsed(), ..output })
    }
}
