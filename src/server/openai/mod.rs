//! The OpenAI surface: models, completions, chat, responses, embeddings, and vLLM's adapters, tokenize, rerank and score.

pub(super) mod adapters;
pub(super) mod chat;
pub(super) mod completions;
pub(super) mod embeddings;
mod fields;
mod finish;
mod logprobs;
pub(super) mod models;
pub(super) mod rerank;
pub(super) mod responses;
pub(super) mod sampling;
pub(super) mod sse;
mod structured;
pub(super) mod tokenize;
mod tools;
mod usage;

use std::sync::Arc;

use crate::rag::Generator;

use super::AppState;
use super::error::ApiError;

/// What a request's `model` names: the generator, alone or with an adapter.
#[derive(Debug, Clone)]
pub(super) struct Target {
    generator: Generator,
    /// The adapter's name.
    pub(super) adapter: Option<Arc<str>>,
}

impl Target {
    /// The name that answers repeat.
    fn name(&self) -> &str {
        self.adapter.as_deref().unwrap_or_else(|| self.generator.name())
    }
}

/// What `model` names.
pub(super) fn target(state: &AppState, model: &str) -> Result<Target, ApiError> {
    let known = |generator: &Generator| generator.adapters().is_some_and(|all| all.contains(model));
    match &state.generator {
        Some(generator) if generator.name() == model || model.is_empty() => {
            Ok(Target { generator: generator.clone(), adapter: None })
        }
        Some(generator) if known(generator) => {
            Ok(Target { generator: generator.clone(), adapter: Some(Arc::from(model)) })
        }
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

/// A fresh id: OpenAI's `prefix`, with the mark between, and 32 digits.
fn id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

/// Runs what computes for long beside the async threads.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(&error))?
}
