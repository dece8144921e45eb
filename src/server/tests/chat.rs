//! What vLLM's users ask of chats beside OpenAI's fields.

use super::*;
use crate::testing::expected_tokens;

async fn chat(fixture: &Fixture, ask: Value) -> Value {
    parsed(&post(&fixture.state, "/v1/chat/completions", ask).await)
}

/// The events of a stream, `[DONE]` aside.
async fn chunks(fixture: &Fixture, mut ask: Value) -> Vec<Value> {
    ask["stream"] = json!(true);
    let (status, body) = post(&fixture.state, "/v1/chat/completions", ask).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let events = body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    events
        .filter(|event| *event != "[DONE]")
        .map(|event| serde_json::from_str(event).expect("json"))
        .collect()
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[tokio::test]
async fn token_ids_are_returned_whole_and_in_pieces() {
    let fixture = chatting();
    let expected = expected_tokens(&ids("ab|"), 3, 256);
    let ask = json!({"messages": [{"role": "user", "content": "ab"}], "max_tokens": 3, "return_token_ids": true,
        "return_tokens_as_token_ids": true, "logprobs": true, "prompt_logprobs": 0});
    let answer = chat(&fixture, ask.clone()).await;
    assert_eq!(answer["prompt_token_ids"], json!(ids("ab|")));
    assert_eq!(
        answer["prompt_logprobs"][1],
        json!({"98": {"logprob": -98.0, "rank": null, "decoded_token": "b"}})
    );
    let choice = &answer["choices"][0];
    assert_eq!(choice["token_ids"], json!(expected));
    let names: Vec<Value> = expected.iter().map(|id| json!(format!("token_id:{id}"))).collect();
    let content = choice["logprobs"]["content"].as_array().expect("logprobs");
    assert_eq!(content.iter().map(|one| one["token"].clone()).collect::<Vec<_>>(), names);

    let (status, refusal) = {
        let mut streaming = ask.clone();
        streaming["stream"] = json!(true);
        post(&fixture.state, "/v1/chat/completions", streaming).await
    };
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refusal.contains("\"param\":\"prompt_logprobs\""), "{refusal}");
    let mut ask = ask;
    ask["prompt_logprobs"] = Value::Null;
    let chunks = chunks(&fixture, ask).await;
    assert_eq!(chunks[0]["prompt_token_ids"], json!(ids("ab|")));
    assert!(chunks[1..].iter().all(|chunk| chunk.get("prompt_token_ids").is_none()));
    let of = |chunk: &Value| chunk["choices"][0]["token_ids"].as_array().cloned().unwrap_or_default();
    assert_eq!(json!(chunks.iter().flat_map(of).collect::<Vec<_>>()), json!(expected));
    let logprobs = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(logprobs.flatten().cloned().collect::<Vec<_>>(), *content);
}

#[tokio::test]
async fn a_stream_counts_in_every_chunk_where_asked_to() {
    let fixture = chatting();
    let mut ask = json!({"messages": [{"role": "user", "content": "ab"}], "max_tokens": 3, "logprobs": true,
        "stream_options": {"include_usage": true}});
    let found = chunks(&fixture, ask.clone()).await;
    let (last, others) = found.split_last().expect("chunks");
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(6)));
    ask["stream_options"]["continuous_usage_stats"] = json!(true);
    let found = chunks(&fixture, ask).await;
    let count = |chunk: &Value| chunk["usage"]["completion_tokens"].as_u64().expect("count");
    // The role, three tokens, the end, the last.
    assert_eq!(found.iter().map(count).collect::<Vec<_>>(), [0, 1, 2, 3, 3, 3]);
    assert!(found.iter().all(|chunk| chunk["usage"]["prompt_tokens"] == 3));
}

#[tokio::test]
async fn a_final_message_is_continued_and_echoed() {
    let fixture = chatting();
    let messages = json!([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]);
    let mut ask = json!({"messages": messages, "max_tokens": 3, "continue_final_message": true});
    let answer = chat(&fixture, ask.clone()).await;
    assert_eq!(answer["usage"]["prompt_tokens"], "ab|cd".len());
    let text = answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
    let same = json!({"prompt": "ab|cd", "max_tokens": 3});
    let same = parsed(&post(&fixture.state, "/v1/completions", same).await);
    assert_eq!(same["choices"][0]["text"], text);
    ask["echo"] = json!(true);
    let echoed = chat(&fixture, ask.clone()).await;
    assert_eq!(echoed["choices"][0]["message"]["content"], format!("cd{text}"));
    let pieces = chunks(&fixture, ask.clone()).await;
    let pieces = pieces.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), format!("cd{text}"));
    let tokens = parsed(&post(&fixture.state, "/tokenize", ask.clone()).await);
    assert_eq!(tokens["tokens"], json!(ids("ab|cd")));
    ask["add_generation_prompt"] = json!(true);
    let (status, refusal) = post(&fixture.state, "/v1/chat/completions", ask.clone()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refusal}");
    ask["add_generation_prompt"] = json!(false);
    ask["messages"][1]["content"] = json!(" ");
    let (status, refusal) = post(&fixture.state, "/v1/chat/completions", ask).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refusal.contains("continued"), "{refusal}");
}

#[tokio::test]
async fn what_chats_do_not_do_is_refused_by_name() {
    let fixture = chatting();
    for (field, value) in [
        ("best_of", json!(2)),
        ("prompt_logprobs", json!(21)),
        ("top_logprobs", json!(21)),
        ("top_logprobs", json!(2)),
        ("return_token_ids", json!(1)),
        ("bad_words", json!(["x"])),
        ("retrieval", json!({})),
    ] {
        let mut ask = json!({"messages": [{"role": "user", "content": "x"}]});
        ask[field] = value;
        let (status, refusal) = post(&fixture.state, "/v1/chat/completions", ask).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{field}");
        assert!(refusal.contains(&format!("\"param\":\"{field}\"")), "{refusal}");
    }
}

#[tokio::test]
async fn tools_are_counted_by_tokenize_as_by_a_chat() {
    let fixture = chatting();
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let messages = json!([{"role": "user", "content": "x"}]);
    let told =
        parsed(&post(&fixture.state, "/tokenize", json!({"messages": messages, "tools": [tool]})).await);
    let plain = parsed(&post(&fixture.state, "/tokenize", json!({"messages": messages})).await);
    let count = |answer: &Value| answer["count"].as_u64().expect("count");
    assert!(count(&told) > count(&plain) + 50, "{told}");
    let ask = json!({"messages": messages, "tools": [tool], "max_tokens": 1});
    assert_eq!(chat(&fixture, ask).await["usage"]["prompt_tokens"], told["count"]);
}
