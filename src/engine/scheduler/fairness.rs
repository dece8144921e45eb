//! Who has a place in the step, and how much of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::super::queues::{Turn, is_behind};
use super::Scheduler;

/// Running sequences by customer.
struct Places {
    held: HashMap<Arc<str>, usize>,
    /// What each customer may hold while others wait.
    share: usize,
}

impl Places {
    fn held(&self, customer: &Arc<str>) -> usize {
        self.held.get(customer).copied().unwrap_or(0)
    }
}

impl Scheduler {
    fn places(&self) -> Places {
        let mut held: HashMap<Arc<str>, usize> = HashMap::new();
        for sequence in &self.running {
            *held.entry(self.groups[&sequence.group].customer.clone()).or_insert(0) += 1;
        }
        let arriving = self.queues.customers().filter(|customer| !held.contains_key(*customer)).count();
        let share = self.config.max_num_seqs / (held.len() + arriving).max(1);
        Places { held, share: share.max(1) }
    }

    /// Whose turn it is to be admitted.
    pub(super) fn next_turn(&self) -> Option<Turn> {
        if self.queues.is_empty() {
            return None;
        }
        let places = self.places();
        self.queues.next_turn(
            Instant::now(),
            |sequence| self.groups[&sequence.group].arrived,
            |customer| places.held(customer) >= places.share,
        )
    }

    /// Whether a customer may take another place now: it has not got its share, or nobody else waits.
    pub(super) fn may_take_place(&self, customer: &Arc<str>) -> bool {
        if self.running.len() >= self.config.max_num_seqs {
            return false;
        }
        let places = self.places();
        places.held(customer) < places.share || self.queues.customers().all(|other| other == customer)
    }

    /// Takes places and blocks from weaker sequences for the one whose turn it is, where it finds none.
    pub(super) fn make_way(&mut self) {
        while let Some(turn) = self.next_turn() {
            let room = self.running.len() < self.config.max_num_seqs;
            let budget = self.config.max_num_batched_tokens;
            if room && self.admission(turn.clone(), budget).is_some() {
                return;
            }
            match self.weaker_than(&turn) {
                Some(victim) => self.preempt(victim),
                None => return,
            }
        }
    }

    /// The running sequence that makes way first: a batch one for an interactive one, else one of a customer that has
    /// more than its share for one that has less. Afterwards neither may take it back: they do not take turns.
    fn weaker_than(&self, turn: &Turn) -> Option<usize> {
        let (now, places) = (Instant::now(), self.places());
        let poor = places.held(&turn.customer) < places.share;
        let candidates = self.running.iter().enumerate().filter_map(|(at, sequence)| {
            let group = &self.groups[&sequence.group];
            let behind = is_behind(group, now);
            let rich = places.held(&group.customer) > places.share;
            let makes_way = (behind && !turn.behind) || (behind == turn.behind && rich && poor);
            makes_way.then_some((behind, sequence.admitted, at))
        });
        candidates.max().map(|(_, _, at)| at)
    }

    /// Says how many tokens each running sequence may compute in the next step: decodes one each, then prefills even
    /// parts for each customer, interactive ones first. The waiting sequence whose turn it is counts as one of them.
    pub(super) fn allot(&mut self) {
        let mut left = self.config.max_num_batched_tokens;
        self.running.sort_by_key(|sequence| sequence.admitted);
        for sequence in &mut self.running {
            sequence.allotted = usize::from(sequence.pending() == 1 && left > 0);
            left -= sequence.allotted;
        }
        let arriving = self.arriving(left);
        let now = Instant::now();
        for behind in [false, true] {
            let mut demands: HashMap<Arc<str>, usize> = HashMap::new();
            let of_rank = |group| is_behind(group, now) == behind;
            for sequence in self.running.iter().filter(|seq| seq.pending() > 1) {
                let group = &self.groups[&sequence.group];
                if of_rank(group) {
                    *demands.entry(group.customer.clone()).or_insert(0) += sequence.pending();
                }
            }
            if let Some((turn, tokens)) = arriving.as_ref().filter(|(turn, _)| turn.behind == behind) {
                *demands.entry(turn.customer.clone()).or_insert(0) += tokens;
            }
            let level = even_level(left, demands.values().copied().collect());
            let mut parts: HashMap<Arc<str>, usize> =
                demands.into_iter().map(|(customer, demand)| (customer, demand.min(level))).collect();
            let taken: usize = parts.values().sum();
            let mut rounding = left - taken.min(left);
            for sequence in self.running.iter_mut().filter(|seq| seq.pending() > 1) {
                let group = &self.groups[&sequence.group];
                if !of_rank(group) {
                    continue;
                }
                let Some(part) = parts.get_mut(&group.customer) else { continue };
                let own = sequence.pending().min(*part);
                *part -= own;
                let extra = (sequence.pending() - own).min(if own > 0 || level == 0 { rounding } else { 0 });
                rounding -= extra;
                sequence.allotted = own + extra;
                left -= own + extra;
            }
            // What is left of a part is the arriving sequence's.
            left -= parts.values().sum::<usize>().min(left);
        }
    }

    /// The waiting sequence that can be admitted next, and the tokens that it wants.
    fn arriving(&mut self, budget: usize) -> Option<(Turn, usize)> {
        if budget == 0 || self.running.len() >= self.config.max_num_seqs {
            return None;
        }
        let turn = self.next_turn()?;
        let admission = self.admission(turn.clone(), budget)?;
        Some((turn, admission.tokens))
    }
}

/// The level at which `demands`, each cut to it, take `budget` in all.
fn even_level(mut budget: usize, mut demands: Vec<usize>) -> usize {
    demands.sort_unstable();
    let count = demands.len();
    for (at, demand) in demands.into_iter().enumerate() {
        let level = budget / (count - at);
        if demand > level {
            return level;
        }
        budget -= demand;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::even_level;

    #[test]
    fn small_demands_are_met_and_large_ones_share_the_rest() {
        assert_eq!(even_level(100, vec![10, 500, 500]), 45);
        assert_eq!(even_level(100, vec![100]), usize::MAX);
        assert_eq!(even_level(100, vec![101]), 100);
        assert_eq!(even_level(1, vec![5, 5]), 0);
        assert_eq!(even_level(0, vec![]), usize::MAX);
    }
}
