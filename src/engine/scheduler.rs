//! Which tokens the next step computes.
//!
//! - Every running sequence asks for `tokens - computed` tokens: one in decode, a chunk in prefill. A step has up to
//!   `max_num_batched_tokens` rows, decodes first, so a long prompt slows no answer down by more than its chunk.
//! - Customers get even parts of a step's rows, interactive work before batch work. While several have work, a step is
//!   only as long as is fair to the one that wants least ([`fairness`], by what [`step_cost`] has learned of this
//!   machine): a flood of one customer costs another no more than the half of its speed.
//! - Waiting requests are admitted by [`Queues`]. While others wait, a customer holds no more than its share of the
//!   running sequences; a request with a right to a place takes it from a batch request, else from a customer that
//!   has more than its share.
//! - A sequence that finds no block takes one from the youngest running sequence, batch before interactive. Whoever
//!   loses its place goes back to its queue and is recomputed (its full blocks stay in the prefix cache while they
//!   can).
//! - What is then left of the step may be filled with guesses ([`drafts`](super::drafts)).

mod ahead;
mod fairness;
mod forks;
mod plan;
mod step_cost;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::model::KvSpec;

use super::block_pool::{BlockPool, BlockState};
use super::drafts::{Drafter, SpeculationConfig};
use super::handle::EngineLimits;
use super::queues::{Queues, Turn, is_behind};
use super::request::EngineError;
use super::sequence::{Group, Sequence};
use super::step::StepPlan;
use step_cost::StepCost;

const BLOCK: usize = KvSpec::BLOCK_SIZE;

/// Limits of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct SchedulerConfig {
    pub(super) max_num_seqs: usize,
    pub(super) max_num_batched_tokens: usize,
    pub(super) prefix_cache: bool,
    pub(super) speculation: Option<SpeculationConfig>,
    pub(super) limits: EngineLimits,
}

/// Waiting and running sequences and the blocks that they hold.
pub(super) struct Scheduler {
    pub(super) config: SchedulerConfig,
    pub(super) pool: BlockPool,
    pub(super) groups: HashMap<u64, Group>,
    pub(super) running: Vec<Sequence>,
    pub(super) queues: Queues<Sequence>,
    admissions: u64,
    pub(super) preemptions: u64,
    pub(super) prefix_queries: u64,
    pub(super) prefix_hits: u64,
    /// Sequences of the planned step.
    pub(super) planned: Vec<Planned>,
    /// Groups whose grammar failed in the step: what is drawn for them does not count.
    pub(super) failed: Vec<(u64, EngineError)>,
    /// Blocks that the next step copies first.
    copies: Vec<(u32, u32)>,
    /// Steps that were planned.
    pub(super) steps: u64,
    pub(super) cost: StepCost,
    /// When each customer last had work.
    seen: HashMap<Arc<str>, Instant>,
}

/// A sequence's part of a step.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    /// Index into `running`, as it was when the step was planned.
    pub(super) at: usize,
    /// Its admission.
    admitted: u64,
    /// Known tokens that are computed.
    pub(super) tokens: usize,
    /// Guesses that are computed after them.
    pub(super) drafts: Vec<u32>,
    /// The plan's samples that are its own: one, or one an answer where the prompt of several ends.
    pub(super) samples: usize,
    /// Its grammar is the plan's next one.
    pub(super) lends_grammar: bool,
    /// Rows of the plan's prompt log probabilities that are its own.
    pub(super) logprob_rows: usize,
}

impl Planned {
    fn new(at: usize, sequence: &Sequence, tokens: usize) -> Planned {
        Planned {
            at,
            admitted: sequence.admitted,
            tokens,
            drafts: Vec::new(),
            samples: 0,
            lends_grammar: false,
            logprob_rows: 0,
        }
    }
}

/// What a waiting sequence takes from the pool when it is admitted.
struct Admission {
    turn: Turn,
    /// Blocks of its prefix that the pool has.
    known: usize,
    /// Blocks to allocate.
    fresh: usize,
    tokens: usize,
}

