//! Which tokens the next step computes.
//!
//! - Every running sequence asks for `tokens - computed` tokens: one in decode, a chunk in prefill. They share
//!   `max_num_batched_tokens`, decodes first, so a long prompt slows nobody down by more than its chunk.
//! - Waiting requests are admitted by customer: interactive before batch, then the customer that was served the fewest
//!   tokens. A batch request that has waited for [`AGING`] counts as interactive, so nothing starves.
//! - A sequence that finds no block takes one from the youngest running sequence, which goes back to its queue and is
//!   recomputed (its full blocks stay in the prefix cache while they can).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{KvSpec, SeqSpan};

use super::block_pool::BlockPool;
use super::constraint::BitMask;
use super::handle::EngineLimits;
use super::request::{Priority, SampledToken};
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
    /// Sequences of the planned step: index into `running` and tokens each.
    pub(super) planned: Vec<(usize, usize)>,
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
    pub(super) fn remove_waiting(&mut self, mut ends: impl FnMut(&Group) -> bool) -> Vec<Sequence> {
        let mut removed = Vec::new();
        for queue in self.queues.values_mut() {
            let kept = VecDeque::with_capacity(queue.len());
            for sequence in std::mem::replace(queue, kept) {
                if ends(&self.groups[&sequence.group]) {
                    removed.push(sequence)
                } else {
                    queue.push_back(sequence)
                }
            }
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        removed
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
        sequence.hashes.clear();
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
                self.planned.push((at, tokens));
                budget -= tokens;
                at += 1;
            }
            // Else the sequence itself was preempted and another stands at `at`.
        }
        while budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(sequence) = self.next_waiting() else { break };
            let tokens = sequence.pending().min(budget);
            let blocks = (sequence.computed + tokens).div_ceil(BLOCK);
            let needed = blocks.saturating_sub(sequence.blocks.len());
            if self.pool.available() < needed {
                self.put_back(sequence);
                break;
            }
            self.running.push(sequence);
            let at = self.running.len() - 1;
            if self.grow(at, blocks) {
                self.planned.push((at, tokens));
                budget -= tokens;
            }
        }
        for planned in 0..self.planned.len() {
            let (at, tokens) = self.planned[planned];
            self.add_to_plan(plan, at, tokens);
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
            let planned = |index: usize| self.planned.iter().any(|(planned, _)| *planned == index);
            let victim = (0..self.running.len())
                .filter(|index| !planned(*index))
                .max_by_key(|index| self.running[*index].admitted)
                .unwrap_or(at);
            let mut sequence = self.running.remove(victim);
            debug_assert!(
                self.planned.iter().all(|(index, _)| *index < victim),
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

    /// The waiting sequence whose turn it is, with the blocks that the prefix cache has for it.
    fn next_waiting(&mut self) -> Option<Sequence> {
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
        let (customer, at) = self
            .queues
            .iter()
            .filter_map(|(customer, queue)| turn(queue).map(|(behind, at)| (behind, customer, at)))
            .min_by_key(|(behind, customer, _)| {
                (*behind, self.served.get(*customer).copied().unwrap_or(0), (*customer).clone())
            })
            .map(|(_, customer, at)| (customer.clone(), at))?;
        let queue = self.queues.get_mut(&customer)?;
        let mut sequence = queue.remove(at)?;
        if queue.is_empty() {
            self.queues.remove(&customer);
        }
        self.admissions += 1;
        sequence.admitted = self.admissions;
        self.reuse_prefix(&mut sequence);
        Some(sequence)
    }

    /// Takes the blocks of the longest known prefix; at least one token is left to compute, for its logits.
    fn reuse_prefix(&mut self, sequence: &mut Sequence) {
        let group = &self.groups[&sequence.group];
        // Log probabilities of the prompt need every position computed.
        if !self.config.prefix_cache || group.params.prompt_logprobs.is_some() {
            return;
        }
        let mut parent = group.root;
        let usable = (sequence.tokens.len() - 1) / BLOCK;
        self.prefix_queries += sequence.tokens.len() as u64;
        for tokens in sequence.tokens.chunks_exact(BLOCK).take(usable) {
            let hash = parent.child(tokens);
            let Some(block) = self.pool.acquire(&hash) else { break };
            sequence.blocks.push(block);
            sequence.hashes.push(hash);
            parent = hash;
        }
        sequence.computed = sequence.blocks.len() * BLOCK;
        self.prefix_hits += sequence.computed as u64;
        if let Some(group) = self.groups.get_mut(&sequence.group)
            && group.first_step.is_none()
        {
            group.cached_tokens = sequence.computed as u32;
        }
    }

    fn add_to_plan(&mut self, plan: &mut StepPlan, at: usize, tokens: usize) {
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
        if let Some(top) = group.params.prompt_logprobs {
            let wanted = from..to.min(sequence.prompt_len.saturating_sub(1));
            for position in wanted.filter(|position| position + 1 > group.prompt_logprobs.len()) {
                let row = start + (position - from) as u32;
                plan.prompt_logprobs.push((row, sequence.tokens[position + 1], top));
            }
        }
        if to == sequence.tokens.len() && group.max_tokens > 0 {
            let mask = sequence.constraint.as_mut().map(|constraint| {
                let mut mask = BitMask::none(self.config.limits.vocab_size as usize);
                constraint.fill(&mut mask);
                mask
            });
            let early = (sequence.tokens.len() - sequence.prompt_len) < group.min_tokens as usize;
            plan.samples.push(SampleSpec {
                row: plan.input_ids.len() as u32 - 1,
                params: group.params.clone(),
                seed: group.seed.wrapping_add(u64::from(sequence.index)),
                position: sequence.tokens.len() as u32,
                history: group
                    .params
                    .has_penalties()
                    .then(|| (group.prompt.clone(), sequence.output().to_vec())),
                banned: if early { group.stop.clone() } else { Arc::from([]) },
                mask,
            });
        }
    }

    /// Takes over what a step computed: positions, full blocks, served tokens. Returns which running sequences drew a
    /// token, in the order of the plan's samples.
    pub(super) fn computed(&mut self) -> Vec<usize> {
        let mut drew = Vec::new();
        for (at, tokens) in std::mem::take(&mut self.planned) {
            let sequence = &mut self.running[at];
            let group = &self.groups[&sequence.group];
            sequence.computed += tokens;
            *self.served.entry(group.customer.clone()).or_insert(0) += tokens as u64;
            if self.config.prefix_cache {
                for block in sequence.hashes.len()..sequence.computed / BLOCK {
                    let parent = sequence.hashes.last().copied().unwrap_or(group.root);
                    let hash = parent.child(&sequence.tokens[block * BLOCK..(block + 1) * BLOCK]);
                    sequence.hashes.push(hash);
                    self.pool.publish(sequence.blocks[block], hash);
                }
            }
            if sequence.computed == sequence.tokens.len() {
                drew.push(at);
            }
        }
        drew
    }

    /// Adds a drawn token to running sequence `at`.
    pub(super) fn push_token(&mut self, at: usize, token: &SampledToken) {
        let sequence = &mut self.running[at];
        sequence.tokens.push(token.id);
        if let Some(constraint) = &mut sequence.constraint {
            constraint.advance(token.id);
        }
    }
}
