//! The step behind the one that a device is busy with, planned before that one's tokens are known.
//!
//! Only where nothing but the tokens is open: every running sequence decodes, nobody is waiting for a place that could be
//! had, and no answer is certain to end. Then the step behind has the same sequences, each with the token that it is about
//! to draw, whose place is known. An answer that ends with that token all the same, by a stop, has computed one in vain; its
//! blocks may go to others at once, who write behind it. Anything else is planned by [`Scheduler::schedule`] when the step
//! in flight is over: to plan for all that could come of it would double the scheduler for the time of a few steps.

use super::super::drafts::{Drafter, SpeculationConfig};
use super::super::step::{InputIds, SampleSpec, StepPlan};
use super::plan::add_span;
use super::{BLOCK, Planned, Scheduler};

impl Scheduler {
    /// Plans the step behind `plan`, which is in flight with the sequences of `planned`. `None` where it takes the tokens
    /// of that to know what comes next.
    pub(in super::super) fn follow(
        &mut self,
        plan: &StepPlan,
        planned: &[Planned],
        next: &mut StepPlan,
    ) -> Option<Vec<Planned>> {
        next.clear();
        if !self.is_steady(plan, planned) || !planned.iter().all(|part| self.has_room(part.at)) {
            return None;
        }
        self.steps += 1;
        next.ids = InputIds::Drawn;
        next.adapters.extend(plan.adapters.iter().cloned());
        for (part, sample) in planned.iter().zip(&plan.samples) {
            let sequence = &mut self.running[part.at];
            sequence.last_step = self.steps;
            let row = next.input_ids.len() as u32;
            next.input_ids.push(0);
            // The token that is being drawn comes after the last known one.
            let position = sequence.tokens.len();
            add_span(next, sequence, position..position + 1);
            next.adapter_of.extend(plan.adapter_of.get(sample.row as usize));
            next.samples.push(SampleSpec { row, position: sample.position + 1, ..sample.clone() });
        }
        Some(planned.iter().map(|part| Planned { tokens: 1, ..part.clone() }).collect())
    }

    /// Whether the step behind has the same sequences, whatever is drawn, short of a stop.
    fn is_steady(&self, plan: &StepPlan, planned: &[Planned]) -> bool {
        let one_each = planned.len() == self.running.len() && planned.len() == plan.samples.len();
        let nothing_open =
            self.failed.is_empty() && self.copies.is_empty() && plan.prompt_logprobs.is_empty();
        one_each
            && nothing_open
            && plan.samples.iter().all(SampleSpec::is_plain)
            && planned.iter().all(|part| self.goes_on(part))
            && !self.may_guess(planned.len())
            && !self.may_admit()
    }

    /// Whether a part stands where it stood, ends what is known of its sequence, and its answer is longer than the token
    /// that it draws.
    fn goes_on(&self, part: &Planned) -> bool {
        let Some(sequence) = self.running.get(part.at).filter(|seq| seq.admitted == part.admitted) else {
            return false;
        };
        let Some(group) = self.groups.get(&sequence.group) else { return false };
        part.samples == 1
            && sequence.output().len() + 1 < group.max_tokens as usize
            && sequence.tokens.len() + 1 < self.config.limits.max_model_len as usize
    }

    /// Whether a step of so many rows might have guesses.
    fn may_guess(&self, rows: usize) -> bool {
        let may = |drafter: &Option<Drafter>| drafter.as_ref().is_none_or(Drafter::may_guess);
        let few = |config: SpeculationConfig| rows < config.max_rows;
        self.config.speculation.is_some_and(few) && self.running.iter().any(|seq| may(&seq.drafter))
    }

    /// Whether somebody who waits has a right to a place, or there is one.
    fn may_admit(&self) -> bool {
        let full = self.running.len() >= self.config.max_num_seqs;
        self.next_turn().is_some_and(|turn| !full || self.weaker_than(&turn).is_some())
    }

    /// Gives a sequence the block of the token behind the one that it draws, if there is one.
    fn has_room(&mut self, at: usize) -> bool {
        let sequence = &mut self.running[at];
        while sequence.blocks.len() * BLOCK <= sequence.tokens.len() {
            match self.pool.allocate() {
                Some(block) => sequence.blocks.push(block),
                None => return false,
            }
        }
        true
    }
}
