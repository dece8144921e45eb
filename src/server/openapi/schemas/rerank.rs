//! Schemas of rerank and score.

use serde_json::{Value, json};

use super::{at_least, object, said};

/// All of them, by name.
pub(super) fn all() -> Value {
    json!({
        "RerankRequest": rerank(),
        "Reranked": reranked(),
        "ScoreRequest": score(),
        "Scores": scores(),
    })
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
