//! `/v1/responses`.

use super::structured::{MISTRAL, PLAIN, ending, flat, named_events};
use super::*;
use crate::testing::expected_tokens;

async fn respond(fixture: &Fixture, ask: Value) -> Value {
    parsed(&post(&fixture.state, "/v1/responses", ask).await)
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().expect("text")
}

#[tokio::test]
async fn a_conversation_goes_on_from_a_stored_response() {
    let fixture = chatting();
    let ask = json!({"input": "ab", "instructions": "be brief", "max_output_tokens": 4, "temperature": 0,
        "metadata": {"k": "v"}});
    let first = respond(&fixture, ask).await;
    assert_eq!((&first["object"], &first["metadata"]["k"]), (&json!("response"), &json!("v")));
    assert_eq!(
        (&first["status"], &first["output"][0]["status"]),
        (&json!("incomplete"), &json!("incomplete"))
    );
    assert_eq!(first["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(first["usage"]["output_tokens"], 4);
    assert_eq!(first["usage"]["input_tokens"], "be brief|ab|".len());
    let id = first["id"].as_str().expect("id");
    assert_eq!(get(&fixture.state, &format!("/v1/responses/{id}")).await, (StatusCode::OK, first.clone()));

    let items = json!([{"role": "user", "content": [{"type": "input_text", "text": "c"}]}]);
    let ask = json!({"input": items, "previous_response_id": id, "max_output_tokens": 2});
    let second = respond(&fixture, ask).await;
    // Instructions are not carried on; the answer is.
    let chat = json!({"max_tokens": 2, "messages": [{"role": "user", "content": "ab"},
        {"role": "assistant", "content": text(&first)}, {"role": "user", "content": "c"}]});
    let chat = parsed(&post(&fixture.state, "/v1/chat/completions", chat).await);
    assert_eq!(second["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(json!(text(&second)), chat["choices"][0]["message"]["content"]);
}

#[tokio::test]
async fn responses_are_kept_by_customer_until_they_are_deleted() {
    let fixture = chatting();
    let first = respond(&fixture, json!({"input": "ab", "max_output_tokens": 1})).await;
    let path = format!("/v1/responses/{}", first["id"].as_str().expect("id"));
    let foreign = format!("{path}?customer_id=other");
    assert_eq!(get(&fixture.state, &foreign).await.0, StatusCode::NOT_FOUND);
    let ask = json!({"input": "c", "previous_response_id": first["id"]});
    assert_eq!(
        post(&fixture.state, "/v1/responses?customer_id=other", ask.clone()).await.0,
        StatusCode::NOT_FOUND
    );
    let delete = |path: &str| Request::delete(path).body(Body::empty()).expect("request");
    assert_eq!(send(&fixture.state, delete(&foreign)).await.0, StatusCode::NOT_FOUND);
    let (status, deleted) = send(&fixture.state, delete(&path)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(deleted.contains("\"deleted\":true"), "{deleted}");
    assert_eq!(get(&fixture.state, &path).await.0, StatusCode::NOT_FOUND);
    assert_eq!(post(&fixture.state, "/v1/responses", ask).await.0, StatusCode::NOT_FOUND);
    let unkept = respond(&fixture, json!({"input": "ab", "max_output_tokens": 1, "store": false})).await;
    let path = format!("/v1/responses/{}", unkept["id"].as_str().expect("id"));
    assert_eq!(get(&fixture.state, &path).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_stream_has_openais_events_in_order() {
    let fixture = chatting();
    let ask = json!({"input": "ab", "max_output_tokens": 5, "temperature": 0});
    let whole = respond(&fixture, ask.clone()).await;
    let mut streaming = ask;
    streaming["stream"] = json!(true);
    let (status, body) = post(&fixture.state, "/v1/responses", streaming).await;
    assert_eq!(status, StatusCode::OK);
    let events: Vec<(&str, Value)> = body
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("event: ")?.split_once("\ndata: "))
        .map(|(name, data)| (name, serde_json::from_str(data).expect("json")))
        .collect();
    for (at, (name, event)) in events.iter().enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(at)));
    }
    let mut kinds: Vec<&str> = events.iter().map(|(name, _)| *name).collect();
    let deltas = kinds.iter().filter(|kind| **kind == "response.output_text.delta").count();
    assert!(deltas > 0);
    kinds.dedup();
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ];
    assert_eq!(kinds, expected.map(|kind| format!("response.{kind}")));
    let text: String = events.iter().filter_map(|(_, event)| event["delta"].as_str()).collect();
    assert_eq!(text, super::responses::text(&whole));
    let (_, last) = events.last().expect("events");
    assert_eq!(super::responses::text(&last["response"]), text);
    let path = format!("/v1/responses/{}", last["response"]["id"].as_str().expect("id"));
    assert_eq!(get(&fixture.state, &path).await.1, last["response"], "kept as it was told");
}

/// A response without what is fresh in each.
fn lasting(response: &Value) -> Value {
    match response {
        Value::Object(fields) => {
            let fresh = |name: &str| ["id", "call_id", "created_at"].contains(&name);
            let fields = fields.iter().filter(|(name, _)| !fresh(name));
            fields.map(|(name, value)| (name.clone(), lasting(value))).collect()
        }
        Value::Array(values) => values.iter().map(lasting).collect(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_response_that_is_given_whole() {
    let tokens = json!(["message.output_text.logprobs"]);
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"],
        "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "s", "schema": schema, "strict": true});
    for (template, status, extra) in [
        (PLAIN, "incomplete", json!({"max_output_tokens": 9})),
        (PLAIN, "incomplete", json!({"max_output_tokens": 9, "include": tokens, "top_logprobs": 1})),
        (PLAIN, "completed", json!({"text": {"format": format}})),
        (PLAIN, "completed", json!({"guided_choice": ["well, well"], "include": tokens})),
        (PLAIN, "completed", json!({"guided_choice": ["well, well"], "include": tokens, "stop": [", we"]})),
        (
            PLAIN,
            "completed",
            json!({"tools": [flat()], "guided_choice": ["\"well\""], "tool_choice": "none"}),
        ),
        (PLAIN, "completed", json!({"tools": [flat()], "tool_choice": "required", "include": tokens})),
        (
            MISTRAL,
            "completed",
            json!({"tools": [flat()], "tool_choice": "required", "parallel_tool_calls": false}),
        ),
        // In the middle of a call's arguments, and of its beginning.
        (PLAIN, "incomplete", json!({"tools": [flat()], "tool_choice": "required", "max_output_tokens": 50})),
        (PLAIN, "incomplete", json!({"tools": [flat()], "tool_choice": "required", "max_output_tokens": 14})),
    ] {
        let mut ask = json!({"input": "x", "max_output_tokens": 1500, "metadata": {"k": "v"}});
        ask.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        // A server each: the second would find the prompt in its cache, and say so.
        let whole = respond(&ending(template), ask.clone()).await;
        assert_eq!(whole["status"], status, "{extra}: {whole}");
        ask["stream"] = json!(true);
        let (_, body) = post(&ending(template).state, "/v1/responses", ask).await;
        let events = named_events(&body);
        let last = events.last().expect("events");
        assert_eq!(last["type"], format!("response.{status}"));
        assert_eq!(lasting(&last["response"]), lasting(&whole), "{extra}");
    }
}

#[tokio::test]
async fn an_answer_that_fails_on_its_way_says_so_and_is_not_kept() {
    let first = expected_tokens(b"ab|".map(u32::from).as_slice(), 1, 256)[0];
    let fixture = fixture_over(FakeRunner::new(100, 256, 512).refusing(first), &[], Some(lines()));
    let ask = json!({"input": "ab", "max_output_tokens": 5, "stream": true});
    let (status, body) = post(&fixture.state, "/v1/responses", ask).await;
    assert_eq!(status, StatusCode::OK, "the first token was sent");
    let (_, last) = body.trim().rsplit_once("data: ").expect("events");
    let last: Value = serde_json::from_str(last).expect("json");
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["code"], "server_error");
    let path = format!("/v1/responses/{}", last["response"]["id"].as_str().expect("id"));
    assert_eq!(get(&fixture.state, &path).await.0, StatusCode::NOT_FOUND);
    let ask = json!({"input": "ab", "max_output_tokens": 5});
    assert_eq!(post(&fixture.state, "/v1/responses", ask).await.0, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_conversation_that_is_too_long_is_refused_or_cut() {
    let fixture = chatting();
    let long = |role: &str| json!({"role": role, "content": "x".repeat(300)});
    let short = |role: &str| json!({"role": role, "content": "cd"});
    let items = json!([long("user"), long("assistant"), short("user"), short("assistant"), {"role": "user", "content": "ab"}]);
    let mut ask = json!({"input": items, "max_output_tokens": 10, "instructions": "i"});
    let (status, refusal) = post(&fixture.state, "/v1/responses", ask.clone()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refusal.contains("context_length_exceeded"), "{refusal}");
    ask["truncation"] = json!("auto");
    let answer = respond(&fixture, ask).await;
    assert_eq!(answer["usage"]["input_tokens"], "i|cd|cd|ab|".len(), "whole turns go, instructions do not");
    assert_eq!(answer["truncation"], "auto");
    let many: Vec<Value> = (0..20_000).map(|_| json!({"role": "user", "content": "x"})).collect();
    let ask = json!({"input": many, "max_output_tokens": 12, "truncation": "auto"});
    assert_eq!(respond(&fixture, ask).await["usage"]["input_tokens"], 500);
}

#[tokio::test]
async fn what_responses_do_not_do_is_refused_by_name() {
    let fixture = chatting();
    for (field, value, param) in [
        ("background", json!(true), "background"),
        ("conversation", json!("conv_1"), "conversation"),
        ("reasoning", json!({"effort": "high"}), "reasoning"),
        ("prompt", json!({"id": "p"}), "prompt"),
        ("include", json!(["reasoning.encrypted_content"]), "include"),
        ("tools", json!([{"type": "web_search"}]), "tools[0]"),
        ("tool_choice", json!({"type": "function", "name": "f"}), "tool_choice"),
        ("text", json!({"format": {"type": "xml"}}), "text.format"),
        ("text", json!({"format": {"type": "json_schema", "name": "s"}}), "text.format"),
        ("text", json!({"verbosity": "high"}), "text.verbosity"),
        ("truncation", json!("some"), "truncation"),
        ("metadata", json!({"k": 1}), "metadata"),
        ("max_output_tokens", json!(0), "max_output_tokens"),
        ("max_tokens", json!(5), "max_tokens"),
        ("top_logprobs", json!(2), "top_logprobs"),
        ("temperature", json!(3), "temperature"),
        ("input", json!([]), "input"),
        ("input", json!([{"type": "function_call", "name": "f"}]), "input[0]"),
        ("input", json!([{"type": "function_call_output", "output": "x"}]), "input[0]"),
        ("input", json!([{"type": "reasoning"}]), "input[0]"),
        ("input", json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0]"),
        ("input", json!([{"role": "tool", "content": "x"}]), "input[0]"),
        ("input", json!(7), "input"),
        ("input", Value::Null, "input"),
    ] {
        let mut ask = json!({"input": "x", "max_output_tokens": 1});
        ask[field] = value;
        let (status, refusal) = post(&fixture.state, "/v1/responses", ask).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{field}: {refusal}");
        assert!(refusal.contains(&format!("\"param\":\"{param}\"")), "{field}: {refusal}");
    }
    let neutral = json!({"input": "x", "max_output_tokens": 1, "tools": [], "tool_choice": "auto", "include": [],
        "text": {"format": {"type": "text"}}, "reasoning": {"effort": null}, "service_tier": "auto", "user": "u",
        "background": false, "stream_options": null, "parallel_tool_calls": false});
    assert_eq!(respond(&fixture, neutral).await["parallel_tool_calls"], false);
    let unknown = Request::get("/v1/responses/resp_x?stream=true").body(Body::empty()).expect("request");
    assert_eq!(send(&fixture.state, unknown).await.0, StatusCode::BAD_REQUEST);
}
