//! What goes into a generation and what comes out of it, in words.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use crate::engine::{FinishReason, Priority, SamplingParams, Usage};
use crate::text::Grammar;

/// What the model is to continue.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Text as it is; the tokenizer adds the model's own beginning token.
    Text(String),
    /// Text as it is, without that token.
    Bare(String),
    /// Token ids as they are.
    Tokens(Vec<u32>),
    /// A conversation in the shape of OpenAI's `messages`, brought to text by the model's chat template.
    Chat {
        /// `{"role", "content", ..}` objects.
        messages: Vec<Value>,
        /// OpenAI's `tools`, for templates that know them.
        tools: Option<Vec<Value>>,
        /// Whether the template opens the assistant's turn.
        add_generation_prompt: bool,
        /// Whether the final message is left open, for the answer to go on with it.
        continue_final_message: bool,
        /// More variables for the template (`chat_template_kwargs`).
        extra: serde_json::Map<String, Value>,
    },
}

impl Prompt {
    /// A conversation whose next turn is the assistant's, which may call `tools`.
    pub fn chat(messages: Vec<Value>, tools: Option<Vec<Value>>) -> Prompt {
        Prompt::Chat {
            messages,
            tools,
            add_generation_prompt: true,
            continue_final_message: false,
            extra: serde_json::Map::new(),
        }
    }

    /// Bytes of its texts, or of its messages' contents.
    pub(super) fn content_bytes(&self) -> usize {
        let bytes = |content: &Value| match content {
            Value::String(text) => text.len(),
            Value::Array(parts) => {
                parts.iter().filter_map(|part| part.get("text")?.as_str()).map(str::len).sum()
            }
            _ => 0,
        };
        match self {
            Prompt::Text(text) | Prompt::Bare(text) => text.len(),
            Prompt::Tokens(_) => 0,
            Prompt::Chat { messages, .. } => {
                messages.iter().filter_map(|message| message.get("content")).map(bytes).sum()
            }
        }
    }

    /// Whether its text has parts that [`Prompt::content_bytes`] does not count.
    pub(super) fn has_more(&self) -> bool {
        let Prompt::Chat { messages, tools, extra, .. } = self else { return false };
        let calls = || messages.iter().any(|message| message.get("tool_calls").is_some());
        tools.is_some() || !extra.is_empty() || calls()
    }
}

/// A grammar and the field of the request that asked for it.
#[derive(Debug, Clone)]
pub struct GrammarField {
    /// What the answer follows.
    pub grammar: Grammar,
    /// The field that refusals name.
    pub field: &'static str,
}

/// One prompt to generate from, with `n` answers.
///
/// [`GenerateRequest::new`] fills in what an unadorned request means; set the fields that differ.
#[derive(Clone)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How tokens are drawn. `sampling.logprobs` asks for log probabilities of the answer,
    /// `sampling.prompt_logprobs` for those of the prompt.
    pub sampling: SamplingParams,
    /// Most tokens of one answer; `None`: what the model's window leaves.
    pub max_tokens: Option<u32>,
    /// No stop before this many tokens.
    pub min_tokens: u32,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Whether a text that ended the answer is kept at its end.
    pub include_stop_str_in_output: bool,
    /// Token ids that end an answer, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Go on past the model's own end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Begin every answer with the prompt's own text.
    pub echo: bool,
    /// Keep only so many of the prompt's last tokens; `None`: a prompt that is too long is refused.
    pub keep_last: Option<usize>,
    /// How many answers.
    pub n: u32,
    /// Whose request.
    pub customer: Arc<str>,
    /// Before or behind bulk work.
    pub priority: Priority,
    /// Keeps prompts with different salts from sharing cache blocks.
    pub cache_salt: Option<Arc<str>>,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// The name of the adapter that answers; `None`: the base model.
    pub adapter: Option<Arc<str>>,
    /// A grammar that every answer follows.
    pub grammar: Option<GrammarField>,
}

