//! Schemas of structured output and tools.

use serde_json::{Map, Value, json};

use super::{object, said};

fn text() -> Value {
    json!({"type": "string"})
}

/// A name of a function.
fn name() -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"})
}

fn json_schema() -> Value {
    said(json!({"type": "object"}), "A JSON schema; one with a keyword that cannot be enforced is refused")
}

/// vLLM's ways to ask for a grammar; one at a time, and not beside a `response_format` that asks for JSON.
pub(super) fn guided() -> Map<String, Value> {
    let schema = || json!({"oneOf": [json_schema(), said(text(), "The same as JSON")]});
    let choice = || json!({"type": "array", "items": text(), "minItems": 1});
    let grammar = || said(text(), "Lark, or EBNF with `root ::=`");
    let outputs = object(
        &[],
        json!({"json": schema(), "regex": text(), "choice": choice(), "grammar": grammar(),
            "json_object": {"type": "boolean"}}),
    );
    let Value::Object(fields) = json!({
        "guided_json": schema(),
        "guided_regex": text(),
        "guided_choice": choice(),
        "guided_grammar": grammar(),
        "guided_decoding_backend": {"enum": ["auto", "guidance"]},
        "structured_outputs": said(outputs, "Exactly one of them"),
    }) else {
        return Map::new();
    };
    fields
}

/// `response_format` of completions and chats.
pub(super) fn response_format() -> Value {
    let schema = object(
        &["schema"],
        json!({"name": text(), "description": text(), "schema": json_schema(),
            "strict": said(json!({"type": ["boolean", "null"]}), "false: enforce what can be")}),
    );
    json!({"oneOf": [
        object(&["type"], json!({"type": {"enum": ["text", "json_object"]}})),
        object(&["type", "json_schema"], json!({"type": {"const": "json_schema"}, "json_schema": schema})),
    ]})
}

/// `text.format` of responses.
pub(super) fn text_format() -> Value {
    let own = json!({"type": {"const": "json_schema"}, "name": text(), "description": text(),
        "schema": json_schema(), "strict": {"type": ["boolean", "null"]}});
    json!({"oneOf": [
        object(&["type"], json!({"type": {"enum": ["text", "json_object"]}})),
        object(&["type", "schema"], own),
    ]})
}

/// What a function says of itself.
fn function() -> Value {
    json!({"name": name(), "description": text(), "parameters": json_schema(),
        "strict": said(json!({"type": ["boolean", "null"]}), "Arguments follow `parameters` in every call")})
}

/// `tools` of chats.
pub(super) fn tools() -> Value {
    let tool = object(
        &["type", "function"],
        json!({"type": {"const": "function"}, "function": object(&["name"], function())}),
    );
    json!({"type": "array", "maxItems": 128, "items": tool})
}

/// `tools` of responses.
pub(super) fn flat_tools() -> Value {
    let mut tool = function();
    tool["type"] = json!({"const": "function"});
    json!({"type": "array", "maxItems": 128, "items": object(&["type", "name"], tool)})
}

fn words() -> Value {
    said(json!({"enum": ["none", "auto", "required"]}), "required needs tools")
}

/// `tool_choice` of chats.
pub(super) fn tool_choice() -> Value {
    let named = object(
        &["type", "function"],
        json!({"type": {"const": "function"}, "function": object(&["name"], json!({"name": name()}))}),
    );
    json!({"oneOf": [words(), said(named, "One of the tools")]})
}

/// `tool_choice` of responses.
pub(super) fn flat_tool_choice() -> Value {
    let named = object(&["type", "name"], json!({"type": {"const": "function"}, "name": name()}));
    json!({"oneOf": [words(), said(named, "One of the tools")]})
}

/// Calls in earlier messages.
pub(super) fn earlier_calls() -> Value {
    let function = object(&["name", "arguments"], json!({"name": text(), "arguments": said(text(), "JSON")}));
    let call =
        object(&["function"], json!({"id": text(), "type": {"const": "function"}, "function": function}));
    json!({"type": "array", "items": call})
}

/// Calls in an answer.
pub(super) fn calls() -> Value {
    let function = object(&["name", "arguments"], json!({"name": text(), "arguments": said(text(), "JSON")}));
    let call = object(
        &["id", "type", "function"],
        json!({"id": text(), "type": {"const": "function"}, "function": function}),
    );
    json!({"type": "array", "minItems": 1, "items": call})
}
