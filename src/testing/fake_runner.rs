//! A runner without a model that notices every mix-up of blocks, slots and positions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::{
    AdapterLease, Grammar, InputIds, RunnerError, SampleError, SampleSpec, SampledToken, StepOutput,
    StepPlan, StepRunner, Ticket, TokenLogprobs,
};
use crate::model::{LoraAdapter, NO_ADAPTER, SeqSpan};

/// What a slot of the cache holds: the token and the adapter that its key was made with.
#[derive(Debug, Clone, Copy)]
struct Slot {
    token: u32,
    adapter: u64,
}

/// Remembers which token each slot of the cache holds, and which adapter made it. The next token is a hash of all
/// tokens of the context, as read back through the block table, of the adapter and of the seed: a wrong slot, table,
/// position, copy or adapter gives a wrong answer or an error.
#[derive(Debug)]
pub struct FakeRunner {
    slots: Vec<Option<Slot>>,
    vocab: u32,
    /// Adapters that it knows, by the number that answers depend on.
    adapters: Vec<(Arc<LoraAdapter>, u64)>,
    /// Nobody said which there are: it takes all that come, in this order.
    takes_all_adapters: bool,
    max_model_len: usize,
    delay: Duration,
    /// What it says that a step took: a constant and a part for each row.
    says: [Duration; 2],
    busy: Duration,
    panic_on: Option<u32>,
    refuse: Option<u32>,
    short_on: Option<u32>,
    runs_ahead: bool,
    steps: u64,
    flights: VecDeque<Flight>,
}

/// A step that was launched.
#[derive(Debug)]
struct Flight {
    ticket: u64,
    /// Of a step that is computed at its launch, as a device does.
    yields: Option<Result<StepOutput, RunnerError>>,
}

impl FakeRunner {
    /// A runner with `blocks` blocks.
    #[must_use]
    pub fn new(blocks: usize, vocab: u32, max_model_len: usize) -> FakeRunner {
        FakeRunner {
            slots: vec![None; blocks * 16],
            vocab,
            adapters: Vec::new(),
            takes_all_adapters: true,
            max_model_len,
            delay: Duration::ZERO,
            says: [Duration::ZERO; 2],
            busy: Duration::ZERO,
            panic_on: None,
            refuse: None,
            short_on: None,
            runs_ahead: false,
            steps: 0,
            flights: VecDeque::new(),
        }
    }

    /// Computes plain steps when they are launched, and takes others behind them before they are collected.
    #[must_use]
    pub fn running_ahead(mut self) -> FakeRunner {
        self.runs_ahead = true;
        self
    }

    /// Knows the weights of an adapter by their load's number: answers depend on it. All others are then refused.
    #[must_use]
    pub fn with_adapter(mut self, lease: &AdapterLease) -> FakeRunner {
        self.takes_all_adapters = false;
        self.adapters.push((lease.weights().clone(), lease.uid()));
        self
    }

    /// Takes this long a step.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> FakeRunner {
        self.delay = delay;
        self
    }

    /// Says that a step takes `base` and `row` for each of its rows, without taking it.
    #[must_use]
    pub fn saying_it_took(mut self, base: Duration, row: Duration) -> FakeRunner {
        self.says = [base, row];
        self
    }

    /// What its steps took, as it says.
    #[must_use]
    pub fn busy(&self) -> Duration {
        self.busy
    }

    /// Panics in a step that has this token; fails in one that it computes when it is launched.
    #[must_use]
    pub fn panicking_on(mut self, token: u32) -> FakeRunner {
        self.panic_on = Some(token);
        self
    }

    /// Draws nothing for a context that has this token.
    #[must_use]
    pub fn refusing(mut self, token: u32) -> FakeRunner {
        self.refuse = Some(token);
        self
    }

    /// Loses a drawn token in a step that has this token.
    #[must_use]
    pub fn losing_a_sample_on(mut self, token: u32) -> FakeRunner {
        self.short_on = Some(token);
        self
    }
}

fn next(context: &[u32], vocab: u32, draw: Draw) -> u32 {
    let mix = |hash: u32, part: u32| (hash ^ part).wrapping_mul(0x0100_0193);
    let hash = context.iter().fold(0x811c_9dc5_u32, |hash, token| mix(hash, *token));
    let seed = draw.seed.map_or(0, |seed| seed.wrapping_add(1));
    let hash = [seed as u32, (seed >> 32) as u32, draw.adapter as u32].into_iter().fold(hash, mix);
    (hash >> 7) % vocab
}