impl std::fmt::Debug for GenerateRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerateRequest")
            .field("prompt", &self.prompt)
            .field("sampling", &self.sampling)
            .field("max_tokens", &self.max_tokens)
            .field("stop", &self.stop)
            .field("n", &self.n)
            .field("customer", &self.customer)
            .field("grammar", &self.grammar)
            .finish_non_exhaustive()
    }
}

impl GenerateRequest {
    /// One interactive answer of customer `default` to `prompt`, drawn as `sampling` says.
    ///
    /// [`Generator::default_sampling`](super::Generator::default_sampling) has the model's own sampling.
    pub fn new(prompt: Prompt, sampling: SamplingParams) -> GenerateRequest {
        GenerateRequest {
            prompt,
            sampling,
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            include_stop_str_in_output: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            skip_special_tokens: true,
            echo: false,
            keep_last: None,
            n: 1,
            customer: Arc::from("default"),
            priority: Priority::Interactive,
            cache_salt: None,
            deadline: None,
            adapter: None,
            grammar: None,
        }
    }
}

/// One of the likeliest tokens at a place.
#[derive(Debug, Clone, PartialEq)]
pub struct TopToken {
    /// Its id.
    pub id: u32,
    /// Its text, with U+FFFD where its bytes are not whole characters.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its natural log probability.
    pub logprob: f32,
}

/// One token of a prompt or an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenText {
    /// Its id.
    pub id: u32,
    /// Its text, with U+FFFD where its bytes are not whole characters.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where its text starts in the choice's text (echoed prompt included), in characters:
    /// OpenAI's `text_offset`.
    pub offset: usize,
    /// Its natural log probability, when asked for; the first token of a prompt has none.
    pub logprob: Option<f32>,
    /// The likeliest tokens at its place, best first; empty unless asked for.
    pub top: Vec<TopToken>,
}

/// What ended an answer, where something of the text or the tokens did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// A token: the model's own end or one of `stop_token_ids`.
    Token(u32),
    /// One of `stop`.
    Text(String),
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// The reason.
    pub reason: FinishReason,
    /// vLLM's `stop_reason`: what was met, unless it was the model's own end.
    pub stop: Option<StopCause>,
}

impl Finish {
    /// OpenAI's `finish_reason`: `stop` or `length` (`abort` for a request that was cut off).
    pub fn as_openai(&self) -> &'static str {
        match self.reason {
            FinishReason::Stop(_) => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled | FinishReason::Deadline => "abort",
        }
    }
}

/// What a generation yields, in this order: one `Prompt`, then of every choice its `Delta`s
/// and one `Finished`, at last one `Done`.
#[derive(Debug, Clone)]
pub enum GenerateEvent {
    /// The prompt was computed.
    Prompt {
        /// The prompt's token ids.
        token_ids: Arc<[u32]>,
        /// The prompt's tokens with log probabilities; empty unless `prompt_logprobs` asked for them.
        tokens: Vec<TokenText>,
        /// How many of them came from the prefix cache.
        cached_tokens: u32,
    },
    /// More of one choice.
    Delta {
        /// Which choice.
        index: u32,
        /// The text that is certain now; empty while bytes or a possible stop text are held back.
        text: String,
        /// The tokens that were generated (with `echo`, at first the prompt's).
        tokens: Vec<TokenText>,
    },
    /// One choice is complete.
    Finished {
        /// Which choice.
        index: u32,
        /// How it ended.
        finish: Finish,
    },
    /// All is complete; nothing follows.
    Done(Usage),
}

/// One complete answer.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Which of `n`.
    pub index: u32,
    /// Its text.
    pub text: String,
    /// Its tokens (with `echo`, the prompt's first).
    pub tokens: Vec<TokenText>,
    /// How it ended.
    pub finish: Finish,
}

/// A complete generation.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The prompt's token ids.
    pub prompt_token_ids: Arc<[u32]>,
    /// The prompt's tokens with log probabilities, if asked for.
    pub prompt_tokens: Vec<TokenText>,
    /// The answers by index.
    pub choices: Vec<Choice>,
    /// What it took.
    pub usage: Usage,
}
