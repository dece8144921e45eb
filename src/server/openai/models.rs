//! `/v1/models`: the generator, its adapters and the embedder.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::super::AppState;
use super::super::error::{ApiError, Path};
use crate::rag::Generator;

/// vLLM's card; `root` is where the weights are, and `parent` the model that an adapter changes.
fn card(id: &str, root: &str, parent: Option<&str>, max_model_len: usize) -> Value {
    json!({"id": id, "object": "model", "created": 0, "owned_by": "tarn", "root": root, "parent": parent,
        "max_model_len": max_model_len})
}

fn adapters(generator: &Generator) -> Vec<Value> {
    let all = generator.adapters().map(|adapters| adapters.list()).unwrap_or_default();
    all.iter()
        .map(|one| {
            let root = one.path.to_string_lossy();
            card(&one.name, &root, Some(generator.name()), generator.max_model_len())
        })
        .collect()
}

fn all(state: &AppState) -> Vec<Value> {
    let mut cards = Vec::new();
    if let Some(generator) = &state.generator {
        cards.push(card(generator.name(), generator.name(), None, generator.max_model_len()));
    }
    let embedder = state.embed.info();
    cards.push(card(&embedder.id, &embedder.id, None, embedder.max_tokens));
    cards.extend(state.embed.reranker().map(|info| card(&info.id, &info.id, None, info.max_tokens)));
    cards.extend(state.generator.iter().flat_map(adapters));
    cards
}

/// Whether a model of that name is served, adapters aside.
pub(super) fn is_base(state: &AppState, name: &str) -> bool {
    state.embed.info().id == name
        || state.embed.reranker().is_some_and(|info| info.id == name)
        || state.generator.as_ref().is_some_and(|generator| generator.name() == name)
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
