//! Which tokens the next step computes.
//!
//! - Every running sequence asks for `tokens - computed` tokens: one in decode, a chunk in prefill. They share
//!   `max_num_batched_tokens`, decodes first, so a long prompt slows nobody down by more than its chunk.
//! - Waiting requests are admitted by customer: interactive before batch, then the customer that was served the fewest
//!   tokens. A batch request that has waited for [`AGING`] counts as interactive, so nothing starves.
//! - A sequence that finds no block takes one from the youngest running sequence, which goes back to its queue and is
//!   recomputed (its full blocks stay in the prefix cache while they can).

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{KvSpec, SeqSpan};

use super::block_pool::{BlockPool, BlockState};
use super::constraint::BitMask;
use super::handle::EngineLimits;
use super::request::{EngineError, Priority};
use super::sequence::{Group, Sequence};
use super::step::{SampleSpec, StepPlan};

const BLOCK: usize = KvSpec::BLOCK_SIZE;

/// After this long a batch request goes with the interactive ones.
const AGING: Duration = Duration::from_secs(10);

/// Limits of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct SchedulerConfig {
    pub(super) max_num_seqs: usize,
    pub(super) max_num_batched_tokens: usize,
    pub(super) prefix_cache: bool,
    pub(super) limits: EngineLimits,
}

/// Waiting and running sequences and the blocks that they hold.
pub(super) struct Scheduler {
    pub(super) config: SchedulerConfig,
    pub(super) pool: BlockPool,
    pub(super) groups: HashMap<u64, Group>,
    pub(super) running: Vec<Sequence>,
    /// Waiting sequences by customer, oldest first.
    queues: HashMap<Arc<str>, VecDeque<Sequence>>,
    /// Tokens served to each customer, less what the least served one had when a customer came.
    served: HashMap<Arc<str>, u64>,
    admissions: u64,
    pub(super) preemptions: u64,
    pub(super) prefix_queries: u64,
    pub(super) prefix_hits: u64,
    /// Sequences of the planned step.
    pub(super) planned: Vec<Planned>,
    /// Groups whose grammar failed while the step was planned: they are not in it.
    pub(super) failed: Vec<(u64, EngineError)>,
}

/// A sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    /// Index into `running`.
    pub(super) at: usize,
    pub(super) tokens: usize,
    /// Rows of the plan's prompt log probabilities that are its own.
    pub(super) logprob_rows: usize,
}

