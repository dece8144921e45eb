//! vLLM's `/tokenize` and `/detokenize`.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::AppState;
use super::super::error::{ApiError, Body};
use crate::rag::Prompt;

#[derive(Debug, Deserialize)]
pub(in crate::server) struct TokenizeRequest {
    #[serde(default)]
    model: String,
    prompt: Option<String>,
    messages: Option<Vec<Value>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
}

pub(in crate::server) async fn tokenize(
    State(state): State<AppState>,
    Body(body): Body<TokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let generator = super::generator(&state, &body.model)?;
    let tokens = match (body.prompt, body.messages) {
        (Some(prompt), None) => {
            let special = body.add_special_tokens.unwrap_or(true);
            generator
                .tokenizer()
                .encode(&prompt, special)
                .map_err(|error| ApiError::invalid("prompt", error.to_string()))?
        }
        (None, Some(messages)) => generator.prompt_tokens(&Prompt::Chat {
            messages,
            tools: None,
            add_generation_prompt: body.add_generation_prompt.unwrap_or(true),
            extra: Map::new(),
        })?,
        _ => return Err(ApiError::invalid("prompt", "give either prompt or messages")),
    };
    Ok(Json(json!({"count": tokens.len(), "max_model_len": generator.max_model_len(), "tokens": tokens})))
}

#[derive(Debug, Deserialize)]
pub(in crate::server) struct DetokenizeRequest {
    #[serde(default)]
    model: String,
    tokens: Vec<u32>,
}

pub(in crate::server) async fn detokenize(
    State(state): State<AppState>,
    Body(body): Body<DetokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let generator = super::generator(&state, &body.model)?;
    Ok(Json(json!({"prompt": generator.tokenizer().decode(&body.tokens, false)})))
}
