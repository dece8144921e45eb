//! What becomes of a step's tokens: events, and answers that begin and end.

use std::cmp::Reverse;
use std::time::Instant;

use super::super::request::{EngineError, Event, FinishReason, SampleError, SampledToken, TokenLogprobs};
use super::super::runner::StepRunner;
use super::super::scheduler::Planned;
use super::super::sequence::{Group, Sequence};
use super::super::step::StepOutput;
use super::Engine;

/// What was drawn for an answer.
type Drawn = Result<Vec<SampledToken>, SampleError>;

impl<R: StepRunner> Engine<R> {
    /// Hands a step's tokens out.
    pub(super) fn update(&mut self, planned: Vec<Planned>, output: StepOutput) {
        let mut samples = output.samples.into_iter();
        let mut logprobs = output.prompt_logprobs.into_iter();
        let mut ended: Vec<(usize, FinishReason)> = Vec::new();
        for mut part in planned {
            let own: Vec<Drawn> = samples.by_ref().take(part.samples).collect();
            let own_logprobs: Vec<TokenLogprobs> = logprobs.by_ref().take(part.logprob_rows).collect();
            // What was computed ahead for an answer that ended before is nobody's.
            let Some(at) = self.scheduler.find(&part) else { continue };
            part.at = at;
            self.scheduler.computed(&part);
            self.take_prompt_logprobs(&part, own_logprobs);
            ended.extend(self.take_tokens(&part, own).map(|reason| (at, reason)));
        }
        ended.sort_by_key(|(at, _)| Reverse(*at));
        for (at, reason) in ended {
            let sequence = self.scheduler.running.remove(at);
            self.finish(sequence, reason);
        }
    }

    fn take_prompt_logprobs(&mut self, part: &Planned, own: Vec<TokenLogprobs>) {
        let group = self.scheduler.groups.get_mut(&self.scheduler.running[part.at].group);
        if let Some(group) = group {
            group.prompt_logprobs.extend(own.into_iter().map(Some));
        }
    }

    /// Takes over what was drawn for a sequence; says why its answer ended, if it did.
    fn take_tokens(&mut self, part: &Planned, own: Vec<Drawn>) -> Option<FinishReason> {
        let sequence = &self.scheduler.running[part.at];
        let (id, complete) = (sequence.group, sequence.pending() == 0);
        if !complete || self.scheduler.failed.iter().any(|(failed, _)| *failed == id) {
            return None;
        }
        self.after_prompt(id);
        if self.scheduler.groups.get(&id)?.max_tokens == 0 {
            return Some(FinishReason::Length);
        }
        let siblings =
            self.siblings(part.at).map_err(|error| self.scheduler.failed.push((id, error))).ok()?;
        let mut own = own.into_iter();
        let reason = self.take_run(part, own.next()?);
        for (sibling, drawn) in siblings.into_iter().zip(own) {
            self.begin(part.at, sibling, drawn);
        }
        reason
    }

    /// The prompt of a group is computed: says so once.
    fn after_prompt(&mut self, id: u64) {
        let Some(group) = self.scheduler.groups.get_mut(&id).filter(|group| !group.prompt_sent) else {
            return;
        };
        group.prompt_sent = true;
        group.first_token = Some(Instant::now());
        let mut logprobs = Vec::new();
        if group.params.prompt_logprobs.is_some() {
            logprobs.push(None);
            logprobs.append(&mut group.prompt_logprobs);
        }
        group.send(Event::Prompt { logprobs, cached_tokens: group.cached_tokens });
    }

    /// The other answers to the prompt that running sequence `at` just computed; none when they began already.
    fn siblings(&mut self, at: usize) -> Result<Vec<Sequence>, EngineError> {
        let sequence = &self.scheduler.running[at];
        let Some(group) = self.scheduler.groups.get_mut(&sequence.group).filter(|group| !group.forked) else {
            return Ok(Vec::new());
        };
        group.forked = true;
        let others = group.open_answers().into_iter().filter(|index| *index != sequence.index);
        let forks = others.map(|index| sequence.fork(index)).collect::<Result<_, _>>();
        forks.map_err(|message| EngineError::Constraint { message })
    }

