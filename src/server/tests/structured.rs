//! Structured output and tools over the fake model, which draws among what a grammar allows.

use serde_json::{Value, json};

use super::*;

/// A server whose model ends with byte 0 and takes chats by `template`.
pub(super) fn ending(template: &str) -> Fixture {
    let mut fixture = chatting();
    let generator = fixture.state.generator.take().expect("generator");
    let config = GeneratorConfig {
        name: "fake".to_owned(),
        eos: vec![0],
        sampling: SamplingParams::greedy(),
        citing: Citing::Searched,
        tool_format: None,
    };
    let template = ChatTemplate::compile(template, None, None).expect("compiles");
    let limits = EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_waiting: 8,
        ..EngineConfig::default()
    };
    let (engine, thread) =
        crate::engine::start(limits, || Ok(FakeRunner::new(300, 256, 4096))).expect("engine");
    let tokenizer = generator.tokenizer().clone();
    fixture.state.generator = Some(Generator::new(engine, tokenizer, Some(template), config));
    fixture._engine = thread;
    fixture
}

pub(super) const PLAIN: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}";
pub(super) const MISTRAL: &str = "{% for m in messages %}{{ m.content }}|{% if m.tool_calls %}[TOOL_CALLS]\
                       {% for c in m.tool_calls %}{{ c.function.arguments.a }}{% endfor %}{% endif %}{% endfor %}\
                       {% if tools %}{{ tools | length }}{% endif %}";

fn events(body: &str) -> Vec<Value> {
    let lines = body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    lines.filter(|line| *line != "[DONE]").map(|line| serde_json::from_str(line).expect("json")).collect()
}

fn chat(extra: Value) -> Value {
    let mut ask = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 300});
    ask.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    ask
}

fn add() -> Value {
    let digit = json!({"type": "integer", "minimum": 0, "maximum": 9});
    json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object",
        "properties": {"a": digit, "b": digit}, "required": ["a", "b"], "additionalProperties": false}}})
}

#[tokio::test]
async fn answers_follow_their_schema_whole_and_streamed() {
    let fixture = ending(PLAIN);
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22]}},
        "required": ["ok", "n"], "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": true}});
    for extra in [
        json!({"response_format": format}),
        json!({"guided_json": schema, "guided_decoding_backend": "auto"}),
        json!({"guided_json": schema.to_string()}),
        json!({"structured_outputs": {"json": schema}}),
    ] {
        let mut ask = chat(extra);
        let answer = parsed(&post(&fixture.state, "/v1/chat/completions", ask.clone()).await);
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{answer}");
        let text = choice["message"]["content"].as_str().expect("text");
        let value: Value = serde_json::from_str(text).expect("json");
        assert!(
            value["ok"].is_boolean() && [1, 22].contains(&value["n"].as_i64().expect("a number")),
            "{text}"
        );
        ask["stream"] = json!(true);
        let (_, body) = post(&fixture.state, "/v1/chat/completions", ask).await;
        let streamed: String = events(&body)
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(streamed, text);
    }
}

#[tokio::test]
async fn completions_follow_expressions_choices_and_grammars() {
    let fixture = ending(PLAIN);
    for (extra, good) in [
        (json!({"guided_regex": "[ab]{3}!"}), &["a", "b"][..]),
        (json!({"guided_choice": ["xx", "yyy"]}), &["xx", "yyy"][..]),
        (json!({"guided_grammar": "root ::= \"q\" [0-9]"}), &["q"][..]),
        (json!({"structured_outputs": {"grammar": "start: \"z\" /[0-9]/"}}), &["z"][..]),
    ] {
        let mut ask = json!({"prompt": "p", "max_tokens": 20});
        ask.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let answer = parsed(&post(&fixture.state, "/v1/completions", ask).await);
        let text = answer["choices"][0]["text"].as_str().expect("text");
        assert!(good.iter().any(|start| text.starts_with(start)) && text.len() <= 4, "{extra}: {text}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{extra}: {text}");
    }
}

