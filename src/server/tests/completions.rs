//! What vLLM's users ask of completions beside OpenAI's fields.

use super::*;
use crate::testing::expected_tokens;

async fn complete(fixture: &Fixture, ask: Value) -> Value {
    parsed(&post(&fixture.state, "/v1/completions", ask).await)
}

/// The events of a stream, `[DONE]` aside.
async fn chunks(fixture: &Fixture, mut ask: Value) -> Vec<Value> {
    ask["stream"] = json!(true);
    let (status, body) = post(&fixture.state, "/v1/completions", ask).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let events: Vec<&str> = body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    let (last, events) = events.split_last().expect("events");
    assert_eq!(*last, "[DONE]");
    events.iter().map(|event| serde_json::from_str(event).expect("json")).collect()
}

#[tokio::test]
async fn best_of_keeps_n_and_counts_all() {
    let fixture = fixture(&[]);
    let ask = json!({"prompt": ["ab", "c"], "max_tokens": 4, "n": 2, "best_of": 3, "temperature": 1});
    let answer = complete(&fixture, ask.clone()).await;
    let indices: Vec<&Value> =
        answer["choices"].as_array().expect("list").iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(answer["usage"]["completion_tokens"], 2 * 3 * 4);
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null, "not asked for");
    let mut streaming = ask;
    streaming["stream"] = json!(true);
    let (status, refusal) = post(&fixture.state, "/v1/completions", streaming).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refusal.contains("\"param\":\"best_of\""), "{refusal}");
}

#[tokio::test]
async fn prompts_of_one_request_are_read_side_by_side() {
    let fixture = fixture(&[]);
    // Longer than what an answer may be behind its reader.
    let ask = json!({"prompt": ["ab", "c"], "max_tokens": 500});
    let answer = complete(&fixture, ask).await;
    assert_eq!(answer["usage"]["completion_tokens"], 1000);
}

#[tokio::test]
async fn no_prompt_is_left_unread_while_others_are_tokenized() {
    let runner = FakeRunner::new(100, 256, 512).with_delay(Duration::from_micros(100));
    let fixture = fixture_over(runner, &[], None);
    // The first would be generated, further than an answer may be behind its reader, before the second is in tokens.
    let ask = json!({"prompt": ["ab", "x ".repeat(1 << 18)], "max_tokens": 500, "truncate_prompt_tokens": 2});
    assert_eq!(complete(&fixture, ask).await["usage"]["completion_tokens"], 1000);
}

#[tokio::test]
async fn a_prompt_that_is_refused_costs_the_others_nothing() {
    let fixture = fixture(&[]);
    let ask = json!({"prompt": ["ab", "x".repeat(510)], "max_tokens": 3});
    let (status, refusal) = post(&fixture.state, "/v1/completions", ask).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refusal}");
    let stats = fixture.state.generator.as_ref().expect("generator").engine().stats();
    assert_eq!((stats.steps, stats.prompt_tokens), (0, 0));
}

