//! A runner without a model that notices every mix-up of blocks, slots and positions.

use std::time::Duration;

use crate::engine::{
    RunnerError, SampleError, SampledToken, StepOutput, StepPlan, StepRunner, Ticket, TokenLogprobs,
};

/// Remembers which token each slot of the cache holds. The next token is a hash of all tokens of the context, as read
/// back through the block table: a wrong slot, table or position gives a wrong answer or an error.
#[derive(Debug)]
pub struct FakeRunner {
    slots: Vec<Option<u32>>,
    vocab: u32,
    max_model_len: usize,
    delay: Duration,
    panic_on: Option<u32>,
    refuse: Option<u32>,
    short_on: Option<u32>,
}

impl FakeRunner {
    /// A runner with `blocks` blocks.
    #[must_use]
    pub fn new(blocks: usize, vocab: u32, max_model_len: usize) -> FakeRunner {
        FakeRunner {
            slots: vec![None; blocks * 16],
            vocab,
            max_model_len,
            delay: Duration::ZERO,
            panic_on: None,
            refuse: None,
            short_on: None,
        }
    }

    /// Takes this long a step.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> FakeRunner {
        self.delay = delay;
        self
    }

    /// Panics in a step that has this token.
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

fn next(context: &[u32], vocab: u32) -> u32 {
    let hash = context.iter().fold(0x811c_9dc5_u32, |hash, token| (hash ^ token).wrapping_mul(0x0100_0193));
    (hash >> 7) % vocab
}

/// What a [`FakeRunner`] answers to `prompt`.
#[must_use]
pub fn expected_tokens(prompt: &[u32], tokens: usize, vocab: u32) -> Vec<u32> {
    let mut context = prompt.to_vec();
    for _ in 0..tokens {
        context.push(next(&context, vocab));
    }
    context.split_off(prompt.len())
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

    fn launch(&mut self, _plan: &StepPlan) -> Result<Ticket, RunnerError> {
        Ok(Ticket(0))
    }

    fn collect(&mut self, plan: &StepPlan, _ticket: Ticket) -> Result<StepOutput, RunnerError> {
        if !self.delay.is_zero() {
            std::thread::sleep(self.delay);
        }
        assert!(!self.panic_on.is_some_and(|token| plan.input_ids.contains(&token)), "asked to panic");
        for (id, slot) in plan.input_ids.iter().zip(&plan.slot_mapping) {
            self.slots[*slot as usize] = Some(*id);
        }
        let mut output = StepOutput::default();
        for sample in &plan.samples {
            let span = plan
                .sequences
                .iter()
                .find(|span| (span.query_start..span.query_start + span.query_len).contains(&sample.row))
                .ok_or_else(|| RunnerError { message: "a sample of no sequence".to_owned() })?;
            let table = &plan.block_tables[span.table_start as usize..];
            let context = (0..span.context_len as usize)
                .map(|at| self.slots[table[at / 16] as usize * 16 + at % 16])
                .collect::<Option<Vec<u32>>>()
                .ok_or_else(|| RunnerError {
                    message: "a slot of the context was never written".to_owned(),
                })?;
            if plan.positions[sample.row as usize] + 1 != span.context_len
                || sample.position != span.context_len
            {
                return Err(RunnerError { message: "positions do not match the context".to_owned() });
            }
            let logprob = sample.params.logprobs.map(|_| -1.0);
            let id = next(&context, self.vocab);
            // Under a grammar: the next one that it allows.
            let allowed = |id: &u32| sample.mask.as_ref().is_none_or(|mask| mask.allows(*id));
            let id = (0..self.vocab).map(|step| (id + step) % self.vocab).find(allowed);
            let Some(id) = id else {
                output.samples.push(Err(SampleError::NothingAllowed));
                continue;
            };
            output.samples.push(if self.refuse.is_some_and(|token| context.contains(&token)) {
                Err(SampleError::NotFinite)
            } else {
                Ok(SampledToken { id, logprob, top: Vec::new() })
            });
        }
        output.prompt_logprobs.extend(
            plan.prompt_logprobs
                .iter()
                .map(|(_, id, _)| TokenLogprobs { logprob: -(*id as f32), top: vec![] }),
        );
        if self.short_on.is_some_and(|token| plan.input_ids.contains(&token)) {
            output.samples.pop();
        }
        Ok(output)
    }
}