/// What an answer depends on besides its prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Draw {
    /// Of the random numbers; `None` is greedy.
    pub seed: Option<u64>,
    /// Number of the adapter's load, 0 for the base model.
    pub adapter: u64,
}

/// What a [`FakeRunner`] answers to `prompt`, greedily and without an adapter.
#[must_use]
pub fn expected_tokens(prompt: &[u32], tokens: usize, vocab: u32) -> Vec<u32> {
    expected_answer(prompt, tokens, vocab, Draw::default())
}

/// What a [`FakeRunner`] answers to `prompt`.
#[must_use]
pub fn expected_answer(prompt: &[u32], tokens: usize, vocab: u32, draw: Draw) -> Vec<u32> {
    let mut context = prompt.to_vec();
    for _ in 0..tokens {
        context.push(next(&context, vocab, draw));
    }
    context.split_off(prompt.len())
}

fn failed<T>(message: &str) -> Result<T, RunnerError> {
    Err(RunnerError { message: message.to_owned() })
}

impl FakeRunner {
    /// Number of the adapter of input row `row`.
    fn adapter(&self, plan: &StepPlan, row: usize) -> Result<u64, RunnerError> {
        let Some(at) = plan.adapter_of.get(row).filter(|at| **at != NO_ADAPTER) else { return Ok(0) };
        if self.adapters.is_empty() {
            // Nobody said which there are: one is as good as another.
            return Ok(u64::MAX);
        }
        let weights = plan.adapters.get(*at as usize);
        let known =
            self.adapters.iter().find(|(known, _)| weights.is_some_and(|own| Arc::ptr_eq(own, known)));
        known.map_or_else(|| failed("an adapter that nobody loaded"), |(_, number)| Ok(*number))
    }

    /// Writes the step's tokens to their slots.
    fn write(&mut self, plan: &StepPlan, ids: &[u32]) -> Result<(), RunnerError> {
        for (from, to) in &plan.copies {
            let (from, to) = (*from as usize * 16, *to as usize * 16);
            self.slots.copy_within(from..from + 16, to);
        }
        if plan.adapters.is_empty() != plan.adapter_of.is_empty()
            || (!plan.adapter_of.is_empty() && plan.adapter_of.len() != ids.len())
        {
            return failed("not every token says its adapter");
        }
        for weights in plan.adapters.iter().filter(|_| self.takes_all_adapters) {
            if !self.adapters.iter().any(|(known, _)| Arc::ptr_eq(known, weights)) {
                self.adapters.push((weights.clone(), self.adapters.len() as u64 + 1));
            }
        }
        for (row, slot) in plan.slot_mapping.iter().enumerate() {
            let adapter = self.adapter(plan, row)?;
            self.slots[*slot as usize] = Some(Slot { token: ids[row], adapter });
        }
        Ok(())
    }

    /// The tokens of `span`'s sequence up to input row `row`, as the cache has them.
    fn context(&self, plan: &StepPlan, span: &SeqSpan, row: usize) -> Result<Vec<u32>, RunnerError> {
        let from_end = span.query_start + span.query_len - 1 - row as u32;
        let len = (span.context_len - from_end) as usize;
        if plan.positions[row] as usize + 1 != len {
            return failed("positions do not match the context");
        }
        let adapter = self.adapter(plan, row)?;
        let table = &plan.block_tables[span.table_start as usize..];
        (0..len)
            .map(|at| match self.slots[table[at / 16] as usize * 16 + at % 16] {
                None => failed("a slot of the context was never written"),
                Some(slot) if slot.adapter != adapter => failed("keys of another adapter"),
                Some(slot) => Ok(slot.token),
            })
            .collect()
    }

