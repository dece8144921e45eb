//! Schemas of answers.

use serde_json::{Value, json};

use super::{at_least, object, said, tools};

fn text() -> Value {
    json!({"type": "string"})
}

fn text_or_null() -> Value {
    json!({"type": ["string", "null"]})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn integer() -> Value {
    json!({"type": "integer"})
}

fn named(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

/// An answer with exactly these fields, none of which may be missing.
fn record(fields: Value) -> Value {
    let required: Vec<&String> = fields.as_object().into_iter().flat_map(|fields| fields.keys()).collect();
    json!({"type": "object", "required": required, "properties": fields})
}

/// All of them, by name.
pub(super) fn all() -> Value {
    let mut all = generated();
    if let (Value::Object(all), Value::Object(lake)) = (&mut all, lake()) {
        all.extend(lake);
    }
    all
}

/// Those of models.
fn generated() -> Value {
    json!({
        "Model": model(),
        "ModelList": record(json!({"object": {"const": "list"}, "data": list(named("Model"))})),
        "Usage": usage(),
        "Completion": completed("text_completion", &["stop", "length", "abort"], json!({
            "text": text(), "prompt_logprobs": {"type": "array"},
            "prompt_token_ids": list(at_least(0)), "token_ids": list(at_least(0))})),
        "ChatCompletion": chat(),
        "Response": response(),
        "DeletedResponse": record(json!({"id": text(), "object": {"const": "response"}, "deleted": {"const": true}})),
        "EmbeddingList": embeddings(),
        "Tokens": object(&["tokens", "count", "max_model_len"], json!({
            "tokens": list(at_least(0)), "count": at_least(0), "max_model_len": at_least(1),
            "token_strs": list(text_or_null())})),
        "Text": record(json!({"prompt": text()})),
        "Answer": answer(),
    })
}

/// Those of lake and server.
fn lake() -> Value {
    let version = || said(integer(), "-1 before the first commit");
    let rows = |of: &str| {
        record(
            json!({of: text(), "version": version(), "count": at_least(0), "rows": list(json!({"type": "object"}))}),
        )
    };
    let versions = || json!({"type": "object", "additionalProperties": integer()});
    json!({
        "UploadAccepted": record(json!({"job_id": text(), "customer_id": text(), "status": job_state(),
            "files": list(text()), "status_url": text()})),
        "Job": object(&["id", "customer", "status", "files", "outcomes"], json!({"id": text(), "customer": text(),
            "status": job_state(), "files": list(text()), "error": text_or_null(),
            "outcomes": list(object(&["name"], json!({"name": text(), "error": text_or_null()})))})),
        "Document": document(),
        "DocumentList": record(json!({"documents": list(named("Document")), "total": at_least(0), "version": version()})),
        "DeletedDocument": record(json!({"document_id": text(), "deleted": {"const": true}})),
        "Chunk": object(&["chunk_id", "ingest_id", "document_id", "ordinal", "kind", "text"], json!({
            "chunk_id": text(), "ingest_id": text(), "document_id": text(), "ordinal": at_least(0), "kind": text(),
            "text": text(), "heading_path": list(text()), "header": text_or_null()})),
        "Snapshot": record(json!({"customer_id": text(), "version": version(), "path": text(), "embedder": text_or_null(),
            "pins": record(json!({"general_documents": integer(), "general_chunks": integer(), "embeddings": integer()}))})),
        "Tables": record(json!({"tables": list(text()), "versions": versions()})),
        "Datasets": record(json!({"datasets": list(text()), "versions": versions()})),
        "TableSchema": record(json!({"table": text(), "fields": list(record(json!({"name": text(), "type": text(),
            "nullable": {"type": "boolean"}})))})),
        "TableRows": rows("table"),
        "DatasetRows": rows("dataset"),
        "Stats": record(json!({"delta_tables": at_least(0), "lance_datasets": at_least(0),
            "total_size_mb": {"type": "number", "minimum": 0}, "documents": at_least(0), "chunks": at_least(0),
            "vectors": at_least(0), "version": version()})),
        "Health": record(json!({"status": {"const": "healthy"}, "delta_tables": list(text()), "lance_datasets": list(text())})),
        "Ready": record(json!({"status": {"const": "ready"}, "model": text_or_null(), "embedder": text()})),
        "Version": record(json!({"version": text()})),
    })
}

fn model() -> Value {
    record(json!({
        "id": text(), "object": {"const": "model"}, "created": integer(), "owned_by": text(),
        "root": said(text(), "Where an adapter's weights are; else the id"),
        "parent": said(text_or_null(), "The model that an adapter changes"), "max_model_len": at_least(1),
    }))
}

fn job_state() -> Value {
    json!({"enum": ["queued", "running", "done", "failed"]})
}

fn document() -> Value {
    object(
        &["document_id", "ingest_id", "source_uri", "name", "content_sha256", "size_bytes"],
        json!({
            "document_id": text(), "ingest_id": text(), "source_uri": text(), "name": text(),
            "parent_document_id": text_or_null(), "original": text_or_null(), "content_sha256": text(),
            "size_bytes": at_least(0), "media_type": text_or_null(), "language": text_or_null(),
            "title": text_or_null(), "chunk_count": at_least(0), "token_count": at_least(0),
            "warnings": list(text()),
        }),
    )
}

fn response() -> Value {
    let part =
        record(json!({"type": {"const": "output_text"}, "text": text(), "annotations": {"type": "array"},
        "logprobs": {"type": "array"}}));
    let message = record(json!({"id": text(), "type": {"const": "message"},
        "status": {"enum": ["completed", "incomplete"]}, "role": {"const": "assistant"}, "content": list(part)}));
    let call = record(json!({"id": text(), "type": {"const": "function_call"},
        "status": {"enum": ["completed", "incomplete"]}, "call_id": text(), "name": text(),
        "arguments": said(text(), "JSON")}));
    let item = json!({"oneOf": [message, call]});
    let usage = record(
        json!({"input_tokens": at_least(0), "output_tokens": at_least(0), "total_tokens": at_least(0),
        "input_tokens_details": record(json!({"cached_tokens": at_least(0)})),
        "output_tokens_details": record(json!({"reasoning_tokens": at_least(0)}))}),
    );
    object(
        &["id", "object", "created_at", "status", "model", "output", "usage"],
        json!({
            "id": text(), "object": {"const": "response"}, "created_at": integer(), "model": text(),
            "status": {"enum": ["completed", "incomplete", "failed"]}, "output": list(item), "usage": usage,
            "error": {"type": ["object", "null"]}, "incomplete_details": {"type": ["object", "null"]},
            "instructions": text_or_null(), "previous_response_id": text_or_null(),
            "metadata": {"type": "object"}, "store": {"type": "boolean"}, "truncation": {"enum": ["auto", "disabled"]},
            "text": {"type": "object"}, "tools": {"type": "array"}, "tool_choice": {"type": ["string", "object"]},
            "parallel_tool_calls": {"type": "boolean"}, "top_logprobs": at_least(0),
        }),
    )
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
fn completed(kind: &str, reasons: &[&str], own: Value) -> Value {
    let mut choice = json!({
        "index": at_least(0), "logprobs": {"type": ["object", "null"]},
        "finish_reason": {"enum": reasons}, "stop_reason": {"type": ["integer", "string", "null"]},
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

fn chat() -> Value {
    let message = object(
        &["role", "content"],
        json!({"role": {"const": "assistant"}, "content": text_or_null(), "refusal": {"type": "null"},
            "tool_calls": tools::calls()}),
    );
    let own = json!({"message": message, "token_ids": list(at_least(0))});
    let mut answer = completed("chat.completion", &["stop", "length", "tool_calls", "abort"], own);
    answer["properties"]["prompt_logprobs"] = json!({"type": "array"});
    answer["properties"]["prompt_token_ids"] = list(at_least(0));
    answer
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