#[tokio::test]
async fn grammars_and_tools_that_make_no_sense_are_refused_by_name() {
    let fixture = ending(PLAIN);
    let tools = json!([add()]);
    for (extra, param) in [
        (json!({"guided_regex": "("}), "guided_regex"),
        (json!({"guided_json": {"type": "array", "uniqueItems": true}}), "guided_json"),
        (json!({"guided_json": "{"}), "guided_json"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_choice": "a"}), "guided_choice"),
        (json!({"guided_grammar": "start: nothing"}), "guided_grammar"),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice"),
        (json!({"guided_decoding_backend": "outlines"}), "guided_decoding_backend"),
        (json!({"guided_whitespace_pattern": " "}), "guided_whitespace_pattern"),
        (json!({"guided_regex": "a", "min_tokens": 2}), "min_tokens"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), "structured_outputs"),
        (json!({"structured_outputs": {"structural_tag": {}}}), "structural_tag"),
        (json!({"response_format": {"type": "structural_tag"}}), "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0]"),
        (json!({"tools": [add(), add()]}), "tools[1]"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0]"),
        (json!({"tools": tools, "tool_choice": "maybe"}), "tool_choice"),
        (
            json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "sub"}}}),
            "tool_choice",
        ),
        (json!({"tools": tools, "tool_choice": {"type": "allowed_tools"}}), "tool_choice"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": tools, "guided_regex": "a"}), "guided_regex"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}],
                "tool_choice": "required"}),
            "tools",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}),
            "messages[0]",
        ),
    ] {
        let (status, answer) = post(&fixture.state, "/v1/chat/completions", chat(extra.clone())).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{extra}: {answer}");
        let error: Value = serde_json::from_str(&answer).expect("json");
        assert_eq!(error["error"]["param"], param, "{extra}: {answer}");
    }
}

#[tokio::test]
async fn forced_calls_come_whole_and_in_pieces() {
    for (template, id_length) in [(PLAIN, 46), (MISTRAL, 9)] {
        let fixture = ending(template);
        for choice in [json!("required"), json!({"type": "function", "function": {"name": "add"}})] {
            let mut ask =
                chat(json!({"tools": [add()], "tool_choice": choice, "parallel_tool_calls": false}));
            let answer = parsed(&post(&fixture.state, "/v1/chat/completions", ask.clone()).await);
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
            assert!(choice["message"]["content"].is_null(), "{answer}");
            let calls = choice["message"]["tool_calls"].as_array().expect("calls");
            assert_eq!((calls.len(), &calls[0]["type"]), (1, &json!("function")));
            assert_eq!(calls[0]["id"].as_str().expect("an id").len(), id_length);
            let arguments = calls[0]["function"]["arguments"].as_str().expect("text");
            let value: Value = serde_json::from_str(arguments).expect("json");
            assert!(value["a"].is_u64() && value["b"].is_u64(), "{arguments}");

            ask["stream"] = json!(true);
            let (_, body) = post(&fixture.state, "/v1/chat/completions", ask).await;
            let events = events(&body);
            let parts: Vec<&Value> =
                events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0)).collect();
            assert_eq!(parts[0]["function"]["name"], "add");
            assert!(parts[0]["id"].is_string() && parts[1..].iter().all(|part| part["id"].is_null()));
            let streamed: String =
                parts.iter().filter_map(|part| part["function"]["arguments"].as_str()).collect();
            assert_eq!(streamed, arguments);
            let reasons: Vec<&Value> =
                events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
            assert_eq!(*reasons.last().expect("some"), "tool_calls");
        }
    }
}

#[tokio::test]
async fn templates_get_tools_and_earlier_calls_as_they_expect_them() {
    let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": null,
        "refusal": null, "tool_calls": [{"id": "123456789", "type": "function",
            "function": {"name": "add", "arguments": "{\"a\": 7}"}}]},
        {"role": "tool", "tool_call_id": "123456789", "content": "7"}]);
    let ask = json!({"messages": messages, "tools": [add()], "max_tokens": 1});
    let knows = ending(MISTRAL);
    let used = parsed(&post(&knows.state, "/v1/chat/completions", ask.clone()).await);
    assert_eq!(used["usage"]["prompt_tokens"], "x||[TOOL_CALLS]77|1".len());
    // One that does not is told in words.
    let plain = ending(PLAIN);
    let told = parsed(&post(&plain.state, "/v1/chat/completions", ask.clone()).await);
    let mut none = ask;
    none["tool_choice"] = json!("none");
    let untold = parsed(&post(&plain.state, "/v1/chat/completions", none).await);
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().expect("a number");
    assert!(tokens(&told) > tokens(&untold) + 200, "{told} {untold}");
}

