//! How an op runs.

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

    /// Runs `task(i)` for every `i < tasks`, shared out as workers become free.
    pub(crate) fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        match self {
            Exec::Simd(team) if team.threads() > 1 && tasks > 1 => {
                let next = std::sync::atomic::AtomicUsize::new(0);
                team.run(&|_, _| {
                    loop {
                        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
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
}

/// The part of `0..total` that `worker` of `workers` has, in multiples of `step`.
pub(crate) fn share(total: usize, step: usize, worker: usize, workers: usize) -> std::ops::Range<usize> {
    let units = total.div_ceil(step);
    let from = units * worker / workers * step;
    let to = units * (worker + 1) / workers * step;
    from.min(total)..to.min(total)
}