#[tokio::test]
async fn a_grammar_is_compiled_once_for_a_customer() {
    let fixture = fixture(&[]);
    let generator = fixture.state.generator.as_ref().expect("generator");
    let compiled = || generator.grammar_stats().compiled;
    let mut ask = json!({"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 20, "guided_regex": "[ab]{3}!"});
    let first = complete(&fixture, ask.clone()).await;
    assert_eq!(compiled(), 1, "for all prompts");
    let texts = |answer: &Value| {
        let choices = answer["choices"].as_array().expect("choices").iter();
        choices.map(|choice| choice["text"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    for text in texts(&first) {
        assert!(text.len() == 4 && text.ends_with('!'), "{text}");
    }
    assert_eq!(texts(&complete(&fixture, ask.clone()).await), texts(&first), "from its beginning");
    assert_eq!((compiled(), generator.grammar_stats().reused), (1, 1));
    parsed(&post(&fixture.state, "/v1/completions?customer_id=other", ask.clone()).await);
    assert_eq!(compiled(), 2, "nobody learns what others ask for");
    ask["guided_regex"] = json!("[ab]{3}[?]");
    complete(&fixture, ask).await;
    assert_eq!(compiled(), 3);
    let (_, metrics) = get(&fixture.state, "/metrics").await;
    let line = "tarn_grammars_compiled_total{model_name=\"fake\"} 3";
    assert!(metrics.as_str().expect("text").contains(line));
}

#[tokio::test]
async fn prompt_logprobs_have_vllms_shape() {
    let fixture = fixture(&[]);
    let answer = complete(&fixture, json!({"prompt": "ab", "max_tokens": 1, "prompt_logprobs": 0})).await;
    let found = &answer["choices"][0]["prompt_logprobs"];
    assert_eq!(found[0], Value::Null);
    assert_eq!(found[1], json!({"98": {"logprob": -98.0, "rank": null, "decoded_token": "b"}}));
    assert_eq!(answer["choices"][0]["text"].as_str().map(|text| text.contains("ab")), Some(false), "no echo");
    let (status, _) =
        post(&fixture.state, "/v1/completions", json!({"prompt": "a", "prompt_logprobs": 1, "stream": true}))
            .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn token_ids_are_returned_whole_and_in_pieces() {
    let fixture = fixture(&[]);
    let expected = expected_tokens(&[97, 98], 3, 256);
    for echo in [false, true] {
        let ask = json!({"prompt": "ab", "max_tokens": 3, "return_token_ids": true, "echo": echo, "logprobs": 0,
            "return_tokens_as_token_ids": true});
        let answer = complete(&fixture, ask.clone()).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["prompt_token_ids"], json!([97, 98]));
        assert_eq!(choice["token_ids"], json!(expected));
        let names: Vec<String> = expected.iter().map(|id| format!("token_id:{id}")).collect();
        let found = choice["logprobs"]["tokens"].as_array().expect("list");
        assert_eq!(json!(found[found.len() - 3..]), json!(names));
        let first = found.len() - 3;
        assert!(choice["logprobs"]["top_logprobs"][first][&names[0]].is_number(), "{choice}");
        let chunks = chunks(&fixture, ask).await;
        assert_eq!(chunks[0]["choices"][0]["prompt_token_ids"], json!([97, 98]));
        assert!(chunks[1..].iter().all(|chunk| chunk["choices"][0].get("prompt_token_ids").is_none()));
        let ids: Vec<Value> = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"][0]["token_ids"].as_array().expect("ids").clone())
            .collect();
        assert_eq!(json!(ids), json!(expected));
    }
}

#[tokio::test]
async fn a_prompt_is_cut_to_its_last_tokens() {
    let fixture = fixture(&[]);
    let ask = json!({"prompt": "abcd", "max_tokens": 3, "truncate_prompt_tokens": 2, "return_token_ids": true, "echo": true});
    let answer = complete(&fixture, ask).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["prompt_token_ids"], json!([99, 100]));
    assert_eq!(choice["token_ids"], json!(expected_tokens(&[99, 100], 3, 256)));
    assert!(choice["text"].as_str().expect("text").starts_with("cd"), "{choice}");
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
    let long = json!({"prompt": "x".repeat(512 * 70), "max_tokens": 12, "truncate_prompt_tokens": -1});
    assert_eq!(complete(&fixture, long).await["usage"]["prompt_tokens"], 500);
}

#[tokio::test]
async fn a_chat_is_cut_to_its_last_tokens_too() {
    let messages = json!([{"role": "user", "content": "abc"}]);
    let ask = json!({"messages": messages, "max_tokens": 2, "truncate_prompt_tokens": 3});
    let answer = parsed(&post(&chatting().state, "/v1/chat/completions", ask).await);
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    let same = json!({"prompt": "bc|", "max_tokens": 2});
    let same = complete(&fixture(&[]), same).await;
    assert_eq!(answer["choices"][0]["message"]["content"], same["choices"][0]["text"]);
}

#[tokio::test]
async fn texts_may_come_without_the_models_own_tokens() {
    let fixture = fixture(&[]);
    let mut ask = json!({"prompt": ["ab", "c"], "max_tokens": 2, "add_special_tokens": false, "echo": true});
    let answer = complete(&fixture, ask.clone()).await;
    assert!(answer["choices"][0]["text"].as_str().expect("text").starts_with("ab"), "{answer}");
    ask["prompt"] = json!("x".repeat(512 * 64 + 1));
    let (status, refusal) = post(&fixture.state, "/v1/completions", ask).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refusal.contains("context_length_exceeded"), "{refusal}");
}

#[tokio::test]
async fn an_answer_that_fails_on_its_way_ends_its_stream_with_the_error() {
    let first = expected_tokens(&[97], 1, 256)[0];
    let fixture = fixture_over(FakeRunner::new(100, 256, 512).refusing(first), &[], None);
    let chunks = chunks(&fixture, json!({"prompt": "a", "max_tokens": 5, "logprobs": 0})).await;
    assert_eq!(chunks.len(), 2, "{chunks:?}");
    assert_eq!(chunks[0]["choices"][0]["index"], 0);
    assert_eq!(chunks[1]["error"]["type"], "server_error");
}

#[tokio::test]
async fn tokens_that_are_not_allowed_are_impossible() {
    let fixture = fixture(&[]);
    let generator = fixture.state.generator.as_ref().expect("generator");
    let ask = json!({"allowed_token_ids": [3, 5], "logit_bias": {"3": 1}});
    let mut fields = serde_json::from_value(ask).expect("fields");
    let sampling = openai::sampling::SamplingFields::take(&mut fields).expect("takes");
    let request =
        sampling.request(generator, crate::rag::Prompt::Tokens(vec![1]), "default").expect("request");
    assert_eq!(request.sampling.logit_bias, [(3, 1.0)]);
    let allowed = request.sampling.allowed.expect("a mask");
    assert!((0..256).all(|id| allowed.allows(id) == [3, 5].contains(&id)));
}

#[tokio::test]
async fn seeds_are_whole_numbers_of_64_bits_and_priority_is_vllms() {
    use crate::engine::Priority;
    let fixture = fixture(&[]);
    let generator = fixture.state.generator.as_ref().expect("generator");
    let request = |ask: Value| {
        let mut fields = serde_json::from_value(ask).expect("fields");
        let sampling = openai::sampling::SamplingFields::take(&mut fields).expect("takes");
        sampling.request(generator, crate::rag::Prompt::Tokens(vec![1]), "default").expect("request")
    };
    for (seed, expected) in [
        (json!(7), Some(7)),
        (json!(-1), None),
        (json!(-2), Some(u64::MAX - 1)),
        (json!(u64::MAX), Some(u64::MAX)),
        (json!(i64::MIN), Some(1 << 63)),
        (Value::Null, None),
    ] {
        assert_eq!(request(json!({"seed": seed})).sampling.seed, expected, "{seed}");
    }
    assert_eq!(request(json!({"priority": 3})).priority, Priority::Batch);
    assert_eq!(request(json!({"priority": -3})).priority, Priority::Interactive);
}

#[tokio::test]
async fn streams_of_several_prompts_keep_their_indices_and_offsets() {
    let fixture = fixture(&[]);
    let ask = json!({"prompt": [[97, 98], [99]], "n": 2, "max_tokens": 3, "echo": true, "logprobs": 0});
    let whole = complete(&fixture, ask.clone()).await;
    let chunks = chunks(&fixture, ask).await;
    for index in 0..4 {
        let own =
            || chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        let text: String = own().filter_map(|choice| choice["text"].as_str()).collect();
        let expected = &whole["choices"][index];
        assert_eq!(expected["index"], index);
        assert_eq!(expected["text"], json!(text));
        for field in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
            let parts = own().filter_map(|choice| choice["logprobs"][field].as_array()).flatten();
            let parts: Vec<&Value> = parts.collect();
            assert_eq!(json!(parts), expected["logprobs"][field], "{field} of {index}");
        }
        assert_eq!(own().next_back().expect("last")["finish_reason"], "length");
    }
}

#[tokio::test]
async fn a_stream_counts_in_every_chunk_where_asked_to() {
    let fixture = fixture(&[]);
    let mut ask = json!({"prompt": "ab", "max_tokens": 3, "stream_options": {"include_usage": true}});
    let found = chunks(&fixture, ask.clone()).await;
    let (last, others) = found.split_last().expect("chunks");
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(5)));
    ask["stream_options"]["continuous_usage_stats"] = json!(true);
    for echo in [false, true] {
        ask["echo"] = json!(echo);
        ask["logprobs"] = json!(0);
        let found = chunks(&fixture, ask.clone()).await;
        let counts: Vec<u64> =
            found.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().expect("count")).collect();
        let expected: &[u64] = if echo { &[0, 1, 2, 3, 3, 3] } else { &[1, 2, 3, 3, 3] };
        assert_eq!(counts, expected);
        assert!(found.iter().all(|chunk| chunk["usage"]["prompt_tokens"] == 2));
    }
}

