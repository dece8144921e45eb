//! Carrying a step out on a device.
//!
//! The device draws where nothing but the model, the temperature and truncation decides a step's tokens; then only ids
//! come back. Any other step brings its logits to the host's samplers, all of it: grammars, penalties, log probabilities
//! and guesses are the same there as on a CPU.

use std::time::Instant;

use tarn_kernels::device::sample::Sampling;

use crate::model::{DeviceDecoder, Exec};

use super::draws::Draws;
use super::request::{SampleError, SampledToken};
use super::runner::{RunnerError, StepRunner};
use super::step::{SampleSpec, StepOutput, StepPlan, Ticket};

/// Runs steps on a [`DeviceDecoder`].
#[derive(Debug)]
pub struct DeviceRunner {
    decoder: DeviceDecoder,
    draws: Draws,
    max_model_len: usize,
    steps: u64,
    /// When the last step was launched.
    since: Instant,
    /// Whether the device draws in it.
    drawn: bool,
}

impl DeviceRunner {
    /// A runner over `decoder`; contexts up to `max_model_len`, which it was sized for. What is drawn on the host is drawn
    /// with the threads of `exec`.
    #[must_use]
    pub fn new(decoder: DeviceDecoder, exec: Exec, max_model_len: usize) -> DeviceRunner {
        let draws = Draws::new(exec);
        DeviceRunner { decoder, draws, max_model_len, steps: 0, since: Instant::now(), drawn: false }
    }

    /// How the device draws the plan's tokens, one row each, if it can.
    fn how(&self, plan: &StepPlan) -> Option<(Vec<u32>, Vec<Sampling>)> {
        let few = (1..=self.decoder.max_rows()).contains(&plan.samples.len());
        let plain = few && plan.prompt_logprobs.is_empty() && plan.samples.iter().all(is_plain);
        plain.then(|| plan.samples.iter().map(|sample| (sample.row, sampling(sample))).unzip())
    }
}

impl StepRunner for DeviceRunner {
    fn num_blocks(&self) -> usize {
        self.decoder.blocks()
    }

    fn vocab_size(&self) -> usize {
        self.decoder.config().vocab
    }

    fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<Ticket, RunnerError> {
        self.since = Instant::now();
        let how = self.how(plan);
        self.drawn = how.is_some();
        match how {
            Some((rows, how)) => self.decoder.launch(&plan.batch(&rows), &plan.copies, Some(&how))?,
            None => {
                self.draws.ask(plan);
                self.decoder.launch(&plan.batch(self.draws.rows()), &plan.copies, None)?;
            }
        }
        self.steps += 1;
        Ok(Ticket(self.steps))
    }

    fn collect(&mut self, plan: &mut StepPlan, _ticket: Ticket) -> Result<StepOutput, RunnerError> {
        if !self.drawn {
            let output = self.draws.draw(plan, &self.decoder.logits()?);
            return Ok(StepOutput { took: self.since.elapsed(), ..output });
        }
        let token = |id: Option<u32>| match id {
            Some(id) => Ok(vec![SampledToken { id, logprob: None, top: Vec::new() }]),
            None => Err(SampleError::NotFinite),
        };
        let samples = self.decoder.drawn()?.into_iter().map(token).collect();
        Ok(StepOutput { samples, took: self.since.elapsed(), ..StepOutput::default() })
    }
}

/// Whether nothing but the model, the temperature and truncation decides the token, and nothing else is asked for.
fn is_plain(sample: &SampleSpec) -> bool {
    let nothing_wanted = sample.params.logprobs.is_none() && sample.drafts.is_empty();
    nothing_wanted && sample.grammar.is_none() && !sample.adjusts()
}

fn sampling(sample: &SampleSpec) -> Sampling {
    let params = &sample.params;
    Sampling {
        temperature: params.temperature,
        top_p: params.top_p,
        min_p: params.min_p,
        top_k: params.top_k.map_or(0, |k| k.max(1)),
        seed: sample.seed,
        position: u64::from(sample.position),
        repetition: 1.0,
        frequency: 0.0,
        presence: 0.0,
        mask: u32::MAX,
    }
}
