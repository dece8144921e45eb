//! Schemas of request and answer bodies, by hand: the handlers take fields one by one, and some fields are of several types.

use serde_json::{Map, Value, json};

/// All components, by name.
pub(super) fn all() -> Value {
    json!({
        "Error": error(),
        "CompletionRequest": completion(),
        "ChatCompletionRequest": chat(),
        "EmbeddingRequest": embedding(),
        "RerankRequest": rerank(),
        "ScoreRequest": score(),
        "TokenizeRequest": tokenize(),
        "DetokenizeRequest": detokenize(),
        "RagRequest": rag(),
        "Usage": usage(),
        "Completion": completed("text_completion", json!({"text": {"type": "string"}})),
        "ChatCompletion": completed("chat.completion", json!({"message": object(&["role", "content"], json!({
            "role": {"const": "assistant"}, "content": {"type": "string"}}))})),
        "EmbeddingList": embeddings(),
        "Reranked": reranked(),
        "Scores": scores(),
        "Tokens": object(&["tokens", "count", "max_model_len"], json!({
            "tokens": {"type": "array", "items": at_least(0)}, "count": at_least(0), "max_model_len": at_least(1),
            "token_strs": {"type": "array", "items": {"type": "string"}}})),
        "Text": object(&["prompt"], json!({"prompt": {"type": "string"}})),
        "Answer": answer(),
    })
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
    json!({"type": "array", "minItems": 1,
        "items": object(&["role"], json!({"role": {"type": "string"}, "content": content}))})
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
        "seed": {"type": "integer"},
        "n": {"type": "integer", "minimum": 1, "maximum": 128},
        "best_of": said(at_least(1), "Only as n"),
        "stop": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "stop_token_ids": {"type": "array", "items": at_least(0)},
        "include_stop_str_in_output": flag(),
        "ignore_eos": flag(),
        "min_tokens": at_least(0),
        "max_tokens": said(at_least(0), "0 computes the prompt only"),
        "max_completion_tokens": said(at_least(0), "Before max_tokens, where both are given"),
        "skip_special_tokens": flag(),
        "stream": flag(),
        "stream_options": said(object(&[], json!({"include_usage": flag()})), "Only with stream"),
        "cache_salt": said(json!({"type": "string"}), "Prompts with different salts share no cache"),
        "user": {"type": "string"},
    }) else {
        return Map::new();
    };
    fields
}

fn with_sampling(required: &[&str], own: Value) -> Value {
    let mut properties = sampling();
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
            "add_generation_prompt": {"type": "boolean"},
            "chat_template_kwargs": said(json!({"type": "object"}), "More variables for the chat template"),
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

/// Where rerank and score cut pairs.
fn pair_tokens() -> Value {
    said(
        json!({"type": "integer", "minimum": -1}),
        "Pairs are cut at so many tokens; without it and for -1, at the model's length",
    )
}

fn rerank() -> Value {
    let document =
        json!({"oneOf": [{"type": "string"}, object(&["text"], json!({"text": {"type": "string"}}))]});
    object(
        &["query", "documents"],
        json!({
            "model": {"type": "string"},
            "query": {"type": "string", "minLength": 1},
            "documents": {"type": "array", "items": document, "minItems": 1, "maxItems": 2048},
            "top_n": said(at_least(0), "So many of the best; 0: all"),
            "return_documents": {"type": "boolean", "default": true},
            "truncate_prompt_tokens": pair_tokens(),
        }),
    )
}

fn score() -> Value {
    let texts = || json!({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]});
    object(
        &["text_1", "text_2"],
        json!({
            "model": {"type": "string"},
            "text_1": said(texts(), "One text for all of text_2, or as many"),
            "text_2": texts(),
            "truncate_prompt_tokens": pair_tokens(),
        }),
    )
}

