//! Schemas of request and answer bodies, by hand: the handlers take fields one by one, and some fields are of several types.

mod answers;
mod rerank;
mod tools;

use serde_json::{Map, Value, json};

/// All components, by name.
pub(super) fn all() -> Value {
    let mut all = json!({
        "Any": {"type": "object"},
        "Error": error(),
        "CompletionRequest": completion(),
        "ChatCompletionRequest": chat(),
        "ResponseRequest": response(),
        "EmbeddingRequest": embedding(),
        "LoadAdapterRequest": load_adapter(),
        "UnloadAdapterRequest": object(&["lora_name"], json!({"lora_name": adapter_name()})),
        "TokenizeRequest": tokenize(),
        "DetokenizeRequest": detokenize(),
        "RagRequest": rag(),
    });
    for part in [answers::all(), rerank::all()] {
        if let (Value::Object(all), Value::Object(part)) = (&mut all, part) {
            all.extend(part);
        }
    }
    all
}

fn error() -> Value {
    let text = || json!({"type": ["string", "null"]});
    object(
        &["error"],
        json!({"error": object(&["message", "type"], json!({
        "message": {"type": "string"}, "type": {"type": "string"}, "param": text(), "code": text()}))}),
    )
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn number(low: f64, high: f64) -> Value {
    json!({"type": "number", "minimum": low, "maximum": high})
}

fn at_least(low: u32) -> Value {
    json!({"type": "integer", "minimum": low})
}

fn said(mut schema: Value, description: &str) -> Value {
    schema["description"] = json!(description);
    schema
}

fn texts_or_ids() -> Value {
    let ids = || json!({"type": "array", "items": at_least(0), "minItems": 1});
    json!({"oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        ids(),
        {"type": "array", "items": ids(), "minItems": 1},
    ]})
}

fn messages() -> Value {
    let part = object(&["text"], json!({"type": {"const": "text"}, "text": {"type": "string"}}));
    let content = json!({"oneOf": [{"type": "string"}, {"type": "array", "items": part}, {"type": "null"}]});
    let message = object(
        &["role"],
        json!({"role": {"type": "string"}, "content": content, "tool_calls": tools::earlier_calls(),
            "tool_call_id": {"type": "string"}}),
    );
    json!({"type": "array", "minItems": 1, "items": message})
}

/// What completions and chat share.
fn sampling() -> Map<String, Value> {
    let flag = || json!({"type": "boolean"});
    let Value::Object(fields) = json!({
        "model": said(json!({"type": "string"}), "Without it, the model that is served"),
        "temperature": said(number(0.0, 2.0), "0 is greedy; without it, the model's own default"),
        "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "top_k": said(json!({"type": "integer", "minimum": -1}), "-1 or 0: all tokens"),
        "min_p": number(0.0, 1.0),
        "presence_penalty": number(-2.0, 2.0),
        "frequency_penalty": number(-2.0, 2.0),
        "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
        "logit_bias": {"type": "object", "additionalProperties": number(-100.0, 100.0)},
        "seed": said(json!({"type": "integer", "minimum": i64::MIN, "maximum": u64::MAX}),
            "The same seed gives the same answer; -1 is none"),
        "n": {"type": "integer", "minimum": 1, "maximum": 128},
        "stop": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "stop_token_ids": {"type": "array", "items": at_least(0)},
        "include_stop_str_in_output": flag(),
        "ignore_eos": flag(),
        "min_tokens": at_least(0),
        "max_tokens": said(at_least(0), "0 computes the prompt only"),
        "max_completion_tokens": said(at_least(0), "Before max_tokens, where both are given"),
        "skip_special_tokens": flag(),
        "stream": flag(),
        "stream_options": said(object(&[], json!({"include_usage": flag(), "continuous_usage_stats": flag()})),
            "Only with stream"),
        "allowed_token_ids": said(json!({"type": "array", "items": at_least(0), "minItems": 1}),
            "No other token is drawn"),
        "truncate_prompt_tokens": said(json!({"type": "integer", "minimum": -1}),
            "Keep so many of the prompt's last tokens; -1: as many as leave room for the answer"),
        "priority": said(json!({"type": "integer"}), "Above 0: behind requests that somebody waits for"),
        "cache_salt": said(json!({"type": "string"}), "Prompts with different salts share no cache"),
        "user": {"type": "string"},
    }) else {
        return Map::new();
    };
    fields
}

