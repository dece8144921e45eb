//! `/openapi.json`.

use axum::Json;
use serde_json::{Map, Value, json};

/// Path, method, summary, whether it takes a JSON body, statuses beside 200.
pub(super) const OPERATIONS: &[(&str, &str, &str, bool, &[u16])] = &[
    ("/v1/models", "get", "Models that are served", false, &[401]),
    ("/v1/models/{id}", "get", "One model", false, &[401, 404]),
    ("/v1/completions", "post", "Continue prompts", true, &[400, 401, 404, 413, 415, 429, 503]),
    ("/v1/chat/completions", "post", "Answer a conversation", true, &[400, 401, 404, 413, 415, 429, 503]),
    ("/v1/embeddings", "post", "Vectors of texts", true, &[400, 401, 404, 413, 415, 503]),
    ("/tokenize", "post", "Token ids of a text or a conversation", true, &[400, 401, 404, 413, 415]),
    ("/detokenize", "post", "The text of token ids", true, &[400, 401, 404, 413, 415]),
    (
        "/v1/rag/query",
        "post",
        "Retrieve, answer and cite",
        true,
        &[400, 401, 404, 409, 410, 413, 415, 429, 503],
    ),
    (
        "/api/upload/files",
        "post",
        "Upload documents (multipart field `files`); 202 with a job",
        false,
        &[202, 400, 401, 413],
    ),
    ("/api/jobs/{id}", "get", "How far a job is", false, &[400, 401, 404]),
    ("/api/documents", "get", "Documents, newest first", false, &[400, 401, 410]),
    ("/api/documents/{id}", "get", "One document", false, &[400, 401, 404]),
    ("/api/documents/{id}", "delete", "Delete a document and the files inside it", false, &[400, 401, 404]),
    ("/api/documents/{id}/content", "get", "The bytes of a document", false, &[400, 401, 404]),
    ("/api/documents/{id}/chunks/{chunk_id}", "get", "One chunk", false, &[400, 401, 404]),
    ("/api/snapshot", "get", "The table versions that belong together", false, &[400, 401, 410]),
    ("/delta/tables", "get", "Delta tables", false, &[400, 401]),
    ("/delta/schema/{table}", "get", "A table's schema", false, &[400, 401, 404]),
    ("/delta/query/{table}", "get", "Rows of a table", false, &[400, 401, 404, 410]),
    ("/lance/datasets", "get", "Lance datasets", false, &[400, 401]),
    ("/lance/query/{dataset}", "get", "Rows of a Lance dataset", false, &[400, 401, 404, 410]),
    ("/stats", "get", "What the lake holds", false, &[400, 401]),
    ("/health", "get", "Alive; never touches storage", false, &[]),
    ("/ready", "get", "Models loaded, not stopping", false, &[503]),
    ("/metrics", "get", "Prometheus metrics", false, &[]),
    ("/version", "get", "Tarn's version", false, &[]),
    ("/openapi.json", "get", "This document", false, &[]),
];

pub(super) async fn document() -> Json<Value> {
    let mut paths: Map<String, Value> = Map::new();
    for (path, method, summary, takes_body, statuses) in OPERATIONS {
        let error = json!({"description": "An error", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}});
        let mut responses: Map<String, Value> = Map::new();
        responses.insert("200".to_owned(), json!({"description": "The answer"}));
        for status in *statuses {
            let response = if *status < 300 { json!({"description": "Accepted"}) } else { error.clone() };
            responses.insert(status.to_string(), response);
        }
        let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let parameters: Vec<Value> = names
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        let mut operation = json!({"summary": summary, "parameters": parameters, "responses": responses});
        if *takes_body {
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": {"type": "object"}}}});
        }
        let entry = paths.entry((*path).to_owned()).or_insert_with(|| json!({}));
        entry[*method] = operation;
    }
    Json(json!({
        "openapi": "3.1.0",
        "info": {"title": "Tarn", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": {"Error": {"type": "object", "required": ["error"], "properties": {"error": {
                "type": "object", "properties": {"message": {"type": "string"}, "type": {"type": "string"},
                "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}}}},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }))
}
