//! Health, readiness, metrics, version.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::AppState;
use super::error::ApiError;
use crate::telemetry::EngineSample;

/// From memory, never touching storage.
pub(super) async fn health() -> Json<Value> {
    Json(json!({
        "status": "healthy",
        "delta_tables": ["general_documents", "general_chunks"],
        "lance_datasets": ["embeddings.lance"],
    }))
}

pub(super) async fn ready(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    if state.draining.load(Ordering::SeqCst) {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    if state.generator.as_ref().is_some_and(|generator| !generator.engine().is_alive()) {
        return Err(ApiError::unavailable("the engine has ended: restart the server"));
    }
    Ok(Json(json!({
        "status": "ready",
        "model": state.generator.as_ref().map(|generator| generator.name().to_owned()),
        "embedder": state.embed.info().id,
    })))
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

pub(super) async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    let mut samples = Vec::new();
    let mut model = String::new();
    if let Some(generator) = &state.generator {
        generator.name().clone_into(&mut model);
        let stats = generator.engine().stats();
        let mut gauge = |name, value: f64| samples.push(EngineSample { name, kind: "gauge", value });
        gauge("num_requests_running", stats.running as f64);
        gauge("num_requests_waiting", stats.waiting as f64);
        gauge("kv_cache_usage_perc", stats.blocks_used as f64 / stats.blocks_total.max(1) as f64);
        let mut counter =
            |name, value: u64| samples.push(EngineSample { name, kind: "counter", value: value as f64 });
        counter("prompt_tokens_total", stats.prompt_tokens);
        counter("generation_tokens_total", stats.generation_tokens);
        counter("prefix_cache_queries_total", stats.prefix_queries);
        counter("prefix_cache_hits_total", stats.prefix_hits);
        counter("num_preemptions_total", stats.preemptions);
        counter("spec_decode_num_draft_tokens_total", stats.drafted_tokens);
        counter("spec_decode_num_accepted_tokens_total", stats.accepted_tokens);
        let grammars = generator.grammar_stats();
        counter("grammars_compiled_total", grammars.compiled);
        counter("grammars_reused_total", grammars.reused);
        counter("request_success_total", stats.finished_stop + stats.finished_length);
    }
    let embedded = state.embed.tokens_computed() as f64;
    samples.push(EngineSample { name: "embedding_tokens_total", kind: "counter", value: embedded });
    let reranked = state.embed.tokens_reranked() as f64;
    samples.push(EngineSample { name: "rerank_tokens_total", kind: "counter", value: reranked });
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render(&model, &samples))
}
