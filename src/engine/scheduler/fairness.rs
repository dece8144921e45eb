//! Who has a place in the step, and how much of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::queues::{Turn, is_behind};
use super::super::sequence::Sequence;
use super::Scheduler;

/// Longest step of somebody's long work while customers share the engine: whoever comes waits for the one under way.
const SHARED_STEP: Duration = Duration::from_millis(100);

/// How long a customer that was here is expected back.
const RECENT: Duration = Duration::from_secs(10);

/// What shares a step: a customer's interactive work, or its batch work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Flow {
    behind: bool,
    customer: Arc<str>,
}

/// Whether a sequence's rows come after everybody else's: prompts of batch requests. Their answers go on with the
/// others'.
fn is_later(sequence: &Sequence, flow: &Flow) -> bool {
    flow.behind && sequence.pending() > 1
}

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
            places.share,
            |customer| places.held(customer),
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
    pub(super) fn weaker_than(&self, turn: &Turn) -> Option<usize> {
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

    /// Says how many tokens each running sequence may compute in the next step. Customers get even parts of its rows,
    /// interactive work first; a customer whose part is too small for all of its sequences gives them turns. The waiting
    /// sequence whose turn it is counts as one of them. Returns the rows of the step.
    pub(super) fn allot(&mut self) -> usize {
        self.steps += 1;
        self.running.sort_by_key(|sequence| sequence.admitted);
        let arriving = self.arriving(self.config.max_num_batched_tokens);
        let now = Instant::now();
        let flow = |seq: &Sequence| {
            let group = &self.groups[&seq.group];
            Flow { behind: is_behind(group, now), customer: group.customer.clone() }
        };
        let flows: Vec<Flow> = self.running.iter().map(flow).collect();
        let mut first: HashMap<Flow, usize> = HashMap::new();
        let mut later: HashMap<Flow, usize> = HashMap::new();
        for (sequence, flow) in self.running.iter().zip(&flows) {
            let demands = if is_later(sequence, flow) { &mut later } else { &mut first };
            *demands.entry(flow.clone()).or_insert(0) += sequence.pending();
        }
        if let Some((turn, tokens)) = &arriving {
            let flow = Flow { behind: turn.behind, customer: turn.customer.clone() };
            let demands = if flow.behind { &mut later } else { &mut first };
            *demands.entry(flow).or_insert(0) += tokens;
        }
        let rows = self.step_rows(&first, &later, now);
        let mut left = rows;
        for (demands, is_later_pass) in [(first, false), (later, true)] {
            let level = even_level(left, demands.values().copied().collect());
            let taken: usize = demands.values().map(|demand| (*demand).min(level)).sum();
            let mut rounding = left - taken.min(left);
            left -= taken.min(left);
            for (flow, demand) in demands {
                let extra = rounding.min(demand - demand.min(level));
                rounding -= extra;
                let own =
                    |at: &usize| flows[*at] == flow && is_later(&self.running[*at], &flow) == is_later_pass;
                let members: Vec<usize> = (0..flows.len()).filter(own).collect();
                self.share_part(members, demand.min(level) + extra);
            }
        }
        rows
    }

    /// Rows of the next step. While several customers have work, a step takes no longer than as many steps of the one
    /// that wants least: nobody is slowed down by more than the number of those who share. Where another customer was
    /// here a moment ago, it is kept short for when it comes back.
    fn step_rows(
        &mut self,
        first: &HashMap<Flow, usize>,
        later: &HashMap<Flow, usize>,
        now: Instant,
    ) -> usize {
        let most = self.config.max_num_batched_tokens;
        let flows: HashSet<&Flow> = first.keys().chain(later.keys()).collect();
        for flow in &flows {
            self.seen.insert(flow.customer.clone(), now);
        }
        self.seen.retain(|_, seen| now.duration_since(*seen) < RECENT);
        let alone = self.seen.len() == 1 && flows.len() < 2;
        if alone || flows.is_empty() {
            return most;
        }
        let waits_for = |behind: bool| first.iter().filter(move |(flow, _)| flow.behind == behind);
        let least = waits_for(false).map(|(_, demand)| *demand).min();
        let least = least.or_else(|| first.values().chain(later.values()).copied().min()).unwrap_or(most);
        let (own, short) = (self.cost.seconds(least.min(most)), SHARED_STEP.as_secs_f64());
        // Work that would take long alone goes in short steps; what is short is not cut into several.
        let fair = if flows.len() > 1 && own <= short { flows.len() as f64 * own } else { short };
        self.cost.rows_within(fair, most).max(flows.len()).min(most)
    }

    /// Shares a customer's part of the step between its sequences, given in the order of their admission: decodes
    /// first; where not all of them find a row, whoever has waited longest.
    fn share_part(&mut self, mut members: Vec<usize>, mut part: usize) {
        let decodes = members.iter().filter(|at| self.running[**at].pending() == 1).count();
        if part >= decodes {
            members.sort_by_key(|at| self.running[*at].pending() > 1);
        } else {
            members.sort_by_key(|at| self.running[*at].last_step);
        }
        for at in members {
            let sequence = &mut self.running[at];
            sequence.allotted = sequence.pending().min(part);
            part -= sequence.allotted;
            if sequence.allotted > 0 {
                sequence.last_step = self.steps;
            }
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
