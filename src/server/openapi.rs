//! `/openapi.json`.

mod operations;
mod schemas;

use axum::Json;
use serde_json::{Map, Value, json};

use self::operations::Answers;
pub(super) use self::operations::{Carries, OPERATIONS, Operation};

fn named(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn json_content(schema: Value) -> Value {
    json!({"application/json": {"schema": schema}})
}

/// A parameter of a query or a header by its name.
fn parameter(name: &str) -> Value {
    let said = |schema: Value, what: &str| json!({"name": name, "in": "query", "schema": schema, "description": what});
    let text = || json!({"type": "string"});
    // A name that a lake can have: lower case, as in paths and buckets.
    let customer = || json!({"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$"});
    match name {
        "limit" => said(
            json!({"type": "integer", "minimum": 0, "maximum": u64::MAX, "default": 100}),
            "Most rows; never more than 10000",
        ),
        "offset" => {
            said(json!({"type": "integer", "minimum": 0, "maximum": u64::MAX, "default": 0}), "Rows to skip")
        }
        "as_of" | "version" => said(text(), "A version of the lake or an RFC 3339 time"),
        "columns" => said(text(), "Names, separated by commas"),
        "filter" => said(text(), "A boolean SQL expression over the columns"),
        "stream" => said(json!({"type": "boolean"}), "Only false: a response is streamed while it is made"),
        "X-Customer-Id" => {
            json!({"name": name, "in": "header", "schema": customer(), "description": "The same as customer_id, which goes before it"})
        }
        _ => said(customer(), "Whose request; without it, `default`"),
    }
}

fn parameters(operation: &Operation) -> Value {
    let in_path = operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}));
    let customer: &[&str] = if operation.customer { &["customer_id", "X-Customer-Id"] } else { &[] };
    in_path.chain(operation.query.iter().chain(customer).map(|name| parameter(name))).collect()
}

/// One server-sent event. Its data is a part of the answer as JSON, an error, or, at the end of those without names,
/// `[DONE]`.
fn event() -> Value {
    json!({"type": "object", "required": ["data"], "properties": {"event": {"type": "string"}, "data": {"type": "string"}}})
}

fn good(operation: &Operation) -> Value {
    let content = match operation.answers {
        Answers::Json(name) => json_content(named(name)),
        Answers::JsonOrEvents(name) => {
            let mut content = json_content(named(name));
            content["text/event-stream"] = json!({"schema": event()});
            content
        }
        Answers::Text => json!({"text/plain": {"schema": {"type": "string"}}}),
        Answers::Bytes => json!({"*/*": {"schema": {"type": "string", "format": "binary"}}}),
    };
    json!({"description": "The answer", "content": content})
}

fn failure(status: u16) -> Value {
    let description = match status {
        400 => "The request is not valid; `param` names what is wrong where one thing is",
        401 => "A key is needed",
        403 => "The server's settings do not allow it",
        404 => "There is no such thing",
        405 => "The path does not take this method",
        409 => "The lake's vectors come from another embedder",
        410 => "That version is no longer kept",
        413 => "The body is too large",
        415 => "The body must be JSON",
        429 => "The server is busy: try again",
        503 => "The server is stopping",
        _ => "The server failed; its log says why",
    };
    let mut response = json!({"description": description, "content": json_content(named("Error"))});
    if status == 429 {
        response["headers"] =
            json!({"Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}}});
    }
    response
}

fn described(operation: &Operation) -> Value {
    let statuses = operation.all_statuses().into_iter();
    let responses: Map<String, Value> = statuses
        .map(|status| (status.to_string(), if status < 300 { good(operation) } else { failure(status) }))
        .collect();
    let mut out =
        json!({"summary": operation.summary, "parameters": parameters(operation), "responses": responses});
    match operation.carries {
        Carries::Nothing => {}
        Carries::Json(name) => {
            out["requestBody"] = json!({"required": true, "content": json_content(named(name))});
        }
        Carries::Files => {
            let files =
                json!({"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}});
            let form = json!({"type": "object", "required": ["files"], "properties": {"files": files}});
            out["requestBody"] =
                json!({"required": true, "content": {"multipart/form-data": {"schema": form}}});
        }
    }
    if operation.guarded {
        // Where no key is set, none is needed.
        out["security"] = json!([{"bearer": []}, {}]);
    }
    out
}

pub(super) async fn document() -> Json<Value> {
    let mut paths: Map<String, Value> = Map::new();
    for operation in OPERATIONS {
        let entry = paths.entry(operation.path.to_owned()).or_insert_with(|| json!({}));
        entry[operation.method] = described(operation);
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
