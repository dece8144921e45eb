//! Who is next: fair between customers, interactive before batch.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::request::Priority;
use super::sequence::{Group, Sequence};

/// After this long a batch request goes with the interactive ones.
pub(super) const AGING: Duration = Duration::from_secs(10);

/// Customers whose served tokens are remembered.
const REMEMBERED: usize = 4096;

/// Whether a group makes way for interactive requests.
pub(super) fn is_behind(group: &Group, now: Instant) -> bool {
    group.priority == Priority::Batch && now.duration_since(group.arrived) < AGING
}

/// The waiting sequence whose turn it is.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    pub(super) customer: Arc<str>,
    /// Its place in the customer's queue.
    pub(super) at: usize,
    /// It makes way for interactive requests.
    pub(super) behind: bool,
}

/// Waiting sequences by customer, oldest first, and what each customer was served.
#[derive(Default)]
pub(super) struct Queues {
    waiting: HashMap<Arc<str>, VecDeque<Sequence>>,
    /// Tokens served to each customer; one that comes back starts with the least served active one's.
    served: HashMap<Arc<str>, u64>,
}

impl Queues {
    pub(super) fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Customers with waiting sequences.
    pub(super) fn customers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.waiting.keys()
    }

    /// Queues a sequence behind its customer's others; `running` are the customers with running sequences.
    pub(super) fn push_back(&mut self, customer: Arc<str>, sequence: Sequence, running: &[Arc<str>]) {
        if !self.waiting.contains_key(&customer) && !running.contains(&customer) {
            // A customer that comes back does not bring credit from its absence.
            let active = self.waiting.keys().chain(running);
            let least = active.filter_map(|name| self.served.get(name)).min().copied().unwrap_or(0);
            let served = self.served.entry(customer.clone()).or_insert(0);
            *served = (*served).max(least);
            if self.served.len() > REMEMBERED {
                let waiting = &self.waiting;
                self.served.retain(|name, _| {
                    waiting.contains_key(name) || running.contains(name) || *name == customer
                });
            }
        }
        self.waiting.entry(customer).or_default().push_back(sequence);
    }

    /// Puts a sequence back before its customer's others.
    pub(super) fn push_front(&mut self, customer: Arc<str>, sequence: Sequence) {
        self.waiting.entry(customer).or_default().push_front(sequence);
    }

    /// Counts tokens that were computed for a customer.
    pub(super) fn serve(&mut self, customer: &Arc<str>, tokens: usize) {
        *self.served.entry(customer.clone()).or_insert(0) += tokens as u64;
    }

    /// Whose turn it is: interactive before batch, customers with less than their share of the running sequences
    /// before others (`has_share` says who has it), then the customer that was served the fewest tokens.
    pub(super) fn next_turn(
        &self,
        groups: &HashMap<u64, Group>,
        has_share: impl Fn(&Arc<str>) -> bool,
    ) -> Option<Turn> {
        let now = Instant::now();
        let first = |queue: &VecDeque<Sequence>| {
            queue.iter().enumerate().map(|(at, seq)| (is_behind(&groups[&seq.group], now), at)).min()
        };
        self.waiting
            .iter()
            .filter_map(|(customer, queue)| first(queue).map(|(behind, at)| (behind, customer, at)))
            .min_by_key(|(behind, customer, _)| {
                let served = self.served.get(*customer).copied().unwrap_or(0);
                (*behind, has_share(customer), served, (*customer).clone())
            })
            .map(|(behind, customer, at)| Turn { customer: customer.clone(), at, behind })
    }

    /// The sequence whose turn it is.
    pub(super) fn get_mut(&mut self, turn: &Turn) -> Option<&mut Sequence> {
        self.waiting.get_mut(&turn.customer)?.get_mut(turn.at)
    }

    /// Takes the sequence whose turn it is.
    pub(super) fn take(&mut self, turn: &Turn) -> Option<Sequence> {
        let queue = self.waiting.get_mut(&turn.customer)?;
        let sequence = queue.remove(turn.at);
        if queue.is_empty() {
            self.waiting.remove(&turn.customer);
        }
        sequence
    }

    /// Takes out the sequences that `ends` says so of.
    pub(super) fn remove(&mut self, ends: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut removed = Vec::new();
        for queue in self.waiting.values_mut() {
            if queue.iter().any(&ends) {
                let (gone, kept): (VecDeque<_>, _) = std::mem::take(queue).into_iter().partition(&ends);
                *queue = kept;
                removed.extend(gone);
            }
        }
        self.waiting.retain(|_, queue| !queue.is_empty());
        removed
    }
}
