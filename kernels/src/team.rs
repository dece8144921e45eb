//! A fork-join team: the calling thread and its workers, for operations of a few microseconds.
//!
//! A step of a small model is some two hundred operations, so a fork must cost about a microsecond. Workers spin for
//! a bounded time after each job and only then park; a caller finds them awake inside a step and pays nothing between
//! steps. Rejected: rayon (a fork through its deques and sleeping workers costs several microseconds and its global
//! pool has no owner), `std::thread::scope` (a thread per operation).

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

use crate::cpu::Isa;

/// Spins of about 20 ns before a worker parks: some 100 µs, longer than the serial gaps inside a step.
const WORKER_SPINS: usize = 5_000;
/// Spins before a waiting caller offers its core to whoever needs it.
const CALLER_SPINS: usize = 2_000;

/// A handle to a fork-join team. Clones share the workers, which end with the last handle.
#[derive(Clone, Debug)]
pub struct Team {
    crew: Option<Arc<Crew>>,
    isa: Isa,
}

type Job = *const (dyn Fn(usize, usize) + Sync);
type Panic = Box<dyn Any + Send>;

/// What caller and workers share.
struct Shared {
    /// Bumped once per job, after `job` is set.
    epoch: AtomicUsize,
    /// Workers that have not finished the job.
    running: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// The team's size; set before the first job.
    workers: AtomicUsize,
    panic: Mutex<Option<Panic>>,
    stop: AtomicBool,
    /// One flag a worker: it parks, or is about to.
    parked: Box<[AtomicBool]>,
}

// SAFETY: `job` is written only by the caller that holds `Crew::busy`, while no worker runs (`running` is 0), and is
// read by workers only between the epoch's release store and their own decrement of `running`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only followed while `Team::run`, which borrows the closure, is on the stack.
unsafe impl Send for Shared {}

struct Crew {
    shared: Arc<Shared>,
    /// Held for the length of a job: a second caller, or a job that forks again, runs alone instead of waiting.
    busy: Mutex<()>,
    threads: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("workers", &self.handles.len()).finish_non_exhaustive()
    }
}

impl Team {
    /// A team of `threads`: the caller of [`Team::run`] and `threads - 1` workers. 0 counts as 1.
    ///
    /// A worker that the system refuses to start is left out; the team is then smaller.
    pub fn new(threads: usize) -> Team {
        Self::with_isa(threads, Isa::detect())
    }

    pub(crate) fn with_isa(threads: usize, isa: Isa) -> Team {
        if threads <= 1 {
            return Team { crew: None, isa };
        }
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            workers: AtomicUsize::new(1),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            parked: (1..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let handles: Vec<_> = (1..threads)
            .map_while(|worker| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("tarn-team-{worker}"))
                    .spawn(move || work(&shared, worker))
                    .ok()
            })
            .collect();
        shared.workers.store(handles.len() + 1, Ordering::Relaxed);
        let threads = handles.iter().map(|handle| handle.thread().clone()).collect();
        Team { crew: Some(Arc::new(Crew { shared, busy: Mutex::new(()), threads, handles })), isa }
    }

    /// The number of threads that a job may run on, the caller included.
    pub fn threads(&self) -> usize {
        self.crew.as_ref().map_or(1, |crew| crew.handles.len() + 1)
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `job(worker, workers)` once on every thread of the team and returns when all are done.
    ///
    /// `workers` is [`Team::threads`], or 1 when the team is busy with another job (a second caller, or a job that
    /// runs a job): a job must be right for any number.
    ///
    /// # Panics
    /// With a thread's panic, after every thread has finished.
    pub fn run(&self, job: &(dyn Fn(usize, usize) + Sync)) {
        let Some(crew) = &self.crew else { return job(0, 1) };
        let Ok(_busy) = crew.busy.try_lock() else { return job(0, 1) };
        let workers = crew.handles.len();
        crew.fork(job);
        let mine = catch_unwind(AssertUnwindSafe(|| job(0, workers + 1)));
        crew.join();
        if let Some(theirs) = crew.shared.take_panic() {
            drop(_busy);
            resume_unwind(theirs);
        }
        if let Err(panic) = mine {
            drop(_busy);
            resume_unwind(panic);
        }
    }

    /// Calls `task(i)` for every `i < tasks`, each once, on whichever thread is free.
    ///
    /// Taking tasks from a counter instead of splitting them evenly keeps the team busy when the system lends a core
    /// to somebody else. Operations write disjoint outputs a task, so results do not depend on who runs what.
    pub fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.crew.is_none() {
            return (0..tasks).for_each(task);
        }
        let next = AtomicUsize::new(0);
        self.run(&|_, _| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= tasks {
                    break;
                }
                task(index);
            }
        });
    }
}

impl Shared {
    fn take_panic(&self) -> Option<Panic> {
        self.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}

impl Crew {
    fn fork(&self, job: &(dyn Fn(usize, usize) + Sync)) {
        // SAFETY: only the lifetime is erased: `join` returns after the last worker's last use of the job, and `run`
        // joins before it gives the borrow back, also when its own share panics.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), Job>(job) };
        // SAFETY: `busy` is held and the last `join` saw `running` at 0, so no worker reads the cell now.
        unsafe { *self.shared.job.get() = Some(job) };
        self.shared.running.store(self.handles.len(), Ordering::Relaxed);
        // SeqCst here and on `parked`: either the worker sees the new epoch or this thread sees it parked.
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (parked, thread) in self.shared.parked.iter().zip(&self.threads) {
            if parked.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }

    fn join(&self) {
        let mut spins = 0;
        while self.shared.running.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < CALLER_SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker catches its job's panics, so it cannot have ended by one.
            let _ = handle.join();
        }
    }
}

/// A worker's life: wait for the next epoch, run the job, report.
fn work(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        wait_for_epoch(shared, &shared.parked[worker - 1], seen);
        seen += 1;
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch moved, so the caller has set the job and waits in `join` until `running` is 0.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        let workers = shared.workers.load(Ordering::Relaxed);
        let Some(job) = job else { continue };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker, workers))) {
            shared.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(panic);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

fn wait_for_epoch(shared: &Shared, parked: &AtomicBool, seen: usize) {
    for _ in 0..WORKER_SPINS {
        if shared.epoch.load(Ordering::Acquire) != seen {
            return;
        }
        std::hint::spin_loop();
    }
    parked.store(true, Ordering::SeqCst);
    while shared.epoch.load(Ordering::SeqCst) == seen {
        std::thread::park();
    }
    parked.store(false, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_the_job_once() {
        for threads in [1, 2, 4] {
            let team = Team::new(threads);
            let calls: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..1000 {
                team.run(&|worker, workers| {
                    assert_eq!(workers, threads);
                    calls[worker].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(calls.iter().all(|count| count.load(Ordering::Relaxed) == 1000));
        }
    }

    #[test]
    fn every_task_runs_once_also_after_the_workers_have_parked() {
        let team = Team::new(3);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            let sum = AtomicUsize::new(0);
            team.each(100, &|task| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_workers_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2);
        for panicking in [0, 1] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|worker, _| assert_ne!(worker, panicking, "planned"));
            }));
            assert!(result.is_err());
            team.run(&|_, workers| assert_eq!(workers, 2));
        }
    }

    #[test]
    fn a_job_inside_a_job_runs_alone() {
        let team = Team::new(2);
        let inner = AtomicUsize::new(0);
        team.run(&|_, _| {
            team.run(&|_, workers| {
                assert_eq!(workers, 1);
                inner.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(inner.into_inner(), 2);
    }
}
