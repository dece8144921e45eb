//! `/openapi.json`.

mod schemas;

use axum::Json;
use serde_json::{Map, Value, json};

/// Path, method, summary, the schema of its JSON body, statuses beside 200 and those of [`EVERYWHERE`].
type Operation = (&'static str, &'static str, &'static str, Option<&'static str>, &'static [u16]);

/// All that is served.
pub(super) const OPERATIONS: &[Operation] = &[
    ("/v1/models", "get", "Models that are served", None, &[401]),
    ("/v1/models/{id}", "get", "One model", None, &[401, 404]),
    (
        "/v1/completions",
        "post",
        "Continue prompts",
        Some("CompletionRequest"),
        &[400, 401, 404, 413, 415, 429, 503],
    ),
    (
        "/v1/chat/completions",
        "post",
        "Answer a conversation",
        Some("ChatCompletionRequest"),
        &[400, 401, 404, 413, 415, 429, 503],
    ),
    ("/v1/embeddings", "post", "Vectors of texts", Some("EmbeddingRequest"), &[400, 401, 404, 413, 415, 503]),
    (
        "/v1/rerank",
        "post",
        "Documents by how well they answer",
        Some("RerankRequest"),
        &[400, 401, 404, 413, 415, 503],
    ),
    (
        "/v2/rerank",
        "post",
        "The same, at Cohere's path",
        Some("RerankRequest"),
        &[400, 401, 404, 413, 415, 503],
    ),
    ("/rerank", "post", "The same, at Jina's path", Some("RerankRequest"), &[400, 401, 404, 413, 415, 503]),
    ("/v1/score", "post", "Scores of pairs of texts", Some("ScoreRequest"), &[400, 401, 404, 413, 415, 503]),
    ("/score", "post", "The same", Some("ScoreRequest"), &[400, 401, 404, 413, 415, 503]),
    (
        "/tokenize",
        "post",
        "Token ids of a text or a conversation",
        Some("TokenizeRequest"),
        &[400, 401, 404, 413, 415],
    ),
    ("/detokenize", "post", "The text of token ids", Some("DetokenizeRequest"), &[400, 401, 404, 413, 415]),
    (
        "/v1/rag/query",
        "post",
        "Retrieve, answer and cite",
        Some("RagRequest"),
        &[400, 401, 404, 409, 410, 413, 415, 429, 503],
    ),
    (
        "/api/upload/files",
        "post",
        "Upload documents (multipart field `files`); 202 with a job",
        None,
        &[202, 400, 401, 413],
    ),
    ("/api/jobs/{id}", "get", "How far a job is", None, &[400, 401, 404]),
    ("/api/documents", "get", "Documents, newest first", None, &[400, 401, 410]),
    ("/api/documents/{id}", "get", "One document", None, &[400, 401, 404]),
    ("/api/documents/{id}", "delete", "Delete a document and the files inside it", None, &[400, 401, 404]),
    ("/api/documents/{id}/content", "get", "The bytes of a document", None, &[400, 401, 404]),
    ("/api/documents/{id}/chunks/{chunk_id}", "get", "One chunk", None, &[400, 401, 404]),
    ("/api/snapshot", "get", "The table versions that belong together", None, &[400, 401, 410]),
    ("/delta/tables", "get", "Delta tables", None, &[400, 401]),
    ("/delta/schema/{table}", "get", "A table's schema", None, &[400, 401, 404]),
    ("/delta/query/{table}", "get", "Rows of a table", None, &[400, 401, 404, 410]),
    ("/lance/datasets", "get", "Lance datasets", None, &[400, 401]),
    ("/lance/query/{dataset}", "get", "Rows of a Lance dataset", None, &[400, 401, 404, 410]),
    ("/stats", "get", "What the lake holds", None, &[400, 401]),
    ("/health", "get", "Alive; never touches storage", None, &[]),
    ("/ready", "get", "Models loaded, not stopping", None, &[503]),
    ("/metrics", "get", "Prometheus metrics", None, &[]),
    ("/version", "get", "Tarn's version", None, &[]),
    ("/openapi.json", "get", "This document", None, &[]),
];

/// Statuses that any path may answer: another method, a failure of the server.
const EVERYWHERE: &[u16] = &[405, 500];

pub(super) async fn document() -> Json<Value> {
    let mut paths: Map<String, Value> = Map::new();
    for (path, method, summary, body, statuses) in OPERATIONS {
        let error = json!({"description": "An error", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}});
        let mut responses: Map<String, Value> = Map::new();
        let mut answer = json!({"description": "The answer"});
        if let Some(name) = schemas::of_answer(path) {
            let schema = json!({"$ref": format!("#/components/schemas/{name}")});
            answer["content"] = json!({"application/json": {"schema": schema}});
        }
        responses.insert("200".to_owned(), answer);
        for status in statuses.iter().chain(EVERYWHERE) {
            let response = if *status < 300 { json!({"description": "Accepted"}) } else { error.clone() };
            responses.insert(status.to_string(), response);
        }
        let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let parameters: Vec<Value> = names
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        let mut operation = json!({"summary": summary, "parameters": parameters, "responses": responses});
        if let Some(name) = body {
            let schema = json!({"$ref": format!("#/components/schemas/{name}")});
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        let entry = paths.entry((*path).to_owned()).or_insert_with(|| json!({}));
        entry[*method] = operation;
    }
    Json(json!({
        "openapi": "3.1.0",
        "info": {"title": "Tarn", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }))
}
