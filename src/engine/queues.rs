//! Who is next: fair between customers, interactive before batch.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::request::Priority;
use super::sequence::Group;

/// After this long a batch request goes with the interactive ones.
pub(super) const AGING: Duration = Duration::from_secs(10);

/// Customers whose served tokens are remembered.
const REMEMBERED: usize = 4096;

/// Whether a group makes way for interactive requests.
pub(super) fn is_behind(group: &Group, now: Instant) -> bool {
    group.priority == Priority::Batch && now.duration_since(group.arrived) < AGING
}

/// The waiting one whose turn it is.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    pub(super) customer: Arc<str>,
    priority: Priority,
    /// It makes way for interactive requests.
    pub(super) behind: bool,
}

/// What waits of one customer, oldest first: the turn is the first's of one of the two.
struct Waiting<T> {
    interactive: VecDeque<T>,
    batch: VecDeque<T>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Waiting<T> {
        Waiting { interactive: VecDeque::new(), batch: VecDeque::new() }
    }
}

impl<T> Waiting<T> {
    fn queue(&mut self, priority: Priority) -> &mut VecDeque<T> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Batch => &mut self.batch,
        }
    }

    fn len(&self) -> usize {
        self.interactive.len() + self.batch.len()
    }

    /// The first, whether it makes way for interactive ones, and its priority. A batch one that has waited long enough
    /// goes where its age puts it among the interactive ones.
    fn first(&self, now: Instant, arrived: impl Fn(&T) -> Instant) -> Option<(bool, Priority)> {
        let interactive =
            self.interactive.front().map(|first| (false, arrived(first), Priority::Interactive));
        let batch = self.batch.front().map(|first| {
            let since = arrived(first);
            (now.duration_since(since) < AGING, since, Priority::Batch)
        });
        let first = interactive.into_iter().chain(batch).min_by_key(|(behind, since, _)| (*behind, *since));
        first.map(|(behind, _, priority)| (behind, priority))
    }
}

/// What waits (sequences) by customer, and what each customer was served. Whose turn it is takes a look at each
/// customer, however much waits.
pub(super) struct Queues<T> {
    waiting: HashMap<Arc<str>, Waiting<T>>,
    /// Tokens served to each customer; one that comes back starts with the least served active one's.
    served: HashMap<Arc<str>, u64>,
}

impl<T> Default for Queues<T> {
    fn default() -> Queues<T> {
        Queues { waiting: HashMap::new(), served: HashMap::new() }
    }
}

impl<T> Queues<T> {
    pub(super) fn len(&self) -> usize {
        self.waiting.values().map(Waiting::len).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Customers of whom something waits.
    pub(super) fn customers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.waiting.keys()
    }

    /// Queues one behind its customer's others; `running` are the customers with running sequences.
    pub(super) fn push_back(&mut self, customer: Arc<str>, priority: Priority, one: T, running: &[Arc<str>]) {
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
        self.waiting.entry(customer).or_default().queue(priority).push_back(one);
    }

    /// Puts one back before its customer's others.
    pub(super) fn push_front(&mut self, customer: Arc<str>, priority: Priority, one: T) {
        self.waiting.entry(customer).or_default().queue(priority).push_front(one);
    }

    /// Counts tokens that were computed for a customer.
    pub(super) fn serve(&mut self, customer: &Arc<str>, tokens: usize) {
        *self.served.entry(customer.clone()).or_insert(0) += tokens as u64;
    }

    /// Whose turn it is: interactive before batch, customers with less than their share of the running sequences
    /// before others (`held` says how many it has), then the customer that was served the fewest tokens; of equals, who
    /// holds fewer: a customer that comes back starts as the equal of those that it finds.
    pub(super) fn next_turn(
        &self,
        now: Instant,
        arrived: impl Fn(&T) -> Instant,
        share: usize,
        held: impl Fn(&Arc<str>) -> usize,
    ) -> Option<Turn> {
        let firsts = self.waiting.iter().filter_map(|(customer, waiting)| {
            waiting.first(now, &arrived).map(|(behind, priority)| (behind, customer, priority))
        });
        let next = firsts.min_by_key(|(behind, customer, _)| {
            let served = self.served.get(*customer).copied().unwrap_or(0);
            let held = held(customer);
            (*behind, held >= share, served, held, *customer)
        });
        next.map(|(behind, customer, priority)| Turn { customer: customer.clone(), priority, behind })
    }

