//! HTTP end to end without a socket, over fakes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::embed::EmbedThread;
use crate::engine::{EngineConfig, EngineThread, SamplingParams};
use crate::ingest::{PipelineConfig, WorkerLimits};
use crate::lake::{Failpoints, LakeConfig};
use crate::rag::{Citing, GeneratorConfig, RagConfig};
use crate::testing::{FakeRunner, fake_embedder};

struct Fixture {
    state: AppState,
    _dir: tempfile::TempDir,
    _engine: EngineThread,
    _embed: EmbedThread,
}

fn fixture(api_keys: &[&str]) -> Fixture {
    let dir = tempfile::tempdir().expect("dir");
    let (embed, embed_thread) = fake_embedder(8);
    let config =
        EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 64, max_waiting: 8, prefix_cache: true };
    let (engine, engine_thread) =
        crate::engine::start(config, || Ok(FakeRunner::new(100, 256, 512))).expect("engine");
    let config = GeneratorConfig {
        name: "fake".to_owned(),
        eos: vec![],
        sampling: SamplingParams::greedy(),
        citing: Citing::Searched,
    };
    let generator = Generator::new(engine, embed.tokenizer().clone(), None, config);
    let lake = LakeConfig {
        root: dir.path().to_owned(),
        retention: Duration::from_secs(60),
        scan_threads: 1,
        failpoints: Failpoints::default(),
    };
    let lakes = Arc::new(Lakes::open(lake).expect("lakes"));
    let config = PipelineConfig {
        worker_exe: "/bin/false".into(),
        limits: WorkerLimits { time: Duration::from_secs(5), memory: 1 << 30 },
        chunk_tokens: 64,
        parallel: 1,
    };
    let pipeline = Pipeline::new(config, embed.clone(), lakes.clone());
    let state = AppState {
        rag: RagService::new(lakes.clone(), embed.clone(), Some(generator.clone()), RagConfig::default()),
        jobs: Jobs::new(pipeline.clone(), 1),
        pipeline,
        generator: Some(generator),
        embed,
        lakes,
        metrics: Metrics::new(),
        api_keys: api_keys.iter().map(|key| (*key).to_owned()).collect(),
        max_upload_bytes: 4096,
        draining: Arc::new(AtomicBool::new(false)),
    };
    Fixture { state, _dir: dir, _engine: engine_thread, _embed: embed_thread }
}

async fn send(state: &AppState, request: Request<Body>) -> (StatusCode, String) {
    let response = router(state.clone()).oneshot(request).await.expect("answers");
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 22).await.expect("body");
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

async fn post(state: &AppState, path: &str, body: Value) -> (StatusCode, String) {
    let request =
        Request::post(path).header("content-type", "application/json").body(Body::from(body.to_string()));
    send(state, request.expect("request")).await
}

async fn get(state: &AppState, path: &str) -> (StatusCode, Value) {
    let (status, body) = send(state, Request::get(path).body(Body::empty()).expect("request")).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

#[tokio::test]
async fn completions_answer_stream_and_agree() {
    let fixture = fixture(&[]);
    let ask = json!({"model": "fake", "prompt": "ab", "max_tokens": 5, "temperature": 0});
    let (status, body) = post(&fixture.state, "/v1/completions", ask.clone()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let whole: Value = serde_json::from_str(&body).expect("json");
    assert_eq!(whole["usage"]["completion_tokens"], 5);
    let mut streaming = ask;
    streaming["stream"] = json!(true);
    streaming["stream_options"] = json!({"include_usage": true});
    let (_, body) = post(&fixture.state, "/v1/completions", streaming).await;
    let events: Vec<&str> = body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let parsed: Vec<Value> =
        events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).expect("json")).collect();
    let text: String = parsed.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, whole["choices"][0]["text"].as_str().expect("text"));
    assert_eq!(parsed.last().expect("some")["usage"]["total_tokens"], 7);
}

