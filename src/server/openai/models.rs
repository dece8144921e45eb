//! `/v1/models`.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::super::AppState;
use super::super::error::ApiError;

fn all(state: &AppState) -> Vec<Value> {
    let card = |id: &str, max: usize| json!({"id": id, "object": "model", "created": 0, "owned_by": "tarn", "root": id, "parent": null, "max_model_len": max});
    let generator = state.generator.iter().map(|generator| card(generator.name(), generator.max_model_len()));
    let reranker = state.embed.reranker().map(|info| card(&info.id, info.max_tokens));
    let embedder = card(&state.embed.info().id, state.embed.info().max_tokens);
    generator.chain([embedder]).chain(reranker).collect()
}

pub(in crate::server) async fn list(State(state): State<AppState>) -> Json<Value> {
    Json(json!({"object": "list", "data": all(&state)}))
}

pub(in crate::server) async fn one(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let found = all(&state).into_iter().find(|card| card["id"] == id.as_str());
    found.map(Json).ok_or_else(|| ApiError::no_model(&id))
}
