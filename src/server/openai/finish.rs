//! How answers ended, in vLLM's words.

use serde_json::{Value, json};

use crate::engine::FinishReason;
use crate::rag::{Finish, StopCause};

/// vLLM's `stop_reason`: what was met, unless it was the model's own end.
pub(super) fn stop_reason(finish: &Finish) -> Value {
    match &finish.stop {
        None => Value::Null,
        Some(StopCause::Token(id)) => json!(id),
        Some(StopCause::Text(text)) => json!(text),
    }
}

/// The token that ended an answer and is not among its tokens.
pub(super) fn held_stop(finish: &Finish, include_stop: bool) -> Option<u32> {
    match finish.reason {
        FinishReason::Stop(id) if !include_stop => id,
        _ => None,
    }
}