    /// The one whose turn it is.
    pub(super) fn get_mut(&mut self, turn: &Turn) -> Option<&mut T> {
        self.waiting.get_mut(&turn.customer)?.queue(turn.priority).front_mut()
    }

    /// Takes the one whose turn it is.
    pub(super) fn take(&mut self, turn: &Turn) -> Option<T> {
        let waiting = self.waiting.get_mut(&turn.customer)?;
        let one = waiting.queue(turn.priority).pop_front();
        if waiting.len() == 0 {
            self.waiting.remove(&turn.customer);
        }
        one
    }

    /// Takes out those that `ends` says so of.
    pub(super) fn remove(&mut self, ends: impl Fn(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for waiting in self.waiting.values_mut() {
            for queue in [&mut waiting.interactive, &mut waiting.batch] {
                if queue.iter().any(&ends) {
                    let (gone, kept): (VecDeque<_>, _) = std::mem::take(queue).into_iter().partition(&ends);
                    *queue = kept;
                    removed.extend(gone);
                }
            }
        }
        self.waiting.retain(|_, waiting| waiting.len() > 0);
        removed
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Names and seconds of arrival.
    type One = (&'static str, u64);

    const BATCH: Priority = Priority::Batch;
    const INTERACTIVE: Priority = Priority::Interactive;

    fn queues(waiting: &[(&str, Priority, One)]) -> Queues<One> {
        let mut queues = Queues::default();
        for (customer, priority, one) in waiting {
            queues.push_back(Arc::from(*customer), *priority, *one, &[]);
        }
        queues
    }

    /// All that waits in the order of its turns, `now` seconds after the clock's start.
    fn order(mut queues: Queues<One>, now: u64) -> Vec<&'static str> {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let turns = std::iter::from_fn(|| {
            let turn = queues.next_turn(at(now), |one| at(one.1), 1, |_| 0)?;
            let customer = turn.customer.clone();
            queues.serve(&customer, 1);
            queues.take(&turn)
        });
        turns.map(|(name, _)| name).collect()
    }

    #[test]
    fn a_batch_request_goes_last_until_it_is_old_and_then_where_its_age_puts_it() {
        let waiting = [
            ("a", BATCH, ("old", 0)),
            ("a", INTERACTIVE, ("quick", 5)),
            ("a", BATCH, ("new", 6)),
            ("a", INTERACTIVE, ("later", 7)),
        ];
        assert_eq!(order(queues(&waiting), 9), ["quick", "later", "old", "new"]);
        assert_eq!(order(queues(&waiting), 10), ["old", "quick", "later", "new"]);
        assert_eq!(order(queues(&waiting), 16), ["old", "quick", "new", "later"]);
        // Among customers too.
        let waiting = [("a", BATCH, ("old", 0)), ("b", INTERACTIVE, ("quick", 5))];
        assert_eq!(order(queues(&waiting), 9), ["quick", "old"]);
        assert_eq!(order(queues(&waiting), 10), ["old", "quick"]);
    }

    #[test]
    fn who_was_served_least_is_next_and_who_lost_its_place_is_its_customers_first() {
        let mut queues = queues(&[
            ("a", INTERACTIVE, ("a1", 0)),
            ("a", INTERACTIVE, ("a2", 0)),
            ("b", INTERACTIVE, ("b1", 0)),
            ("b", INTERACTIVE, ("b2", 0)),
        ]);
        queues.push_front(Arc::from("b"), INTERACTIVE, ("b0", 3));
        queues.serve(&Arc::from("a"), 1);
        assert_eq!(queues.remove(|one| one.0 == "b1"), [("b1", 0)]);
        assert_eq!(queues.len(), 4);
        assert_eq!(order(queues, 5), ["b0", "a1", "b2", "a2"]);
    }

    #[test]
    fn a_turn_looks_at_each_customer_and_not_at_all_that_waits() {
        let waiting: Vec<_> = (0..3000)
            .map(|at| (["a", "b", "c"][at % 3], [INTERACTIVE, BATCH][at / 3 % 2], ("", at as u64)))
            .collect();
        let (queues, looks, now) = (queues(&waiting), Cell::new(0), Instant::now());
        let arrived = |_: &One| {
            looks.set(looks.get() + 1);
            now
        };
        assert!(queues.next_turn(now, arrived, 1, |_| 0).is_some());
        assert_eq!(looks.get(), 2 * 3);
    }
}
