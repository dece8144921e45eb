//! `/v1/embeddings`.

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::AppState;
use super::super::error::{ApiError, Body};
use crate::embed::{InputKind, Priority};

#[derive(Debug, Deserialize)]
pub(in crate::server) struct EmbeddingsRequest {
    #[serde(default)]
    model: String,
    input: Input,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
    /// `query` or `passage`: puts the model's words for it before each text. Without it texts go in as they are.
    input_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

pub(in crate::server) async fn create(
    State(state): State<AppState>,
    Body(body): Body<EmbeddingsRequest>,
) -> Result<Json<Value>, ApiError> {
    let info = state.embed.info();
    if !body.model.is_empty() && body.model != info.id {
        return Err(ApiError::no_model(&body.model));
    }
    if body.dimensions.is_some_and(|dimensions| dimensions != info.dim) {
        return Err(ApiError::invalid(
            "dimensions",
            format!("this model's vectors have {} numbers and cannot be cut", info.dim),
        ));
    }
    let kind = match body.input_type.as_deref() {
        None => InputKind::Raw,
        Some("query") => InputKind::Query,
        Some("passage" | "document") => InputKind::Passage,
        Some(other) => {
            return Err(ApiError::invalid(
                "input_type",
                format!("input_type is `{other}`, but must be query or passage"),
            ));
        }
    };
    let base64 = match body.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(ApiError::invalid(
                "encoding_format",
                format!("encoding_format is `{other}`, but must be float or base64"),
            ));
        }
    };
    let (vectors, tokens) = match body.input {
        Input::Text(text) => embed_texts(&state, kind, vec![text]).await?,
        Input::Texts(texts) => embed_texts(&state, kind, texts).await?,
        Input::Tokens(ids) => embed_ids(&state, vec![ids]).await?,
        Input::TokenLists(lists) => embed_ids(&state, lists).await?,
    };
    let data: Vec<Value> = vectors
        .into_iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    Ok(Json(json!({"object": "list", "data": data, "model": info.id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})))
}

fn check(count: usize, any_empty: bool) -> Result<(), ApiError> {
    if count == 0 || count > 2048 || any_empty {
        return Err(ApiError::invalid("input", "input must hold 1 to 2048 texts, none of them empty"));
    }
    Ok(())
}

async fn embed_texts(
    state: &AppState,
    kind: InputKind,
    texts: Vec<String>,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    check(texts.len(), texts.iter().any(String::is_empty))?;
    let mut tokens = 0;
    for text in &texts {
        tokens += state.embed.count_tokens(kind, text)?.min(state.embed.info().max_tokens);
    }
    let priority = if texts.len() > 8 { Priority::Bulk } else { Priority::Interactive };
    Ok((state.embed.embed(kind, texts, priority).await?, tokens))
}

async fn embed_ids(state: &AppState, lists: Vec<Vec<u32>>) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    check(lists.len(), lists.iter().any(Vec::is_empty))?;
    let vocab = state.embed.tokenizer().vocab_size();
    if let Some(id) = lists.iter().flatten().find(|id| **id as usize >= vocab) {
        return Err(ApiError::invalid(
            "input",
            format!("token id {id} is outside the model's vocabulary of {vocab}"),
        ));
    }
    let tokens = lists.iter().map(Vec::len).sum();
    Ok((state.embed.embed_tokens(lists, Priority::Interactive).await?, tokens))
}
