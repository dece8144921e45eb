//! Carrying a step out on a device.
//!
//! The device draws where nothing but the model, the temperature and truncation decides a step's tokens; then only ids
//! come back. Any other step brings its logits to the host's samplers, all of it: grammars, penalties, log probabilities
//! and guesses are the same there as on a CPU.

use std::collections::VecDeque;
use std::time::Instant;

use tarn_kernels::device::sample::Sampling;

use crate::model::{DeviceDecoder, DeviceStep, Exec, ModelError};

use super::draws::Draws;
use super::request::{SampleError, SampledToken};
use super::runner::{RunnerError, StepRunner};
use super::step::{InputIds, SampleSpec, StepOutput, StepPlan, Ticket};

/// Runs steps on a [`DeviceDecoder`]. A step whose tokens are drawn there may be followed by the next one before they are
/// known on the host.
#[derive(Debug)]
pub struct DeviceRunner {
    decoder: DeviceDecoder,
    draws: Draws,
    max_model_len: usize,
    steps: u64,
    /// Steps that were launched and not collected, the first one first.
    flights: VecDeque<Flight>,
    /// When the last step was collected.
    collected: Instant,
}

#[derive(Debug)]
struct Flight {
    ticket: u64,
    step: DeviceStep,
    draws: Where,
    launched: Instant,
}

/// Who draws a step's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Device,
    Host,
}

impl DeviceRunner {
    /// A runner over `decoder`; contexts up to `max_model_len`, which it was sized for. What is drawn on the host is drawn
    /// with the threads of `exec`.
    #[must_use]
    pub fn new(decoder: DeviceDecoder, exec: Exec, max_model_len: usize) -> DeviceRunner {
        let draws = Draws::new(exec);
        let flights = VecDeque::new();
        DeviceRunner { decoder, draws, max_model_len, steps: 0, flights, collected: Instant::now() }
    }

    /// How the device draws the plan's tokens, one row each, if it can.
    fn how(&self, plan: &StepPlan) -> Option<(Vec<u32>, Vec<Sampling>)> {
        let few = (1..=self.decoder.max_rows()).contains(&plan.samples.len());
        let plain = few && plan.prompt_logprobs.is_empty() && plan.samples.iter().all(SampleSpec::is_plain);
        plain.then(|| plan.samples.iter().map(|sample| (sample.row, sampling(sample))).unzip())
    }

    fn queue(&mut self, plan: &StepPlan) -> Result<(DeviceStep, Where), ModelError> {
        let (step, draws) = match (self.how(plan), plan.ids) {
            (Some((rows, how)), InputIds::Known) => {
                (self.decoder.launch(&plan.batch(&rows), &plan.copies, Some(&how)), Where::Device)
            }
            (Some((rows, how)), InputIds::Drawn) => {
                (self.decoder.follow(&plan.batch(&rows), &how), Where::Device)
            }
            (None, InputIds::Known) => {
                self.draws.ask(plan);
                (self.decoder.launch(&plan.batch(self.draws.rows()), &plan.copies, None), Where::Host)
            }
            (None, InputIds::Drawn) => {
                let what = "a step behind another one whose tokens the host draws: this is a bug".to_owned();
                return Err(ModelError::Batch { what });
            }
        };
        Ok((step?, draws))
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
        let launched = Instant::now();
        let (step, draws) = self.queue(plan)?;
        self.steps += 1;
        self.flights.push_back(Flight { ticket: self.steps, step, draws, launched });
        Ok(Ticket(self.steps))
    }

    fn runs_ahead(&self) -> bool {
        self.flights.back().is_some_and(|flight| flight.draws == Where::Device)
    }

    fn collect(&mut self, plan: &mut StepPlan, ticket: Ticket) -> Result<StepOutput, RunnerError> {
        let is_it = |flight: &Flight| flight.ticket == ticket.0;
        let Some(flight) = self.flights.pop_front().filter(is_it) else {
            return Err(RunnerError {
                message: format!("step {} is not the next one: this is a bug", ticket.0),
            });
        };
        let output = match flight.draws {
            Where::Host => self.draws.draw(plan, &self.decoder.logits(flight.step)?),
            Where::Device => {
                let token = |id: Option<u32>| match id {
                    Some(id) => Ok(vec![SampledToken { id, logprob: None, top: Vec::new() }]),
                    None => Err(SampleError::NotFinite),
                };
                let samples = self.decoder.drawn(flight.step)?.into_iter().map(token).collect();
                StepOutput { samples, ..StepOutput::default() }
            }
        };
        // A step that was launched behind another one began when that was over.
        let began = flight.launched.max(self.collected);
        self.collected = Instant::now();
        Ok(StepOutput { took: self.collected - began, ..output })
    }
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