#[tokio::test]
async fn a_prompt_may_fill_the_window_where_no_token_is_asked_for() {
    let fixture = fixture(&[]);
    let ask = json!({"prompt": "x".repeat(512), "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = parsed(&post(&fixture.state, "/v1/completions", ask.clone()).await);
    assert_eq!(answer["usage"]["prompt_tokens"], 512);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&ask["prompt"], &json!("length")));
    let scores = choice["logprobs"]["token_logprobs"].as_array().expect("scores");
    assert_eq!((scores.len(), &scores[0]), (512, &Value::Null));
    assert!(scores[1..].iter().all(Value::is_number));
    let streamed = chunks(&fixture, ask).await;
    assert_eq!(streamed[0]["choices"][0]["logprobs"], choice["logprobs"], "{}", streamed.len());
}

#[tokio::test]
async fn top_logprobs_of_completions_have_the_token_itself() {
    let fixture = fixture(&[]);
    let ask = json!({"prompt": "x", "max_tokens": 2, "logprobs": 0});
    let answer = parsed(&post(&fixture.state, "/v1/completions", ask).await);
    let logprobs = &answer["choices"][0]["logprobs"];
    for at in 0..2 {
        let token = logprobs["tokens"][at].as_str().expect("token");
        assert_eq!(logprobs["top_logprobs"][at][token], logprobs["token_logprobs"][at], "{logprobs}");
    }
}

