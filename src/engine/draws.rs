//! From a step's logits to what its plan asked for.

use crate::model::{Exec, Logits};

use super::constraint::{BitMask, Grammar};
use super::request::{SampleError, SampledToken, TokenLogprobs};
use super::sampler::Sampler;
use super::step::{StepOutput, StepPlan};

/// Which rows of logits a plan needs, and the samplers that read them, one a worker.
#[derive(Debug)]
pub(super) struct Draws {
    exec: Exec,
    samplers: Vec<Sampler>,
    rows: Vec<u32>,
    /// Where the rows of each drawn token, then of each prompt position begin.
    first_rows: Vec<usize>,
}

/// What rows of logits become.
#[derive(Clone)]
enum Drawn {
    Pending,
    Tokens(Result<Vec<SampledToken>, SampleError>),
    Prompt(TokenLogprobs),
}

impl Draws {
    /// Draws with the threads of `exec`.
    pub(super) fn new(exec: Exec) -> Draws {
        let samplers = (0..exec.threads()).map(|_| Sampler::default()).collect();
        Draws { exec, samplers, rows: Vec::new(), first_rows: Vec::new() }
    }

    /// Asks for the logits of every drawn token, then of the prompts' positions. Answers that part from one prompt stand
    /// side by side and share their row.
    pub(super) fn ask(&mut self, plan: &StepPlan) {
        let Draws { rows, first_rows, .. } = self;
        rows.clear();
        first_rows.clear();
        let mut previous = None;
        for sample in &plan.samples {
            if previous != Some(sample.row) {
                first_rows.push(rows.len());
                rows.extend(sample.row..=sample.row + sample.drafts.len() as u32);
            } else if let Some(first) = first_rows.last().copied() {
                first_rows.push(first);
            }
            previous = Some(sample.row);
        }
        for (row, _, _) in &plan.prompt_logprobs {
            first_rows.push(rows.len());
            rows.push(*row);
        }
    }

    /// The rows that were asked for.
    pub(super) fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// Fills the plan's grammars and draws from the rows asked for.
    pub(super) fn draw(&mut self, plan: &mut StepPlan, logits: &Logits<'_>) -> StepOutput {
        let Draws { exec, samplers, first_rows, .. } = self;
        exec.each_with(samplers, &mut plan.grammars, &|_, _, grammar| grammar.fill());
        let allowed: Vec<Option<&BitMask>> = plan.grammars.iter().map(Grammar::mask).collect();
        // An answer's rows go in order on one worker; answers depend on nothing but their own rows.
        let mut drawn = vec![Drawn::Pending; first_rows.len()];
        let (samples, scored) = (&plan.samples, &plan.prompt_logprobs);
        exec.each_with(samplers, &mut drawn, &|sampler, at, result| {
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
        output
    }
}
