//! A fork-join team of threads.
//!
//! A decode step is some two hundred small ops, so starting one must cost about a microsecond: workers spin for a
//! short while on an epoch counter before they park. rayon was rejected here: its work-stealing joins cost several
//! microseconds and its global pool would be shared with loading and ingest.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

type Work<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A pool of threads that run one function together; cheap to clone, ends with its last clone.
#[derive(Clone)]
pub struct Team {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({})", self.inner.threads)
    }
}

struct Inner {
    threads: usize,
    shared: Arc<Shared>,
    /// Serialises `run` when clones of a team are used from several threads.
    turn: Mutex<()>,
}

struct Shared {
    /// Rises by one with every piece of work.
    epoch: AtomicU64,
    /// What the current epoch runs, with its lifetime erased; valid until `left` is 0.
    work: Mutex<Option<Work<'static>>>,
    /// Workers that have not finished the current epoch.
    left: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

const SPIN: Duration = Duration::from_micros(60);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Team {
    /// A team of `threads` (at least 1): the caller of [`Team::run`] and `threads - 1` workers.
    #[must_use]
    pub fn new(threads: usize) -> Team {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            work: Mutex::new(None),
            left: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let mut started = 1;
        for worker in 1..threads {
            let shared = shared.clone();
            let spawned = std::thread::Builder::new()
                .name(format!("tarn-team-{worker}"))
                .spawn(move || shared.serve(worker, threads));
            // A system that refuses threads still computes: the team is then smaller.
            match spawned {
                Ok(_) => started += 1,
                Err(_) => break,
            }
        }
        if started < threads {
            // The threads that did start believe in a larger team; end them and stay alone.
            shared.end();
            return Team::new(1);
        }
        Team { inner: Arc::new(Inner { threads, shared, turn: Mutex::new(()) }) }
    }

    /// Threads, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.inner.threads
    }

    /// Runs `work(worker, workers)` once on every thread and returns when all are done.
    ///
    /// # Panics
    /// When `work` panicked on any thread; the team stays usable.
    pub fn run(&self, work: Work<'_>) {
        let threads = self.inner.threads;
        if threads == 1 {
            return work(0, 1);
        }
        let _turn = lock(&self.inner.turn);
        let shared = &self.inner.shared;
        // SAFETY: the lifetime is erased only for the workers, and this function does not return (nor unwind:
        // the caller's own part is caught) before every worker has finished with it (`left` is 0).
        let erased: Work<'static> = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        *lock(&shared.work) = Some(erased);
        shared.left.store(threads - 1, Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if *lock(&shared.sleepers) > 0 {
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| work(0, threads)));
        let mut spins = 0_u32;
        while shared.left.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins.is_multiple_of(4096) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        *lock(&shared.work) = None;
        let worker_panicked = shared.panicked.swap(false, Ordering::Relaxed);
        match own {
            Err(panic) => resume_unwind(panic),
            Ok(()) => assert!(!worker_panicked, "a worker of the team panicked"),
        }
    }
}

impl Shared {
    fn serve(&self, worker: usize, workers: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_past(seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let work = *lock(&self.work);
            if let Some(work) = work {
                if catch_unwind(AssertUnwindSafe(|| work(worker, workers))).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
                self.left.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Spins, then sleeps, until the epoch is past `seen`; returns it.
    fn wait_past(&self, seen: u64) -> u64 {
        let since = Instant::now();
        loop {
            for _ in 0..64 {
                let now = self.epoch.load(Ordering::Acquire);
                if now != seen {
                    return now;
                }
                std::hint::spin_loop();
            }
            if since.elapsed() > SPIN {
                break;
            }
        }
        let mut sleepers = lock(&self.sleepers);
        *sleepers += 1;
        while self.epoch.load(Ordering::SeqCst) == seen {
            sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        }
        *sleepers -= 1;
        self.epoch.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _sleepers = lock(&self.sleepers);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.wake.notify_all();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_once_an_epoch() {
        for threads in [1, 2, 4] {
            let team = Team::new(threads);
            for _ in 0..200 {
                let ran = AtomicUsize::new(0);
                team.run(&|worker, workers| {
                    assert_eq!(workers, threads);
                    ran.fetch_add(1 << (8 * worker), Ordering::Relaxed);
                });
                let all = (0..threads).map(|worker| 1 << (8 * worker)).sum::<usize>();
                assert_eq!(ran.load(Ordering::Relaxed), all);
            }
        }
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2);
        for bad in [0, 1] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|worker, _| assert!(worker != bad, "on purpose"));
            }));
            assert!(caught.is_err());
        }
        let ran = AtomicUsize::new(0);
        team.run(&|_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let team = Team::new(2);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(5));
            let ran = AtomicUsize::new(0);
            team.run(&|_, _| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.load(Ordering::Relaxed), 2);
        }
    }
}
