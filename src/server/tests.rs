//! HTTP end to end without a socket, over fakes.

mod rerank;

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
use crate::text::ChatTemplate;

mod adapters;
mod chat;
mod completions;
mod openapi;
mod responses;
mod structured;

struct Fixture {
    state: AppState,
    _dir: tempfile::TempDir,
    _engine: EngineThread,
    _embed: EmbedThread,
}

fn fixture(api_keys: &[&str]) -> Fixture {
    fixture_with(api_keys, None)
}

/// A server whose model takes chats: messages a line.
fn chatting() -> Fixture {
    fixture_with(&[], Some(lines()))
}

fn lines() -> ChatTemplate {
    let source = "{% for m in messages %}{{ m.content }}|{% endfor %}";
    ChatTemplate::compile(source, None, None).expect("compiles")
}

fn fixture_with(api_keys: &[&str], template: Option<ChatTemplate>) -> Fixture {
    fixture_over(FakeRunner::new(100, 256, 512), api_keys, template)
}

fn fixture_over(runner: FakeRunner, api_keys: &[&str], template: Option<ChatTemplate>) -> Fixture {
    let metrics = Metrics::new();
    let dir = tempfile::tempdir().expect("dir");
    let (embed, embed_thread) = fake_embedder(8);
    let config = EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_waiting: 8,
        ..EngineConfig::default()
    };
    let (engine, engine_thread) = crate::engine::start(config, || Ok(runner)).expect("engine");
    let config = GeneratorConfig {
        name: "fake".to_owned(),
        eos: vec![],
        sampling: SamplingParams::greedy(),
        citing: Citing::Searched,
        tool_format: None,
    };
    let generator =
        Generator::new(engine, embed.tokenizer().clone(), template, config).measured(metrics.clone());
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
        metrics,
        adapters_dir: None,
        responses: ResponseStore::default(),
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
    let base = json!({"model": "fake", "prompt": "x", "max_tokens": 16});
    for (field, value, status) in [
        ("temperature", json!(3), 400),
        ("n", json!(0), 400),
        ("top_k", json!(-7), 400),
        ("response_format", json!({"type": "xml"}), 400),
        ("suffix", json!("s"), 400),
        ("logit_bias", json!({"9999": 1}), 400),
        ("model", json!("other"), 404),
        ("max_tokens", json!("many"), 400),
        ("stop", json!(7), 400),
        ("prompt", json!({}), 400),
        ("prompt", Value::Null, 400),
        ("echo", json!("yes"), 400),
        ("functions", json!([{}]), 400),
        ("stream_options", json!({"include_usage": true}), 400),
        ("min_tokens", json!(17), 400),
        ("best_of", json!(0), 400),
        ("best_of", json!(129), 400),
        ("logprobs", json!(21), 400),
        ("logprobs", json!(-1), 400),
        ("prompt_logprobs", json!(-1), 400),
        ("allowed_token_ids", json!([]), 400),
        ("allowed_token_ids", json!([256]), 400),
        ("truncate_prompt_tokens", json!(0), 400),
        ("truncate_prompt_tokens", json!(513), 400),
        ("seed", json!(0.5), 400),
        ("seed", json!(1e30), 400),
        ("priority", json!("high"), 400),
        ("bad_words", json!(["x"]), 400),
        ("store", json!(true), 400),
    ] {
        let mut body = base.clone();
        body[field] = value;
        let (found, answer) = post(&fixture.state, "/v1/completions", body).await;
        let error: Value = serde_json::from_str(&answer).expect("json");
        assert_eq!(found.as_u16(), status, "{field}: {answer}");
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string());
        assert_eq!(error["error"]["param"], field, "{answer}");
    }
    // The second is refused by its bytes, before it is tokenized.
    for length in [600, 600 * 64] {
        let long = json!({"model": "fake", "prompt": "x".repeat(length)});
        let (status, answer) = post(&fixture.state, "/v1/completions", long).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer.contains("context_length_exceeded"), "{answer}");
    }
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
    for (model, status) in [("fake", 200), ("", 200), ("other", 404)] {
        let ask = json!({"query": "anything", "model": model});
        let (found, answer) = post(&fixture.state, "/v1/rag/query", ask).await;
        assert_eq!(found.as_u16(), status, "{model}: {answer}");
    }
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
    let twice = "/stats?customer_id=a&customer_id=b";
    assert_eq!(get(&fixture.state, twice).await.0, StatusCode::BAD_REQUEST, "no other customer's answer");
}

