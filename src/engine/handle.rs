//! The door to the engine thread.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::request::{Event, Request};
use super::stats::EngineStats;

/// What a request must stay within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most tokens of prompt and answer.
    pub max_model_len: u32,
    /// Tokens that the model knows.
    pub vocab_size: u32,
    /// Tokens of a KV block.
    pub block_size: u32,
    /// KV blocks.
    pub num_blocks: u32,
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many wait already.
    #[error("the server is busy: {waiting} requests wait; try again in {} s", retry_after.as_secs().max(1))]
    QueueFull {
        /// How many wait.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// Prompt and answer do not fit the window.
    #[error("{tokens} tokens of prompt and answer, but this model's context length is {limit} tokens")]
    TooLong {
        /// Tokens wanted.
        tokens: usize,
        /// Tokens possible.
        limit: usize,
    },
    /// The KV cache is smaller than the request, however long it waits.
    #[error(
        "{tokens} tokens need {blocks} KV blocks, but the cache has {total}: start with a larger --kv-cache-mb"
    )]
    NeverFits {
        /// Tokens wanted.
        tokens: usize,
        /// Blocks for them.
        blocks: usize,
        /// Blocks there are.
        total: usize,
    },
    /// A value that makes no sense.
    #[error("{what}")]
    Invalid {
        /// What is wrong.
        what: String,
    },
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    Stopped,
}

pub(super) enum Command {
    Run(Box<Request>, Entry),
    /// Ends one answer of a request.
    StopAnswer(u64, u32),
    Wake,
}

/// What comes with a request: its channel, and its places in the engine's counters.
pub(super) struct Entry {
    /// The request's number in this engine.
    pub(super) id: u64,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) satisfied: Arc<AtomicBool>,
    pub(super) waiting: Place,
    pub(super) open: Place,
}

/// One in a counter of [`Shared`]; dropping it gives it back, wherever the request ends.
pub(super) struct Place {
    shared: Arc<Shared>,
    counter: fn(&Shared) -> &AtomicUsize,
}

impl Place {
    /// A place below `limit`, or how many there are.
    fn take(
        shared: &Arc<Shared>,
        counter: fn(&Shared) -> &AtomicUsize,
        limit: usize,
    ) -> Result<Place, usize> {
        let room = |taken: usize| (taken < limit).then_some(taken + 1);
        counter(shared).fetch_update(Ordering::SeqCst, Ordering::SeqCst, room)?;
        Ok(Place { shared: shared.clone(), counter })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.counter)(&self.shared).fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: EngineLimits,
    pub(super) max_waiting: usize,
    /// Numbers given to requests so far.
    pub(super) requests: AtomicU64,
    /// Requests sent and not yet in the running batch.
    pub(super) waiting: AtomicUsize,
    /// Requests not ended.
    pub(super) open: AtomicUsize,
    /// No new requests.
    pub(super) draining: AtomicBool,
    /// End now.
    pub(super) stop: AtomicBool,
    /// The thread ended.
    pub(super) dead: AtomicBool,
    pub(super) stats: Mutex<EngineStats>,
}

/// Sends requests to the engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: std_mpsc::Sender<Command>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Run(..) => "Run",
            Command::StopAnswer(..) => "StopAnswer",
            Command::Wake => "Wake",
        })
    }
}

