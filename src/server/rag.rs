//! `/v1/rag/query`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::Value;

use super::AppState;
use super::auth::Customer;
use super::error::{ApiError, Body};
use super::lake::as_of;
use crate::lake::{DocumentFilter, Viewer};
use crate::rag::{Mode, RagRequest, RetrieveRequest};

#[derive(Debug, Deserialize)]
pub(super) struct RagQuery {
    query: String,
    top_k: Option<usize>,
    mode: Option<Mode>,
    filter: Option<DocumentFilter>,
    as_of: Option<Value>,
    generate: Option<bool>,
    stream: Option<bool>,
    model: Option<String>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    seed: Option<u64>,
    rerank: Option<bool>,
}

pub(super) async fn query(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Body(body): Body<RagQuery>,
) -> Result<Response, ApiError> {
    let top_k = body.top_k.unwrap_or(5);
    if top_k == 0 || top_k > 200 {
        return Err(ApiError::invalid("top_k", "top_k must be 1 to 200"));
    }
    let adapter = match body.model.as_deref().filter(|name| !name.is_empty()) {
        Some(model) => super::openai::target(&state, model)?.adapter,
        None => None,
    };
    let as_of = match body.as_of {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(as_of(&text)?),
        Some(other) => Some(as_of(&other.to_string())?),
    };
    let retrieve = RetrieveRequest {
        top_k,
        mode: body.mode.unwrap_or_default(),
        rerank: body.rerank.unwrap_or(false),
        filter: body.filter.unwrap_or_default(),
        as_of,
        viewer: Viewer::all(),
        ..RetrieveRequest::new(customer.clone(), body.query)
    };
    let request = RagRequest {
        retrieve,
        generate: body.generate.unwrap_or(state.generator.is_some()),
        max_tokens: body.max_tokens,
        temperature: body.temperature,
        seed: body.seed,
        adapter,
        ..RagRequest::new(customer, "")
    };
    let answer = state.rag.answer(request).await?;
    if body.stream == Some(true) {
        let events = answer.into_stream().map(|event| match event {
            Ok(event) => serde_json::to_value(event).map_err(|error| ApiError::internal(&error)),
            Err(error) => Err(error.into()),
        });
        return Ok(super::openai::sse::respond(events));
    }
    Ok(Json(answer.collect().await?).into_response())
}