#[tokio::test]
async fn an_answer_cut_by_a_stop_text_costs_no_more_steps() {
    let runner = FakeRunner::new(100, 256, 512).with_delay(Duration::from_millis(2));
    let fixture = fixture_over(runner, &[], None);
    let mut ask = json!({"prompt": "ab", "max_tokens": 150, "n": 2, "temperature": 1, "seed": 5,
        "return_token_ids": true});
    let free = complete(&fixture, ask.clone()).await;
    let text = |answer: &Value, at: usize| answer["choices"][at]["text"].as_str().expect("text").to_owned();
    let (first, second) = (text(&free, 0), text(&free, 1));
    let stop = first.chars().find(|c| c.is_ascii_graphic() && !second.contains(*c)).expect("one of its own");
    let engine = fixture.state.generator.as_ref().expect("generator").engine().clone();
    let before = engine.stats().generation_tokens;
    ask["stop"] = json!(stop.to_string());
    let cut = complete(&fixture, ask).await;
    assert_eq!(text(&cut, 0), first[..first.find(stop).expect("found")]);
    assert_eq!((text(&cut, 1), &cut["choices"][1]["finish_reason"]), (second, &json!("length")));
    assert_eq!(
        (&cut["choices"][0]["finish_reason"], &cut["choices"][0]["stop_reason"]),
        (&json!("stop"), &json!(stop))
    );
    let seen = cut["choices"][0]["token_ids"].as_array().expect("ids").len() as u64;
    assert_eq!(cut["usage"]["completion_tokens"], seen + 150);
    let computed = engine.stats().generation_tokens - before;
    assert!((seen + 150..seen + 150 + 40).contains(&computed), "{computed} for {seen} and 150");
}
