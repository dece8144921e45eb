//! One answer in the making.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use super::adapters::AdapterLease;
use super::block_pool::BlockHash;
use super::constraint::Grammar;
use super::drafts::Drafter;
use super::handle::{Entry, Place};
use super::request::{
    EngineError, Event, FinishReason, Priority, Request, SamplingParams, TokenLogprobs, Usage,
};
use super::token_counts::TokenCounts;

const BLOCK: usize = crate::model::KvSpec::BLOCK_SIZE;

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
    /// Held until the group ends: its memory stays that long.
    pub(super) adapter: Option<AdapterLease>,
    pub(super) root: BlockHash,
    pub(super) seed: u64,
    events: mpsc::Sender<Event>,
    /// A place of the channel kept for the terminal event, so that one always arrives.
    terminal: Option<mpsc::OwnedPermit<Event>>,
    /// The channel was full.
    overrun: bool,
    /// Its reader has all that it wants.
    satisfied: Arc<AtomicBool>,
    /// Its place in the waiting room, until it is first admitted.
    pub(super) waiting: Option<Place>,
    /// Counted as open until the group is gone.
    _open: Place,
    pub(super) arrived: Instant,
    pub(super) first_step: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) prompt_sent: bool,
    pub(super) prompt_logprobs: Vec<Option<TokenLogprobs>>,
    pub(super) cached_tokens: u32,
    pub(super) completion_tokens: u32,
    /// Which answers have not ended.
    answers: Vec<bool>,
    /// The answers have a sequence each; before, one computes the prompt for all.
    pub(super) forked: bool,
    /// Why the last answer ended.
    pub(super) last_reason: Option<FinishReason>,
}

impl Group {
    pub(super) fn new(request: &mut Request, entry: Entry) -> Group {
        // Every load of an adapter has a number of its own: blocks never outlive the weights that made them.
        let adapter = request.adapter.take();
        let uid = adapter.as_ref().map_or(0, AdapterLease::uid);
        let salt = request.cache_salt.as_deref().unwrap_or("");
        let salt = format!("{}\0{uid}\0{salt}", request.customer);
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
            adapter,
            root: BlockHash::root(&salt),
            terminal: entry.events.clone().try_reserve_owned().ok(),
            events: entry.events,
            overrun: false,
            satisfied: entry.satisfied,
            waiting: Some(entry.waiting),
            _open: entry.open,
            arrived: Instant::now(),
            first_step: None,
            first_token: None,
            prompt_sent: false,
            prompt_logprobs: Vec::new(),
            cached_tokens: 0,
            completion_tokens: 0,
            answers: vec![true; request.n as usize],
            forked: false,
            last_reason: None,
        }
    }

    /// Sends an event and never waits: a closed receiver is noticed by the next `ends`, a full channel as well.
    pub(super) fn send(&mut self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.events.try_send(event) {
            self.overrun = true;
        }
    }

    /// Sends the one event that ends the request.
    pub(super) fn send_terminal(&mut self, event: Event) {
        if let Some(permit) = self.terminal.take() {
            permit.send(event);
        }
    }

    /// Answers that have not ended.
    pub(super) fn open_answers(&self) -> Vec<u32> {
        (0..).zip(&self.answers).filter(|(_, open)| **open).map(|(index, _)| index).collect()
    }

    /// Whether every answer has ended.
    pub(super) fn is_over(&self) -> bool {
        !self.answers.contains(&true)
    }

    /// Ends an answer, once.
    pub(super) fn end_answer(&mut self, index: u32, reason: FinishReason) {
        if let Some(open) = self.answers.get_mut(index as usize).filter(|open| **open) {
            *open = false;
            self.last_reason = Some(reason.clone());
            self.send(Event::Finished { index, reason });
        }
    }

    /// Why its reader no longer waits, or has waited long enough.
    pub(super) fn ended(&self, now: Instant) -> Option<FinishReason> {
        if self.events.is_closed() {
            let satisfied = self.satisfied.load(Ordering::Relaxed);
            return Some(if satisfied { FinishReason::Stop(None) } else { FinishReason::Cancelled });
        }
        self.deadline.filter(|deadline| *deadline <= now).map(|_| FinishReason::Deadline)
    }

    /// How far the reader is behind, where that is too far.
    pub(super) fn overrun(&self) -> Option<EngineError> {
        self.overrun.then(|| EngineError::SlowReader { behind: self.events.max_capacity() - 1 })
    }

    /// Leaves the waiting room: the first of its sequences was admitted.
    pub(super) fn admit(&mut self, now: Instant, cached_tokens: usize) {
        if self.first_step.is_none() {
            self.first_step = Some(now);
            self.cached_tokens = cached_tokens as u32;
            self.waiting = None;
        }
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

/// Runs code that is not the engine's; a panic in it becomes its message.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
    })
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
    /// Hashes of the full blocks of `tokens`, as far as they were needed.
    pub(super) hashes: Vec<BlockHash>,
    /// Blocks whose content the pool knows.
    pub(super) published: usize,
    /// What penalties count; `None` without penalties.
    pub(super) counts: Option<Arc<TokenCounts>>,
    /// Lent to the plan of a step that draws a token of it.
    pub(super) grammar: Option<Grammar>,
    /// Guesses what follows, where speculation is on and it decodes.
    pub(super) drafter: Option<Drafter>,
    /// Tokens that the next step may compute of it.
    pub(super) allotted: usize,
    /// The last step that it had a part in.
    pub(super) last_step: u64,
    /// Order of admission; the youngest is preempted first.
    pub(super) admitted: u64,
}