    /// Draws a token, and more while the drafts are right.
    fn draw(
        &self,
        plan: &StepPlan,
        ids: &[u32],
        sample: &SampleSpec,
    ) -> Result<Result<Vec<SampledToken>, SampleError>, RunnerError> {
        let rows = sample.row..=sample.row + sample.drafts.len() as u32;
        let Some(span) = plan.sequences.iter().find(|span| {
            let own = span.query_start..span.query_start + span.query_len;
            own.contains(rows.start()) && *rows.end() + 1 == own.end
        }) else {
            return failed("a sample that does not end a sequence");
        };
        let mut run = Vec::new();
        for (at, row) in rows.map(|row| row as usize).enumerate() {
            let context = self.context(plan, span, row)?;
            if sample.position as usize + at != context.len() {
                return failed("a sample of another position");
            }
            if at > 0 && sample.drafts.get(at - 1) != ids.get(row) {
                return failed("drafts are not the input");
            }
            if self.refuse.is_some_and(|token| context.contains(&token)) {
                return Ok(if at == 0 { Err(SampleError::NotFinite) } else { Ok(run) });
            }
            let seed = (sample.params.temperature > 0.0).then_some(sample.seed);
            let id = next(&context, self.vocab, Draw { seed, adapter: self.adapter(plan, row)? });
            // Among some only: the next one of them.
            let grammar = sample.grammar.map(|grammar| plan.grammars[grammar as usize].mask());
            let allowed = |id: &u32| {
                grammar.is_none_or(|mask| mask.is_some_and(|mask| mask.allows(*id)))
                    && sample.params.allowed.as_ref().is_none_or(|mask| mask.allows(*id))
            };
            let id = (0..self.vocab).map(|step| (id + step) % self.vocab).find(allowed);
            let Some(id) = id else { return Ok(Err(SampleError::NothingAllowed)) };
            run.push(SampledToken { id, logprob: sample.params.logprobs.map(|_| -1.0), top: Vec::new() });
            if sample.drafts.get(at) != Some(&id) {
                break;
            }
        }
        Ok(Ok(run))
    }
}

impl StepRunner for FakeRunner {
    fn num_blocks(&self) -> usize {
        self.slots.len() / 16
    }

    fn vocab_size(&self) -> usize {
        self.vocab as usize
    }

    fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    fn launch(&mut self, plan: &StepPlan) -> Result<Ticket, RunnerError> {
        let plain = plan.prompt_logprobs.is_empty() && plan.samples.iter().all(SampleSpec::is_plain);
        let ids = match plan.ids {
            InputIds::Known => plan.input_ids.clone(),
            InputIds::Drawn => self.drawn(plan.tokens())?,
        };
        let yields = (self.runs_ahead && plain).then(|| {
            if self.panic_on.is_some_and(|token| ids.contains(&token)) {
                return failed("asked to fail");
            }
            self.compute(plan, &ids)
        });
        self.steps += 1;
        self.flights.push_back(Flight { ticket: self.steps, yields });
        Ok(Ticket(self.steps))
    }

    fn runs_ahead(&self) -> bool {
        self.flights.back().is_some_and(|flight| flight.yields.is_some())
    }

    fn collect(&mut self, plan: &mut StepPlan, ticket: Ticket) -> Result<StepOutput, RunnerError> {
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        let Some(flight) = self.flights.pop_front().filter(|flight| flight.ticket == ticket.0) else {
            return failed("a step that is not the next one");
        };
        if let Some(yields) = flight.yields {
            return yields;
        }
        assert!(!self.panic_on.is_some_and(|token| plan.input_ids.contains(&token)), "asked to panic");
        plan.grammars.iter_mut().for_each(Grammar::fill);
        let ids = std::mem::take(&mut plan.input_ids);
        let yields = self.compute(plan, &ids);
        plan.input_ids = ids;
        yields
    }
}

impl FakeRunner {
    /// What the last step that was launched drew, where that is `count` tokens.
    fn drawn(&self, count: usize) -> Result<Vec<u32>, RunnerError> {
        let Some(Ok(output)) = self.flights.back().and_then(|flight| flight.yields.as_ref()) else {
            return failed("nothing was drawn before");
        };
        // Who got no token goes on with one that is none, as on a device.
        let id = |drawn: &Result<Vec<SampledToken>, SampleError>| {
            drawn.as_ref().map_or(u32::MAX, |run| run.first().map_or(u32::MAX, |token| token.id))
        };
        match output.samples.len() == count {
            true => Ok(output.samples.iter().map(id).collect()),
            false => failed("another number of tokens than the step before drew"),
        }
    }

    fn compute(&mut self, plan: &StepPlan, ids: &[u32]) -> Result<StepOutput, RunnerError> {
        self.write(plan, ids)?;
        let samples = plan.samples.iter().map(|sample| self.draw(plan, ids, sample));
        let mut output = StepOutput { samples: samples.collect::<Result<_, _>>()?, ..StepOutput::default() };
        output.took = self.delay + self.says[0] + self.says[1] * ids.len() as u32;
        self.busy += output.took;
        for (row, id, _) in &plan.prompt_logprobs {
            let ends = plan.sequences.iter().any(|span| span.query_start + span.query_len == row + 1);
            if !ends && ids.get(*row as usize + 1) != Some(id) {
                return failed("log probabilities of another token than the next");
            }
            output.prompt_logprobs.push(TokenLogprobs { logprob: -(*id as f32), top: vec![] });
        }
        if self.short_on.is_some_and(|token| ids.contains(&token)) {
            output.samples.pop();
        }
        Ok(output)
    }
}