#[tokio::test]
async fn a_schema_beside_tools_leaves_room_for_calls() {
    let fixture = ending(MISTRAL);
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ["yes", "no"]}}});
    let mut ask =
        chat(json!({"tools": [add()], "response_format": format, "parallel_tool_calls": false, "n": 16,
        "temperature": 1, "seed": 7}));
    // How many of the answers follow the schema, and how many are calls; each is one of them.
    let kinds = |answer: Value| {
        let (mut said, mut called) = (0, 0);
        for choice in answer["choices"].as_array().expect("choices") {
            let message = &choice["message"];
            match message["content"].as_str() {
                Some(text) => {
                    assert!(["\"yes\"", "\"no\""].contains(&text), "{choice}");
                    said += 1;
                }
                None => {
                    assert_eq!(message["tool_calls"][0]["function"]["name"], "add", "{choice}");
                    called += 1;
                }
            }
        }
        (said, called)
    };
    let (said, called) = kinds(parsed(&post(&fixture.state, "/v1/chat/completions", ask.clone()).await));
    assert!(said > 0 && called > 0, "{said} of the schema and {called} calls");
    ask["tool_choice"] = json!("required");
    let answer = parsed(&post(&fixture.state, "/v1/chat/completions", ask).await);
    assert_eq!(kinds(answer), (0, 16));
}

/// Responses' shape of [`add`].
pub(super) fn flat() -> Value {
    let mut tool = add()["function"].clone();
    tool["type"] = json!("function");
    tool
}

pub(super) fn named_events(body: &str) -> Vec<Value> {
    let lines = body.split("\n\n").filter_map(|event| event.split_once("\ndata: "));
    lines.map(|(_, line)| serde_json::from_str(line).expect("json")).collect()
}

#[tokio::test]
async fn responses_follow_their_format() {
    let fixture = ending(PLAIN);
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
        "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "s", "schema": schema, "strict": true});
    let mut ask = json!({"input": "x", "max_output_tokens": 100, "text": {"format": format}});
    let answer = parsed(&post(&fixture.state, "/v1/responses", ask.clone()).await);
    assert_eq!((&answer["status"], &answer["text"]["format"]), (&json!("completed"), &format));
    let text = answer["output"][0]["content"][0]["text"].as_str().expect("text");
    assert!(serde_json::from_str::<Value>(text).expect("json")["ok"].is_boolean(), "{text}");
    ask["guided_regex"] = json!("a");
    let (status, refusal) = post(&fixture.state, "/v1/responses", ask).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refusal.contains("\"param\":\"guided_regex\""), "{refusal}");
}