fn with_sampling(required: &[&str], own: Value) -> Value {
    let mut properties = sampling();
    properties.extend(tools::guided());
    if let Value::Object(own) = own {
        properties.extend(own);
    }
    object(required, Value::Object(properties))
}

fn completion() -> Value {
    with_sampling(
        &["prompt"],
        json!({
            "prompt": texts_or_ids(),
            "echo": said(json!({"type": "boolean"}), "Begin each answer with the prompt"),
            "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "prompt_logprobs": said(json!({"type": "integer", "minimum": 0, "maximum": 20}), "Not with stream"),
            "best_of": said(json!({"type": "integer", "minimum": 1, "maximum": 128}),
                "Generate so many answers and keep the n likeliest by token; not with stream"),
            "add_special_tokens": said(json!({"type": "boolean", "default": true}),
                "Begin a text with the model's own tokens"),
            "return_token_ids": {"type": "boolean"},
            "return_tokens_as_token_ids": said(json!({"type": "boolean"}), "Name tokens `token_id:ID` in logprobs"),
            "response_format": tools::response_format(),
        }),
    )
}

fn chat() -> Value {
    with_sampling(
        &["messages"],
        json!({
            "messages": messages(),
            "logprobs": {"type": "boolean"},
            "top_logprobs": said(json!({"type": "integer", "minimum": 0, "maximum": 20}), "Only with logprobs"),
            "prompt_logprobs": said(json!({"type": "integer", "minimum": 0, "maximum": 20}), "Not with stream"),
            "return_token_ids": {"type": "boolean"},
            "return_tokens_as_token_ids": said(json!({"type": "boolean"}), "Name tokens `token_id:ID` in logprobs"),
            "echo": said(json!({"type": "boolean"}), "Begin each answer with a final message of the assistant"),
            "add_generation_prompt": {"type": "boolean"},
            "continue_final_message": said(json!({"type": "boolean"}),
                "Leave the final message open, for the answer to go on with it; not with add_generation_prompt"),
            "chat_template_kwargs": said(json!({"type": "object"}), "More variables for the chat template"),
            "response_format": tools::response_format(),
            "tools": tools::tools(),
            "tool_choice": tools::tool_choice(),
            "parallel_tool_calls": {"type": "boolean", "default": true},
        }),
    )
}

fn embedding() -> Value {
    object(
        &["input"],
        json!({
            "model": {"type": "string"},
            "input": texts_or_ids(),
            "encoding_format": {"enum": ["float", "base64"]},
            "dimensions": said(at_least(1), "Only the model's own number"),
            "input_type": said(json!({"enum": ["query", "passage", "document"]}),
                "Puts the model's words for it before each text"),
            "truncate_prompt_tokens": said(json!({"type": "integer", "minimum": -1}),
                "Cut at so many tokens, -1: at the model's length; without it what is too long is refused"),
            "user": {"type": "string"},
        }),
    )
}

fn tokenize() -> Value {
    let mut schema = object(
        &[],
        json!({
            "model": {"type": "string"},
            "prompt": {"type": "string"},
            "messages": messages(),
            "add_special_tokens": {"type": "boolean"},
            "add_generation_prompt": {"type": "boolean"},
            "continue_final_message": {"type": "boolean"},
            "chat_template_kwargs": {"type": "object"},
            "tools": tools::tools(),
            "tool_choice": tools::tool_choice(),
            "return_token_strs": {"type": "boolean"},
        }),
    );
    schema["oneOf"] = json!([{"required": ["prompt"]}, {"required": ["messages"]}]);
    schema
}

fn detokenize() -> Value {
    object(
        &["tokens"],
        json!({"model": {"type": "string"}, "tokens": {"type": "array", "items": at_least(0)}}),
    )
}

