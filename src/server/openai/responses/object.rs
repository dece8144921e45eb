//! The response object.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::super::error::ApiError;
use super::super::fields::Fields;
use super::super::logprobs::{self, TokenNames, up_to_twenty};
use super::Truncation;
use super::items::Item;
use crate::engine::{FinishReason, SamplingParams, Usage};
use crate::rag::{Finish, GenerateRequest, TokenText};

/// The one value of `include` that there is something for.
const LOGPROBS: &str = "message.output_text.logprobs";

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
    tools: Value,
    tool_choice: Value,
    /// `text.format`.
    format: Value,
    /// How many of the likeliest tokens are told beside each token, where any are.
    top_logprobs: Option<u8>,
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
        let format =
            fields.peek("text").and_then(|text| text.get("format")).filter(|format| !format.is_null());
        let format = format.cloned().unwrap_or_else(|| json!({"type": "text"}));
        let repeated = |field: &str, without: Value| fields.peek(field).cloned().unwrap_or(without);
        let (tools, tool_choice) = (repeated("tools", json!([])), repeated("tool_choice", json!("auto")));
        let parallel_tool_calls = repeated("parallel_tool_calls", json!(true)) == json!(true);
        Ok(Asked {
            model: model.to_owned(),
            instructions: fields.take("instructions")?,
            metadata,
            max_output_tokens,
            previous_response_id: fields.take("previous_response_id")?,
            store: fields.take("store")?.unwrap_or(true),
            truncation: fields.take("truncation")?.unwrap_or_default(),
            parallel_tool_calls,
            tools,
            tool_choice,
            format,
            top_logprobs: included_logprobs(fields)?,
            temperature: 1.0,
            top_p: 1.0,
            user: fields.take("user")?,
            safety_identifier: fields.take("safety_identifier")?,
            prompt_cache_key: fields.take("prompt_cache_key")?,
        })
    }

    /// Makes `request` one that tells what is to be included.
    pub(super) fn apply(&self, request: &mut GenerateRequest) {
        request.max_tokens = self.max_output_tokens;
        request.sampling.logprobs = self.top_logprobs;
    }

    /// Those of `tokens`, where they were asked for.
    pub(super) fn logprobs(&self, tokens: &[TokenText]) -> Vec<Value> {
        self.top_logprobs.map_or_else(Vec::new, |_| logprobs::chat(tokens, TokenNames::Text))
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

/// Takes `include` and `top_logprobs`.
fn included_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let include: Vec<String> = fields.take("include")?.unwrap_or_default();
    if let Some(other) = include.iter().find(|one| *one != LOGPROBS) {
        let message = format!("`{other}` cannot be included: leave it out");
        return Err(ApiError::invalid("include", message));
    }
    let top = up_to_twenty(fields, "top_logprobs")?;
    if include.is_empty() {
        return match top {
            None | Some(0) => Ok(None),
            Some(_) => {
                let message = format!("top_logprobs needs include to have `{LOGPROBS}`");
                Err(ApiError::invalid("top_logprobs", message))
            }
        };
    }
    Ok(Some(top.unwrap_or(0)))
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

/// A response, as it is made.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    id: String,
    created: i64,
    pub(super) asked: Asked,
    pub(super) output: Vec<Item>,
    status: Status,
    usage: Option<Usage>,
}

impl Answer {
    pub(super) fn new(asked: Asked) -> Answer {
        Answer {
            id: super::super::id("resp_"),
            created: super::super::now(),
            asked,
            output: Vec::new(),
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

    /// All of it as it is now.
    pub(super) fn response(&self) -> Value {
        let asked = &self.asked;
        let items = if self.ended_well() { self.output.as_slice() } else { &[] };
        let output: Vec<Value> = items.iter().map(Item::shown).collect();
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
            "temperature": shortest(asked.temperature), "text": {"format": asked.format},
            "tool_choice": asked.tool_choice, "tools": asked.tools, "top_logprobs": asked.top_logprobs.unwrap_or(0),
            "top_p": shortest(asked.top_p),
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