    /// Takes over the tokens of a running sequence.
    fn take_run(&mut self, part: &Planned, drawn: Drawn) -> Option<FinishReason> {
        let window = self.scheduler.config.limits.max_model_len as usize;
        let sequence = &mut self.scheduler.running[part.at];
        let group = self.scheduler.groups.get_mut(&sequence.group)?;
        let right = drawn.as_ref().map_or(0, |run| run.len() - 1);
        self.stats.drafted_tokens += part.drafts.len() as u64;
        self.stats.accepted_tokens += right as u64;
        if let Some(drafter) = &mut sequence.drafter {
            drafter.verified(part.drafts.len(), right);
        }
        self.scheduler.queues.serve(&group.customer, right);
        let known = sequence.output().len();
        let ended = accept(sequence, group, drawn, window);
        self.stats.generation_tokens += (sequence.output().len() - known) as u64;
        ended.unwrap_or_else(|error| {
            self.scheduler.failed.push((sequence.group, error));
            None
        })
    }

    /// Another answer to the prompt of running sequence `parent` begins with its first token, and may end with it.
    fn begin(&mut self, parent: usize, mut sibling: Sequence, drawn: Drawn) {
        let window = self.scheduler.config.limits.max_model_len as usize;
        let Some(group) = self.scheduler.groups.get_mut(&sibling.group) else { return };
        match accept(&mut sibling, group, drawn, window) {
            Ok(ended) => {
                self.stats.generation_tokens += 1;
                match ended {
                    Some(reason) => self.finish(sibling, reason),
                    None => self.scheduler.join(parent, sibling),
                }
            }
            Err(error) => self.scheduler.failed.push((sibling.group, error)),
        }
    }

    /// Ends one answer because its reader has all that it wants of it.
    pub(super) fn stop_answer(&mut self, id: u64, index: u32) {
        let Some(group) = self.scheduler.groups.get_mut(&id) else { return };
        let alone = if group.forked {
            false
        } else {
            // One sequence computes the prompt for all answers: it ends with the last of them.
            group.end_answer(index, FinishReason::Stop(None));
            group.is_over()
        };
        let forked = group.forked;
        let is_it = |seq: &Sequence| seq.group == id && (alone || (forked && seq.index == index));
        let mut ended = self.scheduler.queues.remove(is_it);
        if let Some(at) = self.scheduler.running.iter().position(is_it) {
            ended.push(self.scheduler.running.remove(at));
        }
        ended.into_iter().for_each(|sequence| self.finish(sequence, FinishReason::Stop(None)));
    }

    /// Ends a sequence; the last one ends its request.
    pub(super) fn finish(&mut self, mut sequence: Sequence, reason: FinishReason) {
        self.scheduler.retire(&mut sequence);
        let Some(group) = self.scheduler.groups.get_mut(&sequence.group) else { return };
        // Before the answers have sequences of their own, one stands for all.
        let answers = if group.forked { vec![sequence.index] } else { group.open_answers() };
        answers.into_iter().for_each(|index| group.end_answer(index, reason.clone()));
        if !group.is_over() {
            return;
        }
        if let Some(error) = group.overrun() {
            group.send_terminal(Event::Failed(error));
            self.stats.finished_abort += 1;
        } else {
            let usage = group.usage();
            group.send_terminal(Event::Done(usage));
            match group.last_reason {
                Some(FinishReason::Stop(_)) => self.stats.finished_stop += 1,
                Some(FinishReason::Length) => self.stats.finished_length += 1,
                _ => self.stats.finished_abort += 1,
            }
        }
        self.scheduler.groups.remove(&sequence.group);
    }
}

/// Adds drawn tokens to an answer until it ends; says why it did. What was drawn after its end is nobody's.
///
/// # Errors
/// When no token could be drawn or the grammar panicked; the request must then end.
fn accept(
    sequence: &mut Sequence,
    group: &mut Group,
    drawn: Drawn,
    window: usize,
) -> Result<Option<FinishReason>, EngineError> {
    for token in drawn? {
        let id = token.id;
        sequence.push(id);
        let advanced = sequence.grammar.as_mut().map_or(Ok(false), |grammar| grammar.advance(id));
        let complete = advanced.map_err(|message| EngineError::Constraint { message })?;
        group.completion_tokens += 1;
        group.send(Event::Token { index: sequence.index, token });
        let generated = sequence.output().len();
        if generated >= group.min_tokens as usize && group.stop.contains(&id) {
            return Ok(Some(FinishReason::Stop(Some(id))));
        }
        if complete {
            return Ok(Some(FinishReason::Stop(None)));
        }
        if generated >= group.max_tokens as usize || sequence.tokens.len() >= window {
            return Ok(Some(FinishReason::Length));
        }
    }
    Ok(None)
}