fn reranked() -> Value {
    let document = object(&["text"], json!({"text": {"type": "string"}}));
    let one = object(
        &["index", "relevance_score"],
        json!({"index": at_least(0), "relevance_score": {"type": "number"}, "document": document}),
    );
    object(
        &["id", "model", "results", "usage"],
        json!({
            "id": {"type": "string"}, "model": {"type": "string"}, "results": {"type": "array", "items": one},
            "usage": {"$ref": "#/components/schemas/Usage"},
        }),
    )
}

fn scores() -> Value {
    let one = object(
        &["index", "score"],
        json!({"index": at_least(0), "object": {"const": "score"}, "score": {"type": "number"}}),
    );
    object(
        &["id", "object", "model", "data", "usage"],
        json!({
            "id": {"type": "string"}, "object": {"const": "list"}, "created": {"type": "integer"},
            "model": {"type": "string"}, "data": {"type": "array", "items": one},
            "usage": {"$ref": "#/components/schemas/Usage"},
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
            "chat_template_kwargs": {"type": "object"},
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
            "model": {"type": "string"},
            "max_tokens": at_least(0),
            "temperature": number(0.0, 2.0),
            "seed": at_least(0),
        }),
    )
}

/// The name of the schema of what `path` answers to a `post`.
pub(super) fn of_answer(path: &str) -> Option<&'static str> {
    Some(match path {
        "/v1/completions" => "Completion",
        "/v1/chat/completions" => "ChatCompletion",
        "/v1/embeddings" => "EmbeddingList",
        "/v1/rerank" | "/v2/rerank" | "/rerank" => "Reranked",
        "/v1/score" | "/score" => "Scores",
        "/tokenize" => "Tokens",
        "/detokenize" => "Text",
        "/v1/rag/query" => "Answer",
        _ => return None,
    })
}

fn usage() -> Value {
    object(
        &["prompt_tokens", "total_tokens"],
        json!({
            "prompt_tokens": at_least(0), "completion_tokens": at_least(0), "total_tokens": at_least(0),
            "prompt_tokens_details": object(&[], json!({"cached_tokens": at_least(0)})),
        }),
    )
}

/// A generation's answer; `own` is what its choices hold beside index, reasons and log probabilities.
fn completed(kind: &str, own: Value) -> Value {
    let mut choice = json!({
        "index": at_least(0), "logprobs": {"type": ["object", "null"]},
        "finish_reason": {"enum": ["stop", "length", "abort"]}, "stop_reason": {"type": ["integer", "string", "null"]},
    });
    if let (Value::Object(choice), Value::Object(own)) = (&mut choice, own) {
        choice.extend(own);
    }
    object(
        &["id", "object", "created", "model", "choices", "usage"],
        json!({
            "id": {"type": "string"}, "object": {"const": kind}, "created": {"type": "integer"},
            "model": {"type": "string"}, "usage": {"$ref": "#/components/schemas/Usage"},
            "choices": {"type": "array", "items": object(&["index", "finish_reason"], choice)},
        }),
    )
}

fn embeddings() -> Value {
    let vector = json!({"oneOf": [{"type": "array", "items": {"type": "number"}},
        said(json!({"type": "string"}), "base64 of little-endian f32")]});
    let one = object(&["index", "embedding"], json!({"index": at_least(0), "embedding": vector}));
    object(
        &["object", "data", "model", "usage"],
        json!({
            "object": {"const": "list"}, "data": {"type": "array", "items": one}, "model": {"type": "string"},
            "usage": {"$ref": "#/components/schemas/Usage"},
        }),
    )
}

fn answer() -> Value {
    let texts = json!({"type": "array", "items": {"type": "string"}});
    object(
        &["answer", "generated", "citations", "lake_version", "warnings", "timings", "usage"],
        json!({
            "answer": {"type": ["string", "null"]}, "generated": {"type": "boolean"},
            "model": {"type": ["string", "null"]}, "finish_reason": {"type": ["string", "null"]},
            "citations": {"type": "array", "items": {"type": "object"}}, "lake_version": {"type": "integer"},
            "warnings": texts, "timings": {"type": "object"}, "usage": {"$ref": "#/components/schemas/Usage"},
        }),
    )
}