#[tokio::test]
async fn wrong_requests_get_openai_errors_that_name_the_field() {
    let fixture = fixture(&[]);
    let base = json!({"model": "fake", "prompt": "x"});
    for (field, value, status) in [
        ("temperature", json!(3), 400),
        ("n", json!(0), 400),
        ("top_k", json!(-7), 400),
        ("response_format", json!({"type": "json_object"}), 400),
        ("suffix", json!("s"), 400),
        ("logit_bias", json!({"9999": 1}), 400),
        ("model", json!("other"), 404),
        ("max_tokens", json!("many"), 400),
    ] {
        let mut body = base.clone();
        body[field] = value;
        let (found, answer) = post(&fixture.state, "/v1/completions", body).await;
        let error: Value = serde_json::from_str(&answer).expect("json");
        assert_eq!(found.as_u16(), status, "{field}: {answer}");
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string());
        assert!(field == "max_tokens" || error["error"]["param"] == field, "{field}: {answer}");
    }
    let long = json!({"model": "fake", "prompt": "x".repeat(600)});
    let (status, answer) = post(&fixture.state, "/v1/completions", long).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.contains("context_length_exceeded"), "{answer}");
    let (status, answer) =
        post(&fixture.state, "/v1/chat/completions", json!({"messages": [{"role": "user", "content": "x"}]}))
            .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.contains("chat template"), "{answer}");
    let broken =
        Request::post("/v1/completions").header("content-type", "application/json").body(Body::from("{"));
    let (status, answer) = send(&fixture.state, broken.expect("request")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert_eq!(get(&fixture.state, "/nope").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_empty_lake_knows_nothing_and_asks_no_model() {
    let fixture = fixture(&[]);
    let (status, body) = post(&fixture.state, "/v1/rag/query", json!({"query": "anything"})).await;
    let answer: Value = serde_json::from_str(&body).expect("json");
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&answer["generated"], &answer["citations"]), (&json!(false), &json!([])));
    let engine = fixture.state.generator.as_ref().expect("generator").engine().stats();
    assert_eq!(engine.steps, 0);
    let (_, stats) = get(&fixture.state, "/stats").await;
    assert_eq!((&stats["documents"], &stats["total_size_mb"]), (&json!(0), &json!(0.0)));
}

#[tokio::test]
async fn health_has_the_words_that_clients_parse() {
    let fixture = fixture(&[]);
    let (_, health) = get(&fixture.state, "/health").await;
    let expected = json!({"status": "healthy", "delta_tables": ["general_documents", "general_chunks"],
        "lance_datasets": ["embeddings.lance"]});
    assert_eq!(health, expected);
    let (status, metrics) = get(&fixture.state, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    let metrics = metrics.as_str().expect("text").to_owned();
    assert!(metrics.contains("vllm:num_requests_running") && metrics.contains("tarn_kv_cache_usage_perc"));
}

#[tokio::test]
async fn keys_are_asked_for_where_they_are_set() {
    let fixture = fixture(&["secret"]);
    assert_eq!(get(&fixture.state, "/v1/models").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&fixture.state, "/health").await.0, StatusCode::OK);
    let request = Request::get("/v1/models").header("authorization", "Bearer secret").body(Body::empty());
    assert_eq!(send(&fixture.state, request.expect("request")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn uploads_are_checked_and_kept() {
    let fixture = fixture(&[]);
    let upload = |content: &str| {
        let body = format!(
            "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a.txt\"\r\n\r\n{content}\r\n--b--\r\n"
        );
        Request::post("/api/upload/files")
            .header("content-type", "multipart/form-data; boundary=b")
            .body(Body::from(body))
            .expect("request")
    };
    assert_eq!(send(&fixture.state, upload("")).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(send(&fixture.state, upload(&"x".repeat(5000))).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let (status, body) = send(&fixture.state, upload("hello")).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let job: Value = serde_json::from_str(&body).expect("json");
    let path = job["status_url"].as_str().expect("url").to_owned();
    assert_eq!(get(&fixture.state, &path).await.0, StatusCode::OK);
    assert_eq!(get(&fixture.state, "/api/jobs/../../x").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&fixture.state, "/stats?customer_id=../x").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_openapi_document_lists_what_is_served() {
    let fixture = fixture(&[]);
    for (path, method, ..) in openapi::OPERATIONS {
        let path = path.replace("{table}", "general_documents").replace(['{', '}'], "");
        let request =
            Request::builder().method(method.to_uppercase().as_str()).uri(&path).body(Body::empty());
        let (status, body) = send(&fixture.state, request.expect("request")).await;
        assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert!(!body.contains("there is no such path"), "{method} {path}");
    }
}