impl Scheduler {
    pub(super) fn new(config: SchedulerConfig) -> Scheduler {
        Scheduler {
            pool: BlockPool::new(config.limits.num_blocks as usize),
            config,
            groups: HashMap::new(),
            running: Vec::new(),
            queues: Queues::default(),
            admissions: 0,
            preemptions: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            planned: Vec::new(),
            failed: Vec::new(),
            copies: Vec::new(),
            steps: 0,
            cost: StepCost::default(),
            seen: HashMap::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queues.is_empty()
    }

    /// Queues a sequence of an admitted group.
    pub(super) fn enqueue(&mut self, sequence: Sequence) {
        let group = &self.groups[&sequence.group];
        let running: Vec<Arc<str>> =
            self.running.iter().map(|seq| self.groups[&seq.group].customer.clone()).collect();
        self.queues.push_back(group.customer.clone(), group.priority, sequence, &running);
    }

    /// Gives a sequence's blocks back, the last one first, so that the beginning of a prefix is evicted last.
    pub(super) fn free(&mut self, sequence: &mut Sequence) {
        for block in sequence.blocks.drain(..).rev() {
            self.pool.release(block);
        }
        sequence.published = 0;
        sequence.computed = 0;
    }

    /// Plans the next step; an empty plan means that there is nothing to do.
    pub(super) fn schedule(&mut self, plan: &mut StepPlan) {
        plan.clear();
        self.planned.clear();
        self.make_way();
        let mut budget = self.allot();
        // Decodes before prefills, older before younger; those without a part in this step stand behind.
        self.running.sort_by_key(|seq| (seq.allotted == 0, seq.pending() > 1, seq.admitted));
        let mut at = 0;
        while let Some(tokens) = self.running.get(at).map(|seq| seq.allotted).filter(|tokens| *tokens > 0) {
            let blocks = (self.running[at].computed + tokens).div_ceil(BLOCK);
            if self.grow(at, blocks) {
                self.planned.push(Planned::new(at, &self.running[at], tokens));
                budget -= tokens;
                at += 1;
            }
            // Else the sequence itself was preempted and another stands at `at`.
        }
        while budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(admission) = self.next_turn().and_then(|turn| self.admission(turn, budget)) else {
                break;
            };
            budget -= admission.tokens;
            self.admit(&admission);
        }
        self.add_drafts(budget);
        self.fill(plan);
    }

    /// Gives running sequence `at` blocks up to `blocks`, preempting another if there are none. False when `at` itself
    /// was preempted.
    fn grow(&mut self, at: usize, blocks: usize) -> bool {
        let now = Instant::now();
        while self.running[at].blocks.len() < blocks {
            if let Some(block) = self.pool.allocate() {
                self.running[at].blocks.push(block);
                continue;
            }
            // The planned ones stand before `at`: only sequences that are not in this plan yet can go.
            let rank = |seq: &Sequence| (is_behind(&self.groups[&seq.group], now), seq.admitted);
            let victim = (at..self.running.len()).max_by_key(|at| rank(&self.running[*at])).unwrap_or(at);
            self.preempt(victim);
            if victim == at {
                return false;
            }
        }
        true
    }

    /// Puts running sequence `at` back to the front of its queue, without its blocks.
    fn preempt(&mut self, at: usize) {
        let mut sequence = self.running.remove(at);
        self.free(&mut sequence);
        self.preemptions += 1;
        let group = &self.groups[&sequence.group];
        self.queues.push_front(group.customer.clone(), group.priority, sequence);
    }

    /// What the waiting sequence whose turn it is would take; `None` when the pool has no room for it. Takes nothing
    /// yet: a head of the queue that does not fit is asked again every step.
    fn admission(&mut self, turn: Turn, budget: usize) -> Option<Admission> {
        let sequence = self.queues.get_mut(&turn)?;
        let group = &self.groups[&sequence.group];
        let (mut known, mut cached) = (0, 0);
        if uses_prefix_cache(&self.config, group) {
            // At least one token is left to compute, for its logits.
            let usable = (sequence.tokens.len() - 1) / BLOCK;
            sequence.hash_blocks(group.root, usable);
            for state in sequence.hashes[..usable].iter().map_while(|hash| self.pool.find(hash)) {
                known += 1;
                cached += usize::from(state == BlockState::Cached);
            }
        }
        let computed = known * BLOCK;
        let tokens = (sequence.tokens.len() - computed).min(budget);
        let fresh = (computed + tokens).div_ceil(BLOCK) - known;
        (self.pool.available() >= fresh + cached).then_some(Admission { turn, known, fresh, tokens })
    }

