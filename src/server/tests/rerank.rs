//! `/v1/rerank`, `/score` and `rerank: true` over a fake that counts common letters.

use super::*;
use crate::testing::fake_embedder_with_reranker;

fn reranking() -> (Fixture, EmbedThread) {
    let mut fixture = fixture(&[]);
    let (embed, thread) = fake_embedder_with_reranker(8);
    let state = &mut fixture.state;
    state.rag = RagService::new(state.lakes.clone(), embed.clone(), None, RagConfig::default());
    state.embed = embed;
    (fixture, thread)
}

async fn ask(state: &AppState, path: &str, body: Value) -> (StatusCode, Value) {
    let (status, body) = post(state, path, body).await;
    (status, serde_json::from_str(&body).expect("json"))
}

#[tokio::test]
async fn documents_come_back_best_first_under_every_path() {
    let (fixture, _thread) = reranking();
    let body =
        json!({"model": "fake-reranker", "query": "abc", "documents": ["xax", {"text": "abcab"}, "zz", ""]});
    for path in ["/v1/rerank", "/v2/rerank", "/rerank"] {
        let (status, answer) = ask(&fixture.state, path, body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let results: Vec<Value> = answer["results"].as_array().expect("results").clone();
        let seen: Vec<_> =
            results.iter().map(|r| (r["index"].as_u64(), r["relevance_score"].as_f64())).collect();
        let expected = [(1, 5.0), (0, 1.0), (2, 0.0), (3, 0.0)].map(|(at, score)| (Some(at), Some(score)));
        assert_eq!(seen, expected, "{path}");
        assert_eq!(results[0]["document"]["text"], "abcab");
        // Four times "abc|", and the documents' letters.
        assert_eq!(answer["usage"]["total_tokens"], 16 + 10);
    }
    let mut few = body;
    few["top_n"] = json!(1);
    few["return_documents"] = json!(false);
    let (_, answer) = ask(&fixture.state, "/v1/rerank", few).await;
    assert_eq!(answer["results"], json!([{"index": 1, "relevance_score": 5.0}]));
    let (_, models) = get(&fixture.state, "/v1/models/fake-reranker").await;
    assert_eq!(models["max_model_len"], 64);
}

#[tokio::test]
async fn pairs_are_scored_one_to_many_and_one_to_one() {
    let (fixture, _thread) = reranking();
    for (first, expected) in [(json!("ab"), [2.0, 1.0]), (json!(["ab", "x"]), [2.0, 0.0])] {
        let body = json!({"text_1": first, "text_2": ["ab", "b"]});
        let (status, answer) = ask(&fixture.state, "/v1/score", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let scores: Vec<f64> =
            answer["data"].as_array().expect("data").iter().filter_map(|one| one["score"].as_f64()).collect();
        assert_eq!(scores, expected);
    }
    let body = json!({"text_1": ["a", "b", "c"], "text_2": ["a", "b"]});
    let (status, answer) = ask(&fixture.state, "/score", body).await;
    assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("text_1")));
}

#[tokio::test]
async fn what_cannot_be_reranked_is_refused_by_field() {
    let (fixture, _thread) = reranking();
    let with = |field: &str, value: Value| {
        let mut body = json!({"query": "abc", "documents": ["a"]});
        body[field] = value;
        body
    };
    for (field, value) in [
        ("query", json!(" ")),
        ("query", Value::Null),
        ("documents", json!([])),
        ("documents", json!([1])),
        ("documents", json!(["a"].repeat(2049))),
        ("truncate_prompt_tokens", json!(65)),
        ("truncate_prompt_tokens", json!(-2)),
        ("top_n", json!(-1)),
        ("rank_fields", json!(["title"])),
    ] {
        let (status, answer) = ask(&fixture.state, "/v1/rerank", with(field, value.clone())).await;
        assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(field)), "{value}");
    }
    let (status, _) = ask(&fixture.state, "/v1/rerank", with("model", json!("fake"))).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn without_a_reranker_nothing_reranks() {
    let fixture = fixture(&[]);
    for (path, body, param) in [
        ("/v1/rerank", json!({"query": "a", "documents": ["a"]}), "model"),
        ("/score", json!({"text_1": "a", "text_2": "a"}), "model"),
        ("/v1/rag/query", json!({"query": "a", "rerank": true, "generate": false}), "rerank"),
    ] {
        let (status, answer) = ask(&fixture.state, path, body).await;
        assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{answer}");
        assert!(
            answer["error"]["message"].as_str().is_some_and(|said| said.contains("--reranker")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_long_pair_is_cut_where_that_was_asked_for() {
    let (fixture, _thread) = reranking();
    let long = "a".repeat(500);
    let count = async |cut: Value| {
        let body = json!({"query": "a", "documents": [long], "truncate_prompt_tokens": cut});
        ask(&fixture.state, "/v1/rerank", body).await.1["usage"]["total_tokens"].clone()
    };
    assert_eq!(count(Value::Null).await, 64);
    assert_eq!(count(json!(-1)).await, 64);
    assert_eq!(count(json!(10)).await, 10);
}
