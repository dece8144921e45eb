//! What goes into the engine and what comes out.

use std::sync::Arc;
use std::time::Instant;

use super::adapters::AdapterLease;
use super::constraint::{BitMask, Constraint};

/// Names a request in logs and statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

impl RequestId {
    /// A fresh name.
    #[must_use]
    pub fn new() -> RequestId {
        RequestId(uuid::Uuid::now_v7().as_u64_pair().1)
    }
}

impl Default for RequestId {
    fn default() -> RequestId {
        RequestId::new()
    }
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for it.
    Interactive,
    /// Behind interactive requests, but never starved.
    Batch,
}

/// How tokens are drawn. The defaults are OpenAI's: temperature 1, nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: the smallest set of likeliest tokens with at least this probability.
    pub top_p: f32,
    /// Only the k likeliest.
    pub top_k: Option<u32>,
    /// Only tokens at least this likely, relative to the likeliest.
    pub min_p: f32,
    /// Subtracted once from the logit of every generated token.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time it was generated.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer.
    pub repetition_penalty: f32,
    /// No other token is drawn.
    pub allowed: Option<Arc<BitMask>>,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same tokens, whatever else is in the batch.
    pub seed: Option<u64>,
    /// Log probabilities of generated tokens, with this many of the likeliest.
    pub logprobs: Option<u8>,
    /// Log probabilities of the prompt's tokens, with this many of the likeliest.
    pub prompt_logprobs: Option<u8>,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            allowed: None,
            logit_bias: Vec::new(),
            seed: None,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Always the likeliest token.
    #[must_use]
    pub fn greedy() -> SamplingParams {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    }

    /// Whether earlier tokens change the logits.
    pub(super) fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

/// One prompt to continue, `n` times.
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// Whose it is: queues are fair between customers.
    pub customer: Arc<str>,
    /// Who goes first.
    pub priority: Priority,
    /// Prompts with different salts never share cache blocks.
    pub cache_salt: Option<Arc<str>>,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Most tokens of an answer; with 0 the prompt is computed and nothing is drawn.
    pub max_tokens: u32,
    /// No stop before this many.
    pub min_tokens: u32,
    /// Ids that end an answer, the model's own included.
    pub stop_token_ids: Vec<u32>,
    /// Number of answers.
    pub n: u32,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// The adapter that answers; `None`: the base model.
    pub adapter: Option<AdapterLease>,
    /// A grammar that each answer follows.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("id", &self.id)
            .field("customer", &self.customer)
            .field("prompt_tokens", &self.prompt.len())
            .field("max_tokens", &self.max_tokens)
            .field("n", &self.n)
            .finish_non_exhaustive()
    }
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// Its id.
    pub id: u32,
    /// Its natural log probability under the model, if asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens at its place, best first.
    pub top: Vec<(u32, f32)>,
}

/// Log probabilities at a place of the prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the prompt's own token.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token (`None` when its grammar or something outside the engine ended it).
    Stop(Option<u32>),
    /// `max_tokens` or the window.
    Length,
    /// The caller went away.
    Cancelled,
    /// The deadline passed.
    Deadline,
}

/// What a request took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of all answers.
    pub completion_tokens: u32,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: u32,
    /// Seconds before the first step.
    pub queue_s: f64,
    /// Seconds from the first step to the first token.
    pub prefill_s: f64,
    /// Seconds from the first token to the end.
    pub decode_s: f64,
}

/// What a request yields, in order: `Prompt`, `Token`s and a `Finished` for each answer, then one terminal event.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt was computed.
    Prompt {
        /// One a prompt token, the first `None`; empty unless asked for.
        logprobs: Vec<Option<TokenLogprobs>>,
        /// Tokens that came from the prefix cache.
        cached_tokens: u32,
    },
    /// A token of answer `index`.
    Token {
        /// Which answer.
        index: u32,
        /// The token.
        token: SampledToken,
    },
    /// Answer `index` ended.
    Finished {
        /// Which answer.
        index: u32,
        /// Why.
        reason: FinishReason,
    },
    /// Terminal: all answers ended.
    Done(Usage),
    /// Terminal: the engine failed on this request.
    Failed(EngineError),
}

/// Why logits give no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// Grammar, bans and bias exclude every token.
    #[error("every token is excluded")]
    NothingAllowed,
    /// The model's logits are not numbers.
    #[error("the model's logits are not finite")]
    NotFinite,
}

/// Why the engine failed on a request or could not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A step failed; the engine lives on.
    #[error("the step that computed this request failed: {message}")]
    Step {
        /// What the runner said.
        message: String,
    },
    /// Its grammar panicked; the engine lives on.
    #[error("the grammar of this request failed: {message}")]
    Constraint {
        /// What it said.
        message: String,
    },
    /// No token could be drawn.
    #[error("no token could be drawn: {0}")]
    Sample(#[from] SampleError),
    /// The reader fell too far behind.
    #[error("the reader of this answer was too slow: it was {behind} events behind")]
    SlowReader {
        /// Events that waited for it.
        behind: usize,
    },
    /// The runner could not be built.
    #[error("the engine could not start: {message}")]
    Start {
        /// Why.
        message: String,
    },
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    Stopped,
}
