//! HTTP: the OpenAI surface, RAG, the lake, uploads and operations.
//!
//! Nobody but `cli` imports this module; axum and OpenAI's JSON occur nowhere else. Every error goes through
//! [`error::ApiError`], in OpenAI's shape.

mod auth;
mod error;
mod lake;
mod openai;
mod openapi;
mod ops;
mod rag;
mod uploads;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::embed::EmbedHandle;
use crate::ingest::{Jobs, Pipeline};
use crate::lake::Lakes;
use crate::rag::{Generator, RagService};
use crate::telemetry::Metrics;

pub use error::ApiError;
pub use openai::responses::{RESPONSE_BYTES, ResponseStore};

/// JSON bodies larger than this are refused.
const MAX_JSON: usize = 32 << 20;

/// Everything that a request may need; cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState {
    /// The model that generates, if one is loaded.
    pub generator: Option<Generator>,
    /// The embedder.
    pub embed: EmbedHandle,
    /// All lakes.
    pub lakes: Arc<Lakes>,
    /// Retrieval and answers.
    pub rag: RagService,
    /// Ingest.
    pub pipeline: Pipeline,
    /// Uploads.
    pub jobs: Jobs,
    /// What is measured.
    pub metrics: Metrics,
    /// The folder whose adapters may be loaded over HTTP; none: loading and unloading are refused.
    pub adapters_dir: Option<PathBuf>,
    /// Answers of `/v1/responses` that later requests may go on from.
    pub responses: ResponseStore,
    /// Keys that requests must carry; none: no key is asked for.
    pub api_keys: Arc<[String]>,
    /// The largest upload in bytes.
    pub max_upload_bytes: usize,
    /// Set when the server is about to end.
    pub draining: Arc<AtomicBool>,
}

/// All routes.
pub fn router(state: AppState) -> Router {
    let uploads = Router::new()
        .route("/api/upload/files", post(uploads::upload))
        .layer(DefaultBodyLimit::max(state.max_upload_bytes));
    let guarded = Router::new()
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*id}", get(openai::models::one))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/responses", post(openai::responses::create))
        .route("/v1/responses/{id}", get(openai::responses::one).delete(openai::responses::delete))
        .route("/v1/load_lora_adapter", post(openai::adapters::load))
        .route("/v1/unload_lora_adapter", post(openai::adapters::unload))
        .route("/v1/embeddings", post(openai::embeddings::create))
        .route("/v1/rerank", post(openai::rerank::rerank))
        .route("/v2/rerank", post(openai::rerank::rerank))
        .route("/rerank", post(openai::rerank::rerank))
        .route("/v1/score", post(openai::rerank::score))
        .route("/score", post(openai::rerank::score))
        .route("/tokenize", post(openai::tokenize::tokenize))
        .route("/detokenize", post(openai::tokenize::detokenize))
        .route("/v1/rag/query", post(rag::query))
        .route("/api/jobs/{id}", get(uploads::job))
        .route("/api/documents", get(lake::documents))
        .route("/api/documents/{id}", get(lake::document).delete(lake::delete_document))
        .route("/api/documents/{id}/content", get(lake::content))
        .route("/api/documents/{id}/chunks/{chunk_id}", get(lake::chunk))
        .route("/api/snapshot", get(lake::snapshot))
        .route("/delta/tables", get(lake::tables))
        .route("/delta/schema/{table}", get(lake::schema))
        .route("/delta/query/{table}", get(lake::query))
        .route("/lance/datasets", get(lake::datasets))
        .route("/lance/query/{dataset}", get(lake::query_vectors))
        .route("/stats", get(lake::stats))
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .merge(uploads)
        .route_layer(from_fn_with_state(state.clone(), auth::check));
    Router::new()
        .route("/health", get(ops::health))
        .route("/ready", get(ops::ready))
        .route("/metrics", get(ops::metrics))
        .route("/version", get(ops::version))
        .route("/openapi.json", get(openapi::document))
        .merge(guarded)
        .fallback(|| async { ApiError::not_found("there is no such path; GET /openapi.json lists all") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(|_| {
            ApiError::internal("a handler panicked").into_response()
        }))
        .layer(from_fn_with_state(state.clone(), observe))
        .with_state(state)
}

async fn observe(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let started = std::time::Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let id = request.headers().get("x-request-id").cloned();
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert("x-request-id", id);
    }
    state.metrics.answered(&route, response.status().as_u16(), started.elapsed().as_secs_f64());
    response
}

/// Serves until `stop` resolves, then lets running requests finish for at most `drain`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: tokio::net::TcpListener,
    state: AppState,
    stop: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> std::io::Result<()> {
    let (draining, generator) = (state.draining.clone(), state.generator.clone());
    let (began, begin) = tokio::sync::oneshot::channel::<()>();
    let graceful = async move {
        stop.await;
        draining.store(true, Ordering::SeqCst);
        if let Some(generator) = &generator {
            generator.engine().drain();
        }
        tracing::info!("stopping: running requests have {} s", drain.as_secs());
        let _ = began.send(());
    };
    let server = axum::serve(listener, router(state)).with_graceful_shutdown(graceful);
    let limit = async move {
        match begin.await {
            Ok(()) => tokio::time::sleep(drain).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = server => result,
        () = limit => Ok(()),
    }
}

#[cfg(test)]
mod tests;
