//! How an operation runs.

use crate::Team;

/// How an operation runs; every operation takes it first.
#[derive(Debug, Clone)]
pub enum Exec {
    /// Plain loops on the calling thread, written to be read: what the other ways are tested against.
    Reference,
    /// Vector code on a team of threads, for the widest instructions that the processor has.
    Simd(Team),
}

impl Exec {
    /// Calls `task(i)` for every `i < tasks`, on the team where there is one.
    pub(crate) fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        match self {
            Exec::Reference => (0..tasks).for_each(task),
            Exec::Simd(team) => team.each(tasks, task),
        }
    }
}
