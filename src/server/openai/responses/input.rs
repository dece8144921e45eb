//! The `input` of a response as messages for the chat template.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::super::error::ApiError;

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "it must be a text or a list of items")]
pub(super) enum Input {
    Text(String),
    Items(Vec<Map<String, Value>>),
}

/// The messages of `input`: at least one.
pub(super) fn messages(input: Input) -> Result<Vec<Value>, ApiError> {
    match input {
        Input::Text(text) => Ok(vec![json!({"role": "user", "content": text})]),
        Input::Items(items) if items.is_empty() => {
            Err(ApiError::invalid("input", "input must hold at least one item"))
        }
        Input::Items(items) => items.iter().enumerate().map(|(at, item)| message(at, item)).collect(),
    }
}

fn message(at: usize, item: &Map<String, Value>) -> Result<Value, ApiError> {
    let wrong = |what: String| ApiError::invalid(format!("input[{at}]"), what);
    match item.get("type").map(|kind| kind.as_str().unwrap_or("?")) {
        None | Some("message") => {}
        Some(kind) => return Err(wrong(format!("items of type {kind} are not supported"))),
    }
    let role = match item.get("role").and_then(Value::as_str) {
        Some(role @ ("user" | "assistant" | "system")) => role,
        // Templates know OpenAI's newer name by the older.
        Some("developer") => "system",
        _ => return Err(wrong("role must be user, assistant, system or developer".to_owned())),
    };
    let content = match item.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| text(part).map_err(&wrong));
            texts.collect::<Result<Vec<&str>, ApiError>>()?.join("\n")
        }
        _ => return Err(wrong("content must be a text or a list of parts".to_owned())),
    };
    Ok(json!({"role": role, "content": content}))
}

fn text(part: &Value) -> Result<&str, String> {
    let field = match part["type"].as_str() {
        Some("input_text" | "output_text" | "text") => "text",
        Some("refusal") => "refusal",
        kind => return Err(format!("content parts of type {} are not supported", kind.unwrap_or("?"))),
    };
    part[field].as_str().ok_or_else(|| format!("a content part has no {field}"))
}