impl EngineHandle {
    /// Queues a request. Dropping the stream cancels it.
    ///
    /// # Errors
    /// [`SubmitError`], before anything is queued.
    pub fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        let shared = &self.shared;
        if shared.draining.load(Ordering::SeqCst) || !self.is_alive() {
            return Err(SubmitError::Stopped);
        }
        check(&request, &shared.limits)?;
        let waiting =
            Place::take(shared, |shared| &shared.waiting, shared.max_waiting).map_err(|waiting| {
                let retry_after = Duration::from_secs((waiting as u64 / 32).clamp(1, 60));
                SubmitError::QueueFull { waiting, retry_after }
            })?;
        let open =
            Place::take(shared, |shared| &shared.open, usize::MAX).map_err(|_| SubmitError::Stopped)?;
        let (events, receiver) = mpsc::channel(channel_capacity(&request));
        let satisfied = Arc::new(AtomicBool::new(false));
        let id = shared.requests.fetch_add(1, Ordering::SeqCst);
        let entry = Entry { id, events, satisfied: satisfied.clone(), waiting, open };
        self.commands.send(Command::Run(Box::new(request), entry)).map_err(|_| SubmitError::Stopped)?;
        Ok(EventStream { id, receiver, commands: self.commands.clone(), satisfied })
    }

    /// Whether the engine's thread runs. False for good once it has ended, by a stop or by a panic.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.shared.dead.load(Ordering::SeqCst)
    }

    /// What the engine says about itself.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let mut stats = *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.waiting = stats.waiting.max(self.shared.waiting.load(Ordering::SeqCst));
        stats
    }

    /// What a request must stay within.
    #[must_use]
    pub fn limits(&self) -> EngineLimits {
        self.shared.limits
    }

    /// Takes no new requests; what runs goes on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        let _ = self.commands.send(Command::Wake);
    }

    /// Requests that have not ended.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }
}

/// Events of one answer that wait for its reader; a reader that is further behind is dropped.
const EVENTS_AN_ANSWER: usize = 256;

/// Room for what a reader may be behind, never more than the request can cause, and one for the terminal event.
fn channel_capacity(request: &Request) -> usize {
    let answers = request.n as usize;
    let all = answers.saturating_mul(request.max_tokens as usize + 1) + 1;
    all.min(answers * EVENTS_AN_ANSWER) + 1
}

fn check(request: &Request, limits: &EngineLimits) -> Result<(), SubmitError> {
    let invalid = |what: String| Err(SubmitError::Invalid { what });
    if request.prompt.is_empty() {
        return invalid("the prompt is empty".to_owned());
    }
    if let Some(id) = request.prompt.iter().find(|id| **id >= limits.vocab_size) {
        return invalid(format!("token id {id} is outside the model's vocabulary of {}", limits.vocab_size));
    }
    if request.n == 0 || request.n > 128 {
        return invalid(format!("n is {}, but must be 1 to 128", request.n));
    }
    let tokens = request.prompt.len() + request.max_tokens as usize;
    if tokens > limits.max_model_len as usize {
        return Err(SubmitError::TooLong { tokens, limit: limits.max_model_len as usize });
    }
    let blocks = tokens.div_ceil(limits.block_size as usize);
    if blocks > limits.num_blocks as usize {
        return Err(SubmitError::NeverFits { tokens, blocks, total: limits.num_blocks as usize });
    }
    Ok(())
}

/// A request's events. Dropping it cancels the request.
#[derive(Debug)]
pub struct EventStream {
    id: u64,
    receiver: mpsc::Receiver<Event>,
    commands: std_mpsc::Sender<Command>,
    satisfied: Arc<AtomicBool>,
}

impl EventStream {
    /// Ends the request because its reader has all that it wants (a stop text, say): it counts as stopped, not as
    /// cancelled.
    pub fn stop(self) {
        self.satisfied.store(true, Ordering::Relaxed);
    }

    /// Ends answer `index` as stopped, the others go on. Events of it that are under way still arrive, its
    /// [`Event::Finished`] last; an answer that has ended stays as it is.
    pub fn stop_answer(&self, index: u32) {
        let _ = self.commands.send(Command::StopAnswer(self.id, index));
    }

    /// The next event; `None` after the terminal one.
    pub async fn next(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }

    /// The next event, if there is one.
    #[cfg(test)]
    pub(super) fn try_next(&mut self) -> Option<Event> {
        self.receiver.try_recv().ok()
    }

    /// The next event, waiting on this thread.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.receiver.blocking_recv()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.receiver.close();
        // The engine may be asleep; a cancelled request must not keep its blocks until the next one comes.
        let _ = self.commands.send(Command::Wake);
    }
}