#[tokio::test]
async fn responses_have_calls_whole_and_streamed_and_go_on_from_them() {
    for template in [PLAIN, MISTRAL] {
        let fixture = ending(template);
        let mut ask = json!({"input": "x", "max_output_tokens": 300, "tools": [flat()],
            "tool_choice": {"type": "function", "name": "add"}});
        let answer = parsed(&post(&fixture.state, "/v1/responses", ask.clone()).await);
        assert_eq!((&answer["status"], &answer["tools"]), (&json!("completed"), &ask["tools"]));
        let output = answer["output"].as_array().expect("output");
        let call = &output[0];
        assert_eq!((output.len(), &call["type"], &call["name"]), (1, &json!("function_call"), &json!("add")));
        assert_eq!(call["status"], "completed");
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().expect("text")).expect("json");
        assert!(arguments["a"].is_u64(), "{arguments}");

        ask["stream"] = json!(true);
        let (_, body) = post(&fixture.state, "/v1/responses", ask.clone()).await;
        let events = named_events(&body);
        let numbers: Vec<&Value> = events.iter().map(|event| &event["sequence_number"]).collect();
        assert_eq!(json!(numbers), json!((0..events.len()).collect::<Vec<_>>()));
        let mut kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
        kinds.dedup();
        let expected = [
            "created",
            "in_progress",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ];
        assert_eq!(kinds, expected.map(|kind| format!("response.{kind}")));
        let pieces: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
        assert_eq!(json!(pieces), call["arguments"]);
        let last = &events.last().expect("events")["response"];
        assert_eq!(last["output"][0]["arguments"], call["arguments"]);
        let opened = &events[2]["item"];
        assert_eq!((&opened["arguments"], &opened["status"]), (&json!(""), &json!("in_progress")));
        assert_eq!(events[3]["item_id"], opened["id"]);

        // What a kept response called is what a chat with the same calls is asked.
        let output = json!([{"type": "function_call_output", "call_id": call["call_id"], "output": "7"}]);
        let next = json!({"input": output, "previous_response_id": answer["id"], "tools": [flat()],
            "max_output_tokens": 2});
        let next = parsed(&post(&fixture.state, "/v1/responses", next).await);
        let said = json!([{"role": "user", "content": "x"}, call, output[0]]);
        let same = json!({"input": said, "tools": [flat()], "max_output_tokens": 2});
        let same = parsed(&post(&fixture.state, "/v1/responses", same).await);
        assert_eq!(next["usage"]["input_tokens"], same["usage"]["input_tokens"]);
        let words = |answer: &Value| answer["output"][0]["content"].clone();
        assert_eq!(words(&next), words(&same));
        let function = json!({"name": "add", "arguments": call["arguments"]});
        let messages = json!([{"role": "user", "content": "x"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": call["call_id"], "function": function}]},
            {"role": "tool", "tool_call_id": call["call_id"], "content": "7"}]);
        let chat = json!({"messages": messages, "tools": [add()], "max_tokens": 2});
        let chat = parsed(&post(&fixture.state, "/v1/chat/completions", chat).await);
        if template == MISTRAL {
            assert_eq!(next["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
        }
    }
}

#[tokio::test]
async fn tokens_of_a_response_are_told_whole_and_streamed() {
    let fixture = ending(PLAIN);
    let said = "Well, well.";
    let mut ask = json!({"input": "x", "max_output_tokens": 300, "guided_choice": [said], "top_logprobs": 1,
        "include": ["message.output_text.logprobs"]});
    let plain = parsed(&post(&fixture.state, "/v1/responses", ask.clone()).await);
    let part = &plain["output"][0]["content"][0];
    assert_eq!(part["text"], said);
    let tokens = part["logprobs"].as_array().expect("logprobs");
    let spelled: String = tokens.iter().filter_map(|one| one["token"].as_str()).collect();
    assert_eq!(spelled, said);
    ask["stream"] = json!(true);
    let (_, body) = post(&fixture.state, "/v1/responses", ask).await;
    let events = named_events(&body);
    let told = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let told: Vec<&Value> = told.flat_map(|event| event["logprobs"].as_array().expect("list")).collect();
    assert_eq!(json!(told), json!(tokens));
    assert_eq!(
        events.last().expect("last")["response"]["output"][0]["content"],
        plain["output"][0]["content"]
    );
}

#[tokio::test]
async fn a_grammar_that_the_model_cannot_follow_ends_its_answer_with_the_reason() {
    // A model of 64 tokens has no letter.
    let fixture = fixture_over(FakeRunner::new(100, 64, 512), &[], None);
    let mut ask = json!({"prompt": "1", "max_tokens": 5, "guided_regex": "[0-9]{2}z"});
    let (status, refusal) = post(&fixture.state, "/v1/completions", ask.clone()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refusal}");
    assert!(
        refusal.contains("after 2 tokens") && refusal.contains("\"param\":\"guided_regex\""),
        "{refusal}"
    );
    ask["stream"] = json!(true);
    let (status, body) = post(&fixture.state, "/v1/completions", ask).await;
    let events = events(&body);
    assert_eq!((status, events.len()), (StatusCode::OK, 3), "{body}");
    assert_eq!(events[2]["error"]["type"], "invalid_request_error");
}
