//! The `input` of a response as messages for the chat template.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::super::error::ApiError;
use super::super::tools;

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
        Input::Items(items) => {
            let mut messages = Vec::new();
            for (at, item) in items.iter().enumerate() {
                add(&mut messages, item).map_err(|what| ApiError::invalid(format!("input[{at}]"), what))?;
            }
            Ok(messages)
        }
    }
}

/// Adds an item to the conversation.
fn add(messages: &mut Vec<Value>, item: &Map<String, Value>) -> Result<(), String> {
    match item.get("type").map(|kind| kind.as_str().unwrap_or("?")) {
        None | Some("message") => messages.push(message(item)?),
        Some("function_call") => {
            let call = call(item)?;
            // What a turn says and what it calls are one message to a template.
            match messages.last_mut().filter(|last| last["role"] == "assistant") {
                Some(last) => match last["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => last["tool_calls"] = json!([call]),
                },
                None => {
                    messages.push(json!({"role": "assistant", "content": "", "tool_calls": [call]}));
                }
            }
        }
        Some("function_call_output") => {
            let output = content(item.get("output")).map_err(|what| format!("output {what}"))?;
            let call_id = string(item, "call_id")?;
            messages.push(json!({"role": "tool", "tool_call_id": call_id, "content": output}));
        }
        Some(kind) => return Err(format!("items of type {kind} are not supported")),
    }
    Ok(())
}

fn string<'a>(item: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    item.get(field).and_then(Value::as_str).ok_or_else(|| format!("{field} must be a text"))
}

/// A call in the shape of chats.
fn call(item: &Map<String, Value>) -> Result<Value, String> {
    let arguments = tools::arguments(string(item, "arguments")?)?;
    Ok(tools::call(string(item, "call_id")?, string(item, "name")?, arguments))
}

fn message(item: &Map<String, Value>) -> Result<Value, String> {
    let role = match item.get("role").and_then(Value::as_str) {
        Some(role @ ("user" | "assistant" | "system")) => role,
        // Templates know OpenAI's newer name by the older.
        Some("developer") => "system",
        _ => return Err("role must be user, assistant, system or developer".to_owned()),
    };
    let content = content(item.get("content")).map_err(|what| format!("content {what}"))?;
    Ok(json!({"role": role, "content": content}))
}

/// A text, or the lines that its parts are.
fn content(content: Option<&Value>) -> Result<String, String> {
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            Ok(parts.iter().map(text).collect::<Result<Vec<&str>, String>>()?.join("\n"))
        }
        _ => Err("must be a text or a list of parts".to_owned()),
    }
}

fn text(part: &Value) -> Result<&str, String> {
    let field = match part["type"].as_str() {
        Some("input_text" | "output_text" | "text") => "text",
        Some("refusal") => "refusal",
        kind => return Err(format!("has a part of type {}, which is not supported", kind.unwrap_or("?"))),
    };
    part[field].as_str().ok_or_else(|| format!("has a part without {field}"))
}
