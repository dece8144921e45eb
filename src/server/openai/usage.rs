//! What requests took, whole and in streams.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::Usage;

/// The shape of completions and chats.
pub(super) fn shown(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

/// What several prompts took together.
pub(super) fn add(sum: &mut Usage, one: &Usage) {
    sum.prompt_tokens += one.prompt_tokens;
    sum.completion_tokens += one.completion_tokens;
    sum.cached_tokens += one.cached_tokens;
}

/// `stream_options`: what a stream says beside its choices.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
    /// vLLM's; it means something only where a last chunk is asked for.
    continuous_usage_stats: Option<bool>,
}

impl StreamOptions {
    fn include_usage(self) -> bool {
        self.include_usage.unwrap_or(false)
    }

    /// A chunk of a choice that has so many tokens: where the last chunk has the usage, the others have that of their
    /// choice, or say that they have none.
    pub(super) fn count(self, mut chunk: Value, prompt_tokens: u32, completion_tokens: u32) -> Value {
        if self.include_usage() {
            let so_far = || shown(&Usage { prompt_tokens, completion_tokens, ..Usage::default() });
            let continuous = self.continuous_usage_stats.unwrap_or(false);
            chunk["usage"] = if continuous { so_far() } else { Value::Null };
        }
        chunk
    }

    /// The last chunk, where it was asked for: one without choices that has the usage of the request.
    pub(super) fn last(self, mut chunk: Value, usage: &Usage) -> Option<Value> {
        chunk["usage"] = shown(usage);
        self.include_usage().then_some(chunk)
    }
}
