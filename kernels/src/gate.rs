//! Lets latency-bound work go before bulk work that shares its cores.
//!
//! Priorities of the operating system were rejected: they need privileges, and two teams that spin on the same cores
//! slow each other down whatever their priorities say.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long nobody must hold the gate before it counts as open: holders let go between two steps.
const QUIET: Duration = Duration::from_micros(300);

/// Who holds the gate makes [`Gate::wait`] wait.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    holders: usize,
    /// When the last holder let go.
    released: Option<Instant>,
}

/// Holds a [`Gate`] until it is dropped.
#[derive(Debug)]
#[must_use = "the gate opens when this is dropped"]
pub struct Held<'a>(&'a Gate);

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new() -> Gate {
        Gate::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the gate until what it returns is dropped. Never waits for those who wait.
    pub fn hold(&self) -> Held<'_> {
        self.lock().holders += 1;
        Held(self)
    }

    /// Waits until nobody has held the gate for a moment, `at_most` so long. Whether it opened.
    pub fn wait(&self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let opens = match (state.holders, state.released) {
                (0, None) => return true,
                (0, Some(released)) if now.duration_since(released) >= QUIET => return true,
                (0, Some(released)) => until.min(released + QUIET),
                _ => until,
            };
            if now >= until {
                return false;
            }
            let left = opens.saturating_duration_since(now);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.holders -= 1;
        if state.holders == 0 {
            state.released = Some(Instant::now());
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_gate_lets_everyone_through_and_a_held_one_no_longer_than_asked() {
        let gate = Gate::new();
        assert!(gate.wait(Duration::ZERO));
        let (first, second) = (gate.hold(), gate.hold());
        assert!(!gate.wait(Duration::from_millis(2)));
        drop(first);
        assert!(!gate.wait(Duration::from_millis(2)));
        drop(second);
        assert!(gate.wait(Duration::from_secs(20)));
    }

    #[test]
    fn who_waits_goes_on_when_the_holder_lets_go() {
        let gate = Gate::new();
        let held = gate.hold();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.wait(Duration::from_secs(20)));
            drop(held);
            assert!(waiting.join().expect("does not panic"));
        });
    }
}