impl Sequence {
    /// Answer `index` of `group`, nothing computed.
    pub(super) fn new(id: u64, index: u32, group: &Group, grammar: Option<Grammar>) -> Sequence {
        Sequence {
            group: id,
            index,
            tokens: group.prompt.to_vec(),
            prompt_len: group.prompt.len(),
            computed: 0,
            blocks: Vec::new(),
            hashes: Vec::new(),
            published: 0,
            counts: group.params.has_penalties().then(|| Arc::new(TokenCounts::of_prompt(&group.prompt))),
            grammar,
            drafter: None,
            allotted: 0,
            last_step: 0,
            admitted: 0,
        }
    }

    /// Another answer to the same prompt, just computed by `self`; it has no blocks yet.
    ///
    /// # Errors
    /// What the grammar said when it panicked.
    pub(super) fn fork(&self, index: u32) -> Result<Sequence, String> {
        let grammar = self.grammar.as_ref().map(Grammar::fork).transpose()?;
        Ok(Sequence {
            group: self.group,
            index,
            tokens: self.tokens.clone(),
            prompt_len: self.prompt_len,
            computed: self.computed,
            blocks: Vec::new(),
            hashes: self.hashes.clone(),
            published: 0,
            counts: self.counts.clone(),
            grammar,
            drafter: None,
            allotted: 0,
            last_step: 0,
            admitted: 0,
        })
    }

    /// Knows the hashes of its first `blocks` full blocks; `root` is the parent of the first.
    pub(super) fn hash_blocks(&mut self, root: BlockHash, blocks: usize) {
        for at in self.hashes.len()..blocks {
            let parent = self.hashes.last().copied().unwrap_or(root);
            self.hashes.push(parent.child(&self.tokens[at * BLOCK..(at + 1) * BLOCK]));
        }
    }

    /// Adds a drawn token. Those before it are computed: they were the step's input, as known tokens or as drafts.
    pub(super) fn push(&mut self, id: u32) {
        self.computed = self.tokens.len();
        self.tokens.push(id);
        if let Some(counts) = &mut self.counts {
            // The plan that held the other reference is cleared before tokens are taken over: this copies nothing.
            Arc::make_mut(counts).push(id);
        }
    }

    pub(super) fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Known tokens that are not computed yet.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }
}
