//! How an op runs.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Team;

/// The way an op is carried out; every op takes it first.
#[derive(Debug, Clone)]
pub enum Exec {
    /// The plain loops that every other way is compared with.
    Reference,
    /// SIMD over a team of threads.
    Simd(Team),
}

impl Exec {
    /// SIMD on `threads` threads (the caller's among them).
    #[must_use]
    pub fn simd(threads: usize) -> Exec {
        Exec::Simd(Team::new(threads))
    }

    /// Runs `work(worker, workers)` on every worker and waits for all.
    pub(crate) fn run(&self, work: &(dyn Fn(usize, usize) + Sync)) {
        match self {
            Exec::Reference => work(0, 1),
            Exec::Simd(team) => team.run(work),
        }
    }

    /// Threads that work on an op.
    #[must_use]
    pub fn threads(&self) -> usize {
        match self {
            Exec::Reference => 1,
            Exec::Simd(team) => team.threads(),
        }
    }

    /// Runs `task(i)` for every `i < tasks`, shared out as workers become free.
    pub(crate) fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        match self {
            Exec::Simd(team) if team.threads() > 1 && tasks > 1 => {
                let next = AtomicUsize::new(0);
                team.run(&|_, _| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= tasks {
                            break;
                        }
                        task(at);
                    }
                });
            }
            _ => (0..tasks).for_each(task),
        }
    }

    /// Runs `task(state, i, item)` for every item, shared out as workers become free. A worker has one of `states` to
    /// itself; at most `states.len()` workers take part.
    pub fn each_with<S: Send, T: Send>(
        &self,
        states: &mut [S],
        items: &mut [T],
        task: &(dyn Fn(&mut S, usize, &mut T) + Sync),
    ) {
        let total = items.len();
        let Some(first) = states.first_mut() else { return };
        let team = match self {
            Exec::Simd(team) if total > 1 && team.threads() > 1 => team,
            _ => return items.iter_mut().enumerate().for_each(|(at, item)| task(first, at, item)),
        };
        let next = AtomicUsize::new(0);
        let workers = states.len();
        let (states, items) = (Apart(states.as_mut_ptr()), Apart(items.as_mut_ptr()));
        team.run(&|worker, _| {
            if worker >= workers {
                return;
            }
            // SAFETY: worker < states.len(), and each worker of a team has its own number: nobody else has this state.
            // The slice outlives `run`, which returns when all workers are done.
            let state = unsafe { &mut *states.get().add(worker) };
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= total {
                    break;
                }
                // SAFETY: at < items.len(), and the counter gives every index out once.
                task(state, at, unsafe { &mut *items.get().add(at) });
            }
        });
    }
}

/// A pointer whose elements workers touch one at a time, each element by one worker.
struct Apart<T>(*mut T);
// SAFETY: made only in `each_with`, which hands every element to one worker; T: Send lets that be another thread.
unsafe impl<T: Send> Sync for Apart<T> {}
impl<T> Apart<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// The part of `0..total` that `worker` of `workers` has, in multiples of `step`.
pub(crate) fn share(total: usize, step: usize, worker: usize, workers: usize) -> std::ops::Range<usize> {
    let units = total.div_ceil(step);
    let from = units * worker / workers * step;
    let to = units * (worker + 1) / workers * step;
    from.min(total)..to.min(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_seen_once_with_a_state_of_its_worker() {
        for (threads, states) in [(1, 1), (3, 3), (3, 2), (2, 5)] {
            let mut seen = vec![0_usize; states];
            let mut items = vec![0_usize; 100];
            Exec::simd(threads).each_with(&mut seen, &mut items, &|state, at, item| {
                *state += 1;
                *item += at;
            });
            assert_eq!(seen.iter().sum::<usize>(), 100);
            assert!(items.iter().enumerate().all(|(at, item)| at == *item));
        }
    }
}
