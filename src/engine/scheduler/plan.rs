//! From scheduled sequences to the arrays of a step.

use std::ops::Range;
use std::sync::Arc;

use crate::model::{NO_ADAPTER, SeqSpan};

use super::super::adapters::AdapterLease;
use super::super::request::EngineError;
use super::super::sequence::{Group, Sequence};
use super::super::step::{Banned, SampleSpec, StepPlan};
use super::{BLOCK, Planned, Scheduler};

impl Scheduler {
    /// Fills the plan with the scheduled sequences, those of one adapter side by side.
    pub(super) fn fill(&mut self, plan: &mut StepPlan) {
        std::mem::swap(&mut plan.copies, &mut self.copies);
        let mut planned = std::mem::take(&mut self.planned);
        let uid = |part: &Planned| {
            self.groups[&self.running[part.at].group].adapter.as_ref().map_or(0, AdapterLease::uid)
        };
        planned.sort_by_key(uid);
        let mut last_uid = 0;
        for part in &mut planned {
            self.add_tokens(plan, part);
            let sequence = &self.running[part.at];
            let adapter = self.groups[&sequence.group].adapter.as_ref();
            add_adapter(plan, adapter, &mut last_uid);
            self.add_samples(plan, part);
        }
        self.planned = planned;
    }

    /// Gives the grammars that a step was lent back to their sequences. Where one failed, so has its request: its tokens
    /// were in the step, unused; the others of the plan are not touched. No step that has grammars runs ahead: the
    /// sequences stand where they stood.
    pub(in super::super) fn take_grammars_back(&mut self, planned: &[Planned], plan: &mut StepPlan) {
        let lenders = planned.iter().filter(|part| part.lends_grammar);
        for (part, grammar) in lenders.zip(plan.grammars.drain(..)) {
            let sequence = &mut self.running[part.at];
            if let Some(message) = grammar.failure() {
                let message = message.to_owned();
                self.failed.push((sequence.group, EngineError::Constraint { message }));
            }
            sequence.grammar = Some(grammar);
        }
    }

    fn add_tokens(&self, plan: &mut StepPlan, part: &mut Planned) {
        let sequence = &self.running[part.at];
        let group = &self.groups[&sequence.group];
        let start = plan.input_ids.len() as u32;
        let (from, known) = (sequence.computed, sequence.computed + part.tokens);
        let to = known + part.drafts.len();
        add_span(plan, sequence, from..to);
        plan.input_ids.extend_from_slice(&sequence.tokens[from..known]);
        plan.input_ids.extend_from_slice(&part.drafts);
        let Some(top) = group.params.prompt_logprobs.filter(|_| !group.prompt_sent) else { return };
        let wanted = from..known.min(sequence.prompt_len.saturating_sub(1));
        for position in wanted.filter(|position| position + 1 > group.prompt_logprobs.len()) {
            let row = start + (position - from) as u32;
            plan.prompt_logprobs.push((row, sequence.tokens[position + 1], top));
            part.logprob_rows += 1;
        }
    }

    /// The token after the last known one, and those after its guesses; where a prompt ends, one for each answer.
    fn add_samples(&mut self, plan: &mut StepPlan, part: &mut Planned) {
        let sequence = &mut self.running[part.at];
        let group = &self.groups[&sequence.group];
        if sequence.computed + part.tokens < sequence.tokens.len() || group.max_tokens == 0 {
            return;
        }
        let lent = sequence.grammar.take();
        part.lends_grammar = lent.is_some();
        let grammar = lent.is_some().then_some(plan.grammars.len() as u32);
        plan.grammars.extend(lent);
        // An answer that was stopped before it began is not among them.
        let others = if group.forked { Vec::new() } else { group.open_answers() };
        sequence.index = others.first().copied().unwrap_or(sequence.index);
        let row = (plan.input_ids.len() - part.drafts.len()) as u32 - 1;
        let first = SampleSpec {
            row,
            drafts: part.drafts.clone(),
            params: group.params.clone(),
            seed: group.seed.wrapping_add(u64::from(sequence.index)),
            position: sequence.tokens.len() as u32,
            history: sequence.counts.clone(),
            banned: banned(group, sequence),
            grammar,
        };
        let others: Vec<SampleSpec> = others
            .into_iter()
            .filter(|index| *index != sequence.index)
            .map(|index| SampleSpec { seed: group.seed.wrapping_add(u64::from(index)), ..first.clone() })
            .collect();
        part.samples = 1 + others.len();
        plan.samples.push(first);
        plan.samples.extend(others);
    }
}

/// Where a sequence's tokens of these positions go and what they see. Their ids are not among it.
pub(super) fn add_span(plan: &mut StepPlan, sequence: &Sequence, positions: Range<usize>) {
    plan.sequences.push(SeqSpan {
        query_start: plan.positions.len() as u32,
        query_len: positions.len() as u32,
        context_len: positions.end as u32,
        table_start: plan.block_tables.len() as u32,
    });
    plan.block_tables.extend_from_slice(&sequence.blocks);
    for position in positions {
        plan.positions.push(position as u32);
        let slot = sequence.blocks[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32;
        plan.slot_mapping.push(slot);
    }
}

/// The stops, where an answer is too short for them.
fn banned(group: &Group, sequence: &Sequence) -> Option<Banned> {
    let before = sequence.prompt_len + group.min_tokens as usize;
    (sequence.tokens.len() < before && !group.stop.is_empty())
        .then(|| Banned { ids: group.stop.clone(), before: before as u32 })
}

/// Says which adapter the tokens that were added last use; `last_uid` is the load of the plan's last adapter.
fn add_adapter(plan: &mut StepPlan, adapter: Option<&AdapterLease>, last_uid: &mut u64) {
    if let Some(lease) = adapter.filter(|lease| lease.uid() != *last_uid) {
        // Sequences come by adapter, those without one first.
        if plan.adapters.is_empty() {
            let added = plan.sequences.last().map_or(0, |span| span.query_len as usize);
            plan.adapter_of.resize(plan.input_ids.len() - added, NO_ADAPTER);
        }
        plan.adapters.push(Arc::clone(lease.weights()));
        *last_uid = lease.uid();
    }
    if let Some(last) = plan.adapters.len().checked_sub(1) {
        plan.adapter_of.resize(plan.input_ids.len(), last as u32);
    }
}
