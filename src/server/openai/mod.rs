//! The OpenAI surface: models, completions, chat, embeddings, and vLLM's tokenize.

pub(super) mod chat;
pub(super) mod completions;
pub(super) mod embeddings;
mod fields;
pub(super) mod models;
pub(super) mod sampling;
pub(super) mod sse;
pub(super) mod tokenize;

use crate::rag::Generator;

use super::AppState;
use super::error::ApiError;

/// The generator, if it is the one that `model` names.
fn generator<'a>(state: &'a AppState, model: &str) -> Result<&'a Generator, ApiError> {
    match &state.generator {
        Some(generator) if generator.name() == model || model.is_empty() => Ok(generator),
        _ if model == state.embed.info().id => {
            Err(ApiError::invalid("model", format!("`{model}` embeds and does not generate")))
        }
        _ => Err(ApiError::no_model(model)),
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

/// A fresh id with OpenAI's prefix.
fn id(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

/// Runs what computes for long beside the async threads.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))?
}