    /// Moves a waiting sequence to the running ones and plans its first tokens.
    fn admit(&mut self, admission: &Admission) {
        let Some(mut sequence) = self.queues.take(&admission.turn) else { return };
        let known = sequence.hashes[..admission.known].iter().map_while(|hash| self.pool.acquire(hash));
        sequence.blocks.extend(known);
        sequence.blocks.extend((0..admission.fresh).map_while(|_| self.pool.allocate()));
        debug_assert_eq!(sequence.blocks.len(), admission.known + admission.fresh, "the room was checked");
        sequence.published = admission.known;
        sequence.computed = admission.known * BLOCK;
        self.admissions += 1;
        sequence.admitted = self.admissions;
        sequence.last_step = self.steps;
        if let Some(group) = self.groups.get_mut(&sequence.group) {
            if uses_prefix_cache(&self.config, group) {
                self.prefix_queries += sequence.tokens.len() as u64;
                self.prefix_hits += sequence.computed as u64;
            }
            group.admit(Instant::now(), sequence.computed);
        }
        self.insert_planned(sequence, admission.tokens);
    }

    /// Puts a sequence behind the planned ones, as the next of them.
    fn insert_planned(&mut self, sequence: Sequence, tokens: usize) {
        self.planned.push(Planned::new(self.running.len(), &sequence, tokens));
        self.running.push(sequence);
    }

    /// Adds guesses where they ride nearly free: after everything that is known has its place, in steps of few rows,
    /// in blocks that nobody needs.
    fn add_drafts(&mut self, budget: usize) {
        let Some(config) = self.config.speculation else { return };
        let rows: usize = self.planned.iter().map(|part| part.tokens).sum();
        let mut spare = budget.min(config.max_rows.saturating_sub(rows));
        let decodes =
            |seq: &Sequence| seq.pending() == 1 && seq.grammar.is_none() && self.groups[&seq.group].forked;
        let able: Vec<usize> =
            (0..self.planned.len()).filter(|part| decodes(&self.running[self.planned[*part].at])).collect();
        for (done, part) in able.iter().copied().enumerate() {
            let room = spare.div_ceil(able.len() - done);
            let sequence = &mut self.running[self.planned[part].at];
            let group = &self.groups[&sequence.group];
            let answer = (group.max_tokens as usize).saturating_sub(sequence.output().len() + 1);
            let window = (self.config.limits.max_model_len as usize).saturating_sub(sequence.tokens.len());
            let drafter = sequence.drafter.get_or_insert_with(|| Drafter::new(config));
            let mut drafts = drafter.draft(&sequence.tokens, room.min(answer).min(window));
            while (sequence.tokens.len() + drafts.len()).div_ceil(BLOCK) > sequence.blocks.len() {
                // A block for each decode of the next step stays free.
                match (self.pool.available() > able.len()).then(|| self.pool.allocate()).flatten() {
                    Some(block) => sequence.blocks.push(block),
                    None => drafts.truncate(sequence.blocks.len() * BLOCK - sequence.tokens.len()),
                }
            }
            spare -= drafts.len();
            self.planned[part].drafts = drafts;
        }
    }

    /// Where a part's sequence stands now; `None` where its answer ended, or it lost its place, after the step was planned.
    pub(super) fn find(&self, part: &Planned) -> Option<usize> {
        let is_it = |at: &usize| self.running.get(*at).is_some_and(|seq| seq.admitted == part.admitted);
        Some(part.at).filter(is_it).or_else(|| (0..self.running.len()).find(is_it))
    }

    /// Takes over what a step computed of a sequence: positions, full blocks, served tokens.
    pub(super) fn computed(&mut self, part: &Planned) {
        let sequence = &mut self.running[part.at];
        sequence.computed += part.tokens;
        let customer = self.groups[&sequence.group].customer.clone();
        self.queues.serve(&customer, part.tokens);
        publish(&self.config, &mut self.pool, &self.groups, sequence);
    }

    /// Gives the blocks of an answer that ended back; what they hold stays known while they are not needed.
    pub(super) fn retire(&mut self, sequence: &mut Sequence) {
        publish(&self.config, &mut self.pool, &self.groups, sequence);
        self.free(sequence);
    }
}

/// Log probabilities of the prompt need every position computed, once.
fn uses_prefix_cache(config: &SchedulerConfig, group: &Group) -> bool {
    config.prefix_cache && (group.params.prompt_logprobs.is_none() || group.prompt_sent)
}

/// Makes the sequence's full blocks known. They hold known tokens only: refused guesses lie behind `computed`.
fn publish(
    config: &SchedulerConfig,
    pool: &mut BlockPool,
    groups: &HashMap<u64, Group>,
    sequence: &mut Sequence,
) {
    let Some(group) = groups.get(&sequence.group).filter(|_| config.prefix_cache) else { return };
    let full = (sequence.computed / BLOCK).min(sequence.blocks.len());
    sequence.hash_blocks(group.root, full);
    for block in sequence.published..full {
        pool.publish(sequence.blocks[block], sequence.hashes[block]);
    }
    sequence.published = sequence.published.max(full);
}