/// What the head of the queues takes from the pool when it is admitted.
struct Admission {
    customer: Arc<str>,
    at: usize,
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
            queues: HashMap::new(),
            served: HashMap::new(),
            admissions: 0,
            preemptions: 0,
            prefix_queries: 0,
            prefix_hits: 0,
            planned: Vec::new(),
            failed: Vec::new(),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queues.values().all(VecDeque::is_empty)
    }

    /// Queues a sequence of an admitted group.
    pub(super) fn enqueue(&mut self, sequence: Sequence) {
        let customer = self.groups[&sequence.group].customer.clone();
        let known = self.queues.get(&customer).is_some_and(|queue| !queue.is_empty())
            || self.running.iter().any(|seq| self.groups[&seq.group].customer == customer);
        if !known {
            // A customer that comes back does not bring credit from its absence.
            let active = self.active_customers();
            let least = active.iter().filter_map(|name| self.served.get(name)).min().copied().unwrap_or(0);
            let served = self.served.entry(customer.clone()).or_insert(0);
            *served = (*served).max(least);
            if self.served.len() > 4096 {
                self.served.retain(|name, _| active.contains(name) || *name == customer);
            }
        }
        self.queues.entry(customer).or_default().push_back(sequence);
    }

    fn active_customers(&self) -> Vec<Arc<str>> {
        let waiting = self.queues.iter().filter(|(_, queue)| !queue.is_empty()).map(|(name, _)| name.clone());
        waiting.chain(self.running.iter().map(|seq| self.groups[&seq.group].customer.clone())).collect()
    }

    /// Removes the waiting sequences that `ends` says so of.
    pub(super) fn remove_waiting(&mut self, ends: impl Fn(&Group) -> bool) -> Vec<Sequence> {
        let Scheduler { queues, groups, .. } = self;
        let mut removed = Vec::new();
        for queue in queues.values_mut() {
            if queue.iter().any(|sequence| ends(&groups[&sequence.group])) {
                let all = std::mem::take(queue).into_iter();
                let (gone, kept): (VecDeque<_>, _) = all.partition(|sequence| ends(&groups[&sequence.group]));
                *queue = kept;
                removed.extend(gone);
            }
        }
        queues.retain(|_, queue| !queue.is_empty());
        removed
    }

    /// Drops the waiting sequences of these groups.
    pub(super) fn forget_waiting(&mut self, ended: &[u64]) {
        self.queues.values_mut().for_each(|queue| queue.retain(|sequence| !ended.contains(&sequence.group)));
        self.queues.retain(|_, queue| !queue.is_empty());
    }

    /// Takes a running sequence out and frees its blocks.
    pub(super) fn release(&mut self, mut sequence: Sequence) -> Sequence {
        self.free(&mut sequence);
        sequence
    }

    /// Last block first, so that the beginning of a prefix is evicted last.
    fn free(&mut self, sequence: &mut Sequence) {
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
        let mut budget = self.config.max_num_batched_tokens;
        // Decodes before prefills, older before younger.
        self.running.sort_by_key(|seq| (seq.pending() > 1, seq.admitted));
        let mut at = 0;
        while at < self.running.len() && budget > 0 {
            let tokens = self.running[at].pending().min(budget);
            let blocks = (self.running[at].computed + tokens).div_ceil(BLOCK);
            if self.grow(at, blocks) {
                self.planned.push(Planned { at, tokens, logprob_rows: 0 });
                budget -= tokens;
                at += 1;
            }
            // Else the sequence itself was preempted and another stands at `at`.
        }
        while budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(admission) = self.next_admission(budget) else { break };
            budget -= admission.tokens;
            self.admit(&admission);
        }
        for planned in 0..self.planned.len() {
            let Planned { at, tokens, .. } = self.planned[planned];
            self.planned[planned].logprob_rows = self.add_to_plan(plan, at, tokens);
        }
    }

    /// Gives running sequence `at` blocks up to `blocks`, preempting the youngest if there are none. False when `at`
    /// itself was preempted.
    fn grow(&mut self, at: usize, blocks: usize) -> bool {
        while self.running[at].blocks.len() < blocks {
            if let Some(block) = self.pool.allocate() {
                self.running[at].blocks.push(block);
                continue;
            }
            // Only sequences that are not in this plan yet can go; the youngest of them does.
            let planned = |index: usize| self.planned.iter().any(|planned| planned.at == index);
            let victim = (0..self.running.len())
                .filter(|index| !planned(*index))
                .max_by_key(|index| self.running[*index].admitted)
                .unwrap_or(at);
            let mut sequence = self.running.remove(victim);
            debug_assert!(
                self.planned.iter().all(|planned| planned.at < victim),
                "planned sequences stand in front"
            );
            self.free(&mut sequence);
            self.preemptions += 1;
            self.put_back(sequence);
            if victim == at {
                return false;
            }
        }
        true
    }

    fn put_back(&mut self, mut sequence: Sequence) {
        self.free(&mut sequence);
        let customer = self.groups[&sequence.group].customer.clone();
        self.queues.entry(customer).or_default().push_front(sequence);
    }

    /// The customer whose turn it is, and which of its waiting sequences.
    fn next_turn(&self) -> Option<(Arc<str>, usize)> {
        let now = Instant::now();
        let turn = |queue: &VecDeque<Sequence>| {
            queue
                .iter()
                .enumerate()
                .map(|(at, seq)| {
                    let group = &self.groups[&seq.group];
                    let behind =
                        group.priority == Priority::Batch && now.duration_since(group.arrived) < AGING;
                    (behind, at)
                })
                .min()
        };
        self.queues
            .iter()
            .filter_map(|(customer, queue)| turn(queue).map(|(behind, at)| (behind, customer, at)))
            .min_by_key(|(behind, customer, _)| {
                (*behind, self.served.get(*customer).copied().unwrap_or(0), (*customer).clone())
            })
            .map(|(_, customer, at)| (customer.clone(), at))
    }

    /// What the waiting sequence whose turn it is would take; `None` when nothing waits or the pool has no room for
    /// it. Takes nothing yet: a head of the queue that does not fit is asked again every step.
    fn next_admission(&mut self, budget: usize) -> Option<Admission> {
        let (customer, at) = self.next_turn()?;
        let sequence = self.queues.get_mut(&customer)?.get_mut(at)?;
        let group = &self.groups[&sequence.group];
        let (mut known, mut cached) = (0, 0);
        // Log probabilities of the prompt need every position computed, once.
        if self.config.prefix_cache && (group.params.prompt_logprobs.is_none() || group.prompt_sent) {
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
        (self.pool.available() >= fresh + cached).then_some(Admission { customer, at, known, fresh, tokens })
    }

    /// Moves a waiting sequence to the running ones and plans its first tokens.
    fn admit(&mut self, admission: &Admission) {
        let Some(queue) = self.queues.get_mut(&admission.customer) else { return };
        let Some(mut sequence) = queue.remove(admission.at) else { return };
        if queue.is_empty() {
            self.queues.remove(&admission.customer);
        }
        let known = sequence.hashes[..admission.known].iter().map_while(|hash| self.pool.acquire(hash));
        sequence.blocks.extend(known);
        sequence.blocks.extend((0..admission.fresh).map_while(|_| self.pool.allocate()));
        debug_assert_eq!(sequence.blocks.len(), admission.known + admission.fresh, "the room was checked");
        sequence.published = admission.known;
        sequence.computed = admission.known * BLOCK;
        self.admissions += 1;
        sequence.admitted = self.admissions;
        if let Some(group) = self.groups.get_mut(&sequence.group) {
            if self.config.prefix_cache && (group.params.prompt_logprobs.is_none() || group.prompt_sent) {
                self.prefix_queries += sequence.tokens.len() as u64;
                self.prefix_hits += sequence.computed as u64;
            }
            group.admit(Instant::now(), sequence.computed);
        }
        self.planned.push(Planned { at: self.running.len(), tokens: admission.tokens, logprob_rows: 0 });
        self.running.push(sequence);
    }

    /// Adds running sequence `at`; returns how many rows of prompt log probabilities it asked for.
    fn add_to_plan(&mut self, plan: &mut StepPlan, at: usize, tokens: usize) -> usize {
        let sequence = &mut self.running[at];
        let group = &self.groups[&sequence.group];
        let start = plan.input_ids.len() as u32;
        let (from, to) = (sequence.computed, sequence.computed + tokens);
        plan.sequences.push(SeqSpan {
            query_start: start,
            query_len: tokens as u32,
            context_len: to as u32,
            table_start: plan.block_tables.len() as u32,
        });
        plan.block_tables.extend_from_slice(&sequence.blocks);
        for position in from..to {
            plan.input_ids.push(sequence.tokens[position]);
            plan.positions.push(position as u32);
            plan.slot_mapping
                .push(sequence.blocks[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32);
        }
        let rows_before = plan.prompt_logprobs.len();
        if let Some(top) = group.params.prompt_logprobs.filter(|_| !group.prompt_sent) {
            let wanted = from..to.min(sequence.prompt_len.saturating_sub(1));
            for position in wanted.filter(|position| position + 1 > group.prompt_logprobs.len()) {
                let row = start + (position - from) as u32;
                plan.prompt_logprobs.push((row, sequence.tokens[position + 1], top));
            }
        }
        if to == sequence.tokens.len() && group.max_tokens > 0 {
            let mask = match fill_mask(sequence, self.config.limits.vocab_size) {
                Ok(mask) => mask,
                Err(message) => {
                    // Its tokens stay in the step, unused; the others of the plan are not touched.
                    self.failed.push((sequence.group, EngineError::Constraint { message }));
                    None
                }
            };
            let early = (sequence.tokens.len() - sequence.prompt_len) < group.min_tokens as usize;
            plan.samples.push(SampleSpec {
                row: plan.input_ids.len() as u32 - 1,
                params: group.params.clone(),
                seed: group.seed.wrapping_add(u64::from(sequence.index)),
                position: sequence.tokens.len() as u32,
                history: sequence.counts.clone(),
                banned: early.then(|| group.stop.clone()),
                mask,
            });
        }
        plan.prompt_logprobs.len() - rows_before
    }

    /// Takes over what a step computed: positions, full blocks, served tokens. Returns which running sequences drew a
    /// token, in the order of the plan's samples.
    pub(super) fn computed(&mut self, planned: &[Planned]) -> Vec<usize> {
        let mut drew = Vec::new();
        for &Planned { at, tokens, .. } in planned {
            let sequence = &mut self.running[at];
            let group = &self.groups[&sequence.group];
            sequence.computed += tokens;
            *self.served.entry(group.customer.clone()).or_insert(0) += tokens as u64;
            if self.config.prefix_cache {
                let full = sequence.computed / BLOCK;
                sequence.hash_blocks(group.root, full);
                for block in sequence.published..full {
                    self.pool.publish(sequence.blocks[block], sequence.hashes[block]);
                }
                sequence.published = full;
            }
            if sequence.computed == sequence.tokens.len() {
                drew.push(at);
            }
        }
        drew
    }

    /// Adds a drawn token to running sequence `at`.
    ///
    /// # Errors
    /// When the grammar panicked; the sequence must then end.
    pub(super) fn push_token(&mut self, at: usize, id: u32) -> Result<(), EngineError> {
        let sequence = &mut self.running[at];
        sequence.push(id);
        let Some(constraint) = &mut sequence.constraint else { return Ok(()) };
        caught(|| constraint.advance(id)).map_err(|message| EngineError::Constraint { message })
    }
}

/// What the sequence's grammar allows next; `None` without a grammar.
fn fill_mask(sequence: &mut Sequence, vocab: u32) -> Result<Option<BitMask>, String> {
    let Some(constraint) = &mut sequence.constraint else { return Ok(None) };
    let mut mask = BitMask::none(vocab as usize);
    caught(|| constraint.fill(&mut mask)).map(|()| Some(mask))
}

/// Runs code that is not the engine's; a panic in it becomes its message.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
    })
}