fn rag() -> Value {
    object(
        &["query"],
        json!({
            "query": {"type": "string", "minLength": 1},
            "top_k": {"type": "integer", "minimum": 1, "maximum": 200, "default": 5},
            "mode": {"enum": ["vector", "text", "hybrid"]},
            "rerank": said(json!({"type": "boolean", "default": false}), "Whether a cross-encoder orders what was found"),
            "filter": said(json!({"type": "object"}), "Which documents"),
            "as_of": said(json!({"type": ["integer", "string"]}), "A version of the lake or an RFC 3339 time"),
            "generate": said(json!({"type": "boolean"}), "Whether the model answers, or passages are all"),
            "stream": {"type": "boolean"},
            "model": said(json!({"type": "string"}), "The model that is served, or an adapter"),
            "max_tokens": at_least(0),
            "temperature": number(0.0, 2.0),
            "seed": at_least(0),
        }),
    )
}

fn adapter_name() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": 256})
}

fn load_adapter() -> Value {
    object(
        &["lora_name", "lora_path"],
        json!({
            "lora_name": adapter_name(),
            "lora_path": said(json!({"type": "string", "minLength": 1}), "A PEFT folder inside that of --lora-dir"),
            "load_inplace": said(json!({"type": "boolean"}), "Take the place of an adapter of that name"),
            "pinned": said(json!({"type": "boolean"}), "Never make room for another adapter"),
        }),
    )
}

/// What a response takes beside its sampling.
fn response() -> Value {
    let part = object(
        &["type"],
        json!({
        "type": {"enum": ["input_text", "output_text", "text", "refusal"]},
        "text": {"type": "string"}, "refusal": {"type": "string"}}),
    );
    let content = json!({"oneOf": [{"type": "string"}, {"type": "array", "items": part}]});
    let text = || json!({"type": "string"});
    let message = object(
        &["role", "content"],
        json!({"type": {"const": "message"}, "role": {"enum": ["user", "assistant", "system", "developer"]},
            "content": content}),
    );
    let call = object(
        &["type", "call_id", "name", "arguments"],
        json!({"type": {"const": "function_call"}, "call_id": text(), "name": text(),
            "arguments": said(text(), "JSON")}),
    );
    let output = object(
        &["type", "call_id", "output"],
        json!({"type": {"const": "function_call_output"}, "call_id": text(), "output": content}),
    );
    let item = json!({"oneOf": [message, call, output]});
    let own = json!({
        "input": {"oneOf": [text(), {"type": "array", "minItems": 1, "items": item}]},
        "instructions": said(text(), "A system message before the conversation, for this answer only"),
        "previous_response_id": said(text(), "Go on from this response"),
        "store": said(json!({"type": "boolean", "default": true}), "Keep the response in memory"),
        "max_output_tokens": at_least(1),
        "metadata": {"type": "object", "maxProperties": 16, "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512}},
        "truncation": said(json!({"enum": ["auto", "disabled"]}), "auto: leave the oldest messages out"),
        "text": object(&[], json!({"format": tools::text_format(), "verbosity": {"const": "medium"}})),
        "tools": tools::flat_tools(),
        "tool_choice": tools::flat_tool_choice(),
        "parallel_tool_calls": {"type": "boolean", "default": true},
        "include": said(json!({"type": "array", "items": {"const": "message.output_text.logprobs"}}),
            "Log probabilities of the answer's tokens"),
        "top_logprobs": said(json!({"type": "integer", "minimum": 0, "maximum": 20}), "Only with include"),
        "stream_options": said(object(&[], json!({"include_obfuscation": {"type": "boolean"}})), "Only with stream"),
        "safety_identifier": text(),
        "prompt_cache_key": text(),
    });
    let mut schema = with_sampling(&["input"], own);
    if let Some(properties) = schema["properties"].as_object_mut() {
        for elsewhere in ["n", "max_tokens", "max_completion_tokens"] {
            properties.remove(elsewhere);
        }
    }
    schema
}