fn parsed(answer: &(StatusCode, String)) -> Value {
    assert_eq!(answer.0, StatusCode::OK, "{}", answer.1);
    serde_json::from_str(&answer.1).expect("json")
}

#[tokio::test]
async fn fields_that_say_nothing_or_that_nobody_knows_are_let_pass() {
    let fixture = fixture(&[]);
    let ask = json!({"prompt": "x", "max_tokens": 1, "functions": [], "tool_choice": "none", "priority": 0,
        "length_penalty": 1.0, "response_format": {"type": "text"}, "suffix": null, "best_of": 1, "user": "u",
        "metadata": {"a": "b"}, "something_new": 7});
    parsed(&post(&fixture.state, "/v1/completions", ask).await);
}

#[tokio::test]
async fn parts_of_a_message_are_lines_in_chat_and_tokenize() {
    let fixture = chatting();
    let parts =
        json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    let found = parsed(&post(&fixture.state, "/tokenize", json!({"messages": parts})).await);
    let text = parsed(&post(&fixture.state, "/detokenize", json!({"tokens": found["tokens"]})).await);
    assert_eq!(text["prompt"], "a\nb|");
    let ask = json!({"messages": parts, "max_tokens": 3});
    let answer = parsed(&post(&fixture.state, "/v1/chat/completions", ask).await);
    assert_eq!(answer["usage"]["prompt_tokens"], found["count"]);
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]});
    assert_eq!(post(&fixture.state, "/tokenize", image).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn every_generation_is_timed_whoever_asks() {
    let fixture = chatting();
    let messages = json!([{"role": "user", "content": "x"}]);
    for (path, mut ask) in [
        ("/v1/completions", json!({"prompt": ["x", "y"], "max_tokens": 3})),
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 3})),
    ] {
        post(&fixture.state, path, ask.clone()).await;
        ask["stream"] = json!(true);
        post(&fixture.state, path, ask).await;
    }
    let (_, metrics) = get(&fixture.state, "/metrics").await;
    let metrics = metrics.as_str().expect("text").to_owned();
    for name in ["e2e_request_latency_seconds", "time_to_first_token_seconds", "inter_token_latency_seconds"]
    {
        let line = format!("vllm:{name}_count{{model_name=\"fake\"}} 6");
        assert!(metrics.contains(&line), "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn texts_too_long_to_embed_are_refused_or_cut_as_asked() {
    let fixture = fixture(&[]);
    for length in [600, 600 * 64] {
        let mut ask = json!({"input": ["x", "x".repeat(length)]});
        let (status, answer) = post(&fixture.state, "/v1/embeddings", ask.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer.contains("context_length_exceeded") && answer.contains("input 1"), "{answer}");
        ask["truncate_prompt_tokens"] = json!(-1);
        let answer = parsed(&post(&fixture.state, "/v1/embeddings", ask.clone()).await);
        assert_eq!(answer["usage"]["prompt_tokens"], 513);
    }
    let (status, answer) =
        post(&fixture.state, "/v1/embeddings", json!({"input": "x", "dimensions": "d"})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.contains("\"param\":\"dimensions\""), "{answer}");
}

#[tokio::test]
async fn wrong_queries_get_openai_errors_that_name_the_parameter() {
    let fixture = fixture(&[]);
    for path in ["/api/documents?limit=abc", "/delta/query/general_documents?limit=-1"] {
        let (status, answer) = get(&fixture.state, path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"]["param"], "limit", "{answer}");
    }
}

#[tokio::test]
async fn an_error_is_the_last_event_of_a_stream() {
    let events = futures::stream::iter([Ok(json!(1)), Err(ApiError::bad_request("broken")), Ok(json!(2))]);
    let response = openai::sse::respond(events);
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 16).await.expect("body");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!((events.len(), events[0], events[2]), (3, "1", "[DONE]"), "{text}");
    assert!(events[1].contains("broken"), "{text}");
}
