//! The response object.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::super::error::ApiError;
use super::super::fields::Fields;
use super::Truncation;
use crate::engine::{FinishReason, SamplingParams, Usage};
use crate::rag::Finish;

/// Most pairs of `metadata`, and the longest keys and values in characters, as with OpenAI.
const METADATA: (usize, usize, usize) = (16, 64, 512);

/// What a request says beside its input and is repeated in its response.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    model: String,
    instructions: Option<String>,
    metadata: BTreeMap<String, String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) previous_response_id: Option<String>,
    pub(super) store: bool,
    pub(super) truncation: Truncation,
    parallel_tool_calls: bool,
    temperature: f32,
    top_p: f32,
    /// OpenAI's names for who asks; they are repeated, and mean nothing here.
    user: Option<String>,
    safety_identifier: Option<String>,
    prompt_cache_key: Option<String>,
}

impl Asked {
    pub(super) fn take(fields: &mut Fields, model: &str) -> Result<Asked, ApiError> {
        let metadata: BTreeMap<String, String> = fields.take("metadata")?.unwrap_or_default();
        let (pairs, key, value) = METADATA;
        let long = |text: &str, most: usize| text.chars().count() > most;
        if metadata.len() > pairs || metadata.iter().any(|(k, v)| long(k, key) || long(v, value)) {
            let message = format!("metadata may hold {pairs} pairs of at most {key} and {value} characters");
            return Err(ApiError::invalid("metadata", message));
        }
        let max_output_tokens = fields.take("max_output_tokens")?;
        if max_output_tokens == Some(0) {
            return Err(ApiError::invalid("max_output_tokens", "max_output_tokens must be at least 1"));
        }
        Ok(Asked {
            model: model.to_owned(),
            instructions: fields.take("instructions")?,
            metadata,
            max_output_tokens,
            previous_response_id: fields.take("previous_response_id")?,
            store: fields.take("store")?.unwrap_or(true),
            truncation: fields.take("truncation")?.unwrap_or_default(),
            parallel_tool_calls: fields.take("parallel_tool_calls")?.unwrap_or(true),
            temperature: 1.0,
            top_p: 1.0,
            user: fields.take("user")?,
            safety_identifier: fields.take("safety_identifier")?,
            prompt_cache_key: fields.take("prompt_cache_key")?,
        })
    }

    /// Notes how tokens are drawn, where the model's own defaults filled in.
    pub(super) fn drawn(&mut self, sampling: &SamplingParams) {
        (self.temperature, self.top_p) = (sampling.temperature, sampling.top_p);
    }

    /// The conversation with this request's instructions before it; those of earlier requests are not carried on.
    pub(super) fn under_instructions(&self, messages: Vec<Value>) -> Vec<Value> {
        let instructions = self.instructions.iter().map(|text| json!({"role": "system", "content": text}));
        instructions.chain(messages).collect()
    }
}

/// How far a response is.
#[derive(Debug, Clone)]
enum Status {
    InProgress,
    Completed,
    /// `max_output_tokens` or the window.
    Incomplete,
    Failed(String),
}

/// A response and its one message, as it is made.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    id: String,
    pub(super) message_id: String,
    created: i64,
    pub(super) asked: Asked,
    pub(super) text: String,
    status: Status,
    usage: Option<Usage>,
}

impl Answer {
    pub(super) fn new(asked: Asked) -> Answer {
        let id = |prefix: &str| format!("{prefix}_{}", uuid::Uuid::new_v4().simple());
        Answer {
            id: id("resp"),
            message_id: id("msg"),
            created: super::super::now(),
            asked,
            text: String::new(),
            status: Status::InProgress,
            usage: None,
        }
    }

    /// Notes the end of the generation.
    pub(super) fn finish(&mut self, finish: &Finish, usage: &Usage) {
        self.usage = Some(*usage);
        self.status = match finish.reason {
            FinishReason::Stop(_) => Status::Completed,
            FinishReason::Length => Status::Incomplete,
            FinishReason::Cancelled | FinishReason::Deadline => {
                Status::Failed("the answer was cut off".to_owned())
            }
        };
    }

    /// Notes that there will be no more.
    pub(super) fn fail(&mut self, message: String) {
        self.status = Status::Failed(message);
    }

    /// Whether there is an answer to keep.
    pub(super) fn ended_well(&self) -> bool {
        matches!(self.status, Status::Completed | Status::Incomplete)
    }

    pub(super) fn status(&self) -> &'static str {
        match self.status {
            Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Incomplete => "incomplete",
            Status::Failed(_) => "failed",
        }
    }

    /// The message, with `content`.
    pub(super) fn message(&self, content: Vec<Value>) -> Value {
        let status = if self.ended_well() { self.status() } else { "in_progress" };
        json!({"id": self.message_id, "type": "message", "status": status, "role": "assistant", "content": content})
    }

    /// The message's one part.
    pub(super) fn part(&self) -> Value {
        json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": []})
    }

    /// All of it as it is now.
    pub(super) fn response(&self) -> Value {
        let asked = &self.asked;
        let output = if self.ended_well() { vec![self.message(vec![self.part()])] } else { Vec::new() };
        let error = match &self.status {
            Status::Failed(message) => json!({"code": "server_error", "message": message}),
            _ => Value::Null,
        };
        let incomplete =
            matches!(self.status, Status::Incomplete).then(|| json!({"reason": "max_output_tokens"}));
        json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": self.status(),
            "background": false, "error": error, "incomplete_details": incomplete,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata, "model": asked.model, "output": output,
            "parallel_tool_calls": asked.parallel_tool_calls, "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key, "reasoning": {"effort": null, "summary": null},
            "safety_identifier": asked.safety_identifier, "service_tier": "default", "store": asked.store,
            "temperature": shortest(asked.temperature), "text": {"format": {"type": "text"}}, "tool_choice": "auto",
            "tools": [], "top_logprobs": 0, "top_p": shortest(asked.top_p),
            "truncation": if asked.truncation == Truncation::Auto { "auto" } else { "disabled" },
            "usage": self.usage.as_ref().map(usage), "user": asked.user,
        })
    }
}

/// The number as it was written: 0.7, not the nearest f32.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens, "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}
