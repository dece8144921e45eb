//! One answer in the making.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::block_pool::BlockHash;
use super::constraint::Constraint;
use super::request::{Event, FinishReason, Priority, Request, SamplingParams, TokenLogprobs, Usage};

/// What the answers of one request share.
pub(super) struct Group {
    pub(super) customer: Arc<str>,
    pub(super) priority: Priority,
    pub(super) prompt: Arc<[u32]>,
    pub(super) params: Arc<SamplingParams>,
    pub(super) max_tokens: u32,
    pub(super) min_tokens: u32,
    pub(super) stop: Arc<[u32]>,
    pub(super) deadline: Option<Instant>,
    pub(super) root: BlockHash,
    pub(super) seed: u64,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) arrived: Instant,
    pub(super) first_step: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) prompt_sent: bool,
    pub(super) prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub(super) cached_tokens: u32,
    pub(super) completion_tokens: u32,
    /// Answers that have not ended.
    pub(super) open: u32,
    /// Why the last answer ended, for the statistics.
    pub(super) last_reason: Option<FinishReason>,
}

impl Group {
    pub(super) fn new(request: &mut Request, events: mpsc::Sender<Event>) -> Group {
        let salt = match &request.cache_salt {
            Some(salt) => format!("{}\0{salt}", request.customer),
            None => request.customer.to_string(),
        };
        Group {
            customer: request.customer.clone(),
            priority: request.priority,
            prompt: std::mem::take(&mut request.prompt).into(),
            seed: request.sampling.seed.unwrap_or_else(random_seed),
            params: Arc::new(request.sampling.clone()),
            max_tokens: request.max_tokens,
            min_tokens: request.min_tokens,
            stop: request.stop_token_ids.clone().into(),
            deadline: request.deadline,
            root: BlockHash::root(&salt),
            events,
            arrived: Instant::now(),
            first_step: None,
            first_token: None,
            prompt_sent: false,
            prompt_logprobs: Vec::new(),
            cached_tokens: 0,
            completion_tokens: 0,
            open: request.n,
            last_reason: None,
        }
    }

    /// Sends an event; a closed receiver is noticed by the next `is_abandoned`. The channel holds every event that a
    /// request can cause, so it is never full.
    pub(super) fn send(&self, event: Event) {
        let _ = self.events.try_send(event);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    pub(super) fn usage(&self) -> Usage {
        let now = Instant::now();
        let first_step = self.first_step.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Usage {
            prompt_tokens: self.prompt.len() as u32,
            completion_tokens: self.completion_tokens,
            cached_tokens: self.cached_tokens,
            queue_s: (first_step - self.arrived).as_secs_f64(),
            prefill_s: (first_token - first_step.min(first_token)).as_secs_f64(),
            decode_s: (now - first_token).as_secs_f64(),
        }
    }
}

/// Unpredictable, from the standard library's per-process random keys.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// One of a request's answers.
pub(super) struct Sequence {
    pub(super) group: u64,
    pub(super) index: u32,
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_len: usize,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    pub(super) blocks: Vec<u32>,
    /// Hashes of the full blocks.
    pub(super) hashes: Vec<BlockHash>,
    pub(super) constraint: Option<Box<dyn Constraint>>,
    /// Order of admission; the youngest is preempted first.
    pub(super) admitted: u64,
}

impl Sequence {
    pub(super) fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Whether the next step computes its last known token, so that one can be drawn.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }
}
