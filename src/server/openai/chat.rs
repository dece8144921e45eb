//! `/v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Map, Value, json};

use super::super::AppState;
use super::super::auth::Customer;
use super::super::error::{ApiError, Body};
use super::completions::usage_json;
use super::fields::{Fields, Refused};
use super::sampling::SamplingFields;
use super::tools::{ToolReader, Tools};
use crate::rag::{Choice, Finish, GenerateEvent, Prompt, StopCause, TokenText};

/// What only completions take.
const REFUSED: &[Refused] = &[("prompt", &[]), ("echo", &["false"]), ("add_special_tokens", &["false"])];

/// Messages with their content as one text, parts joined by line ends as vLLM joins them; parts that are no text are
/// refused.
pub(super) fn messages(messages: Vec<Map<String, Value>>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages must hold at least one message"));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(at, mut message)| {
            let wrong = |what: &str| ApiError::invalid(format!("messages[{at}]"), what.to_owned());
            if !message.get("role").is_some_and(Value::is_string) {
                return Err(wrong("a message needs a role"));
            }
            match message.get("content") {
                Some(Value::String(_)) => {}
                Some(Value::Array(parts)) => {
                    let mut texts = Vec::new();
                    for part in parts {
                        match (
                            part.get("type").and_then(Value::as_str),
                            part.get("text").and_then(Value::as_str),
                        ) {
                            (Some("text") | None, Some(part)) => texts.push(part),
                            (kind, _) => {
                                return Err(wrong(&format!(
                                    "content parts of type {} are not supported",
                                    kind.unwrap_or("?")
                                )));
                            }
                        }
                    }
                    let text = texts.join("\n");
                    message.insert("content".to_owned(), Value::String(text));
                }
                None | Some(Value::Null) => {
                    message.insert("content".to_owned(), Value::String(String::new()));
                }
                Some(_) => return Err(wrong("content must be a text or a list of parts")),
            }
            // Clients send what they got: to a template a field that is null is there.
            message.retain(|_, value| !value.is_null());
            super::tools::parse_arguments(&mut message).map_err(|what| wrong(&what))?;
            Ok(Value::Object(message))
        })
        .collect()
}

pub(in crate::server) async fn create(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Body(mut fields): Body<Fields>,
) -> Result<Response, ApiError> {
    let target = super::target(&state, &fields.take::<String>("model")?.unwrap_or_default())?;
    let generator = target.generator.clone();
    let with_logprobs = fields.take("logprobs")?.unwrap_or(false);
    let top_logprobs: Option<u8> = fields.take("top_logprobs")?;
    if top_logprobs.is_some_and(|n| n > 20) {
        return Err(ApiError::invalid("top_logprobs", "top_logprobs must be 0 to 20"));
    }
    if top_logprobs.is_some_and(|n| n > 0) && !with_logprobs {
        return Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs to be true"));
    }
    let grammar = super::structured::take(&mut fields)?;
    let tools = Tools::take(&mut fields)?;
    let mut messages = messages(fields.need("messages")?)?;
    let definitions = tools.as_ref().and_then(|tools| tools.prompt(&generator, &mut messages));
    let prompt = Prompt::Chat {
        messages,
        tools: definitions,
        add_generation_prompt: fields.take("add_generation_prompt")?.unwrap_or(true),
        extra: fields.take("chat_template_kwargs")?.unwrap_or_default(),
    };
    let sampling = SamplingFields::take(&mut fields)?;
    fields.refuse(REFUSED)?;
    let mut request = sampling.request(&generator, prompt, &customer)?;
    request.adapter = target.adapter.clone();
    request.sampling.logprobs = with_logprobs.then(|| top_logprobs.unwrap_or(0));
    request.grammar = grammar;
    if let Some(tools) = &tools {
        tools.apply(&generator, &mut request)?;
    }
    let reader = tools.map(|tools| tools.reader(generator.tool_format()));
    let readers = vec![reader; request.n as usize];
    let (id, created, model) = (super::id("chatcmpl"), super::now(), target.name().to_owned());
    let generation = generator.generate(request).await?;
    if !sampling.streams() {
        let generated = generation.collect().await?;
        let choices: Vec<Value> = generated
            .choices
            .iter()
            .zip(readers)
            .map(|(one, reader)| choice(one, reader, with_logprobs))
            .collect();
        let body = json!({"id": id, "object": "chat.completion", "created": created, "model": model, "choices": choices,
            "usage": usage_json(&generated.usage)});
        return Ok(Json(body).into_response());
    }
    let chunk = move |choices: Vec<Value>| json!({"id": id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": choices});
    let roles = (0..readers.len() as u32)
        .map(|index| delta(index, json!({"role": "assistant", "content": ""}), Value::Null));
    let opening: Vec<_> = roles.map(|role| Ok(chunk(vec![role]))).collect();
    let mut choices = ChoiceStreams { readers, with_logprobs };
    let include_usage = sampling.include_usage();
    let events = generation.into_stream().flat_map(move |event| {
        let chunks: Vec<Result<Value, ApiError>> = match event {
            Ok(GenerateEvent::Delta { index, text, tokens }) => {
                choices.push(index, text, &tokens).into_iter().map(|one| Ok(chunk(vec![one]))).collect()
            }
            Ok(GenerateEvent::Finished { index, finish }) => {
                choices.finish(index, &finish).into_iter().map(|one| Ok(chunk(vec![one]))).collect()
            }
            Ok(GenerateEvent::Done(usage)) if include_usage => {
                let mut last = chunk(Vec::new());
                last["usage"] = usage_json(&usage);
                vec![Ok(last)]
            }
            Ok(GenerateEvent::Done(_) | GenerateEvent::Prompt { .. }) => Vec::new(),
            Err(error) => vec![Err(error.into())],
        };
        futures::stream::iter(chunks)
    });
    Ok(super::sse::respond(futures::stream::iter(opening).chain(events)))
}

/// A complete choice.
fn choice(choice: &Choice, reader: Option<ToolReader>, with_logprobs: bool) -> Value {
    let mut message = json!({"role": "assistant", "content": choice.text, "refusal": null});
    let mut reason = choice.finish.as_openai();
    if let Some(reader) = reader {
        let (content, calls) = reader.message(&choice.text);
        message["content"] = content;
        if !calls.is_empty() {
            message["tool_calls"] = Value::Array(calls);
            reason = called(reason);
        }
    }
    json!({
        "index": choice.index,
        "message": message,
        "logprobs": if with_logprobs { logprobs(&choice.tokens) } else { Value::Null },
        "finish_reason": reason,
        "stop_reason": choice.finish.stop.as_ref().map(stop_reason),
    })
}

/// The reason of an answer that has calls.
fn called(reason: &'static str) -> &'static str {
    if reason == "stop" { "tool_calls" } else { reason }
}

/// The choices of a stream.
struct ChoiceStreams {
    readers: Vec<Option<ToolReader>>,
    with_logprobs: bool,
}

impl ChoiceStreams {
    fn push(&mut self, index: u32, text: String, tokens: &[TokenText]) -> Vec<Value> {
        let with_logprobs = self.with_logprobs && !tokens.is_empty();
        let mut deltas = match &mut self.readers[index as usize] {
            Some(reader) => reader.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![json!({"content": text})],
        };
        if deltas.is_empty() && with_logprobs {
            deltas.push(json!({"content": ""}));
        }
        let mut logprobs = if with_logprobs { logprobs(tokens) } else { Value::Null };
        deltas.into_iter().map(|one| delta(index, one, logprobs.take())).collect()
    }

    fn finish(&mut self, index: u32, finish: &Finish) -> Vec<Value> {
        let mut reason = finish.as_openai();
        let mut out = Vec::new();
        if let Some(reader) = &mut self.readers[index as usize] {
            out.extend(reader.finish().into_iter().map(|one| delta(index, one, Value::Null)));
            if reader.called() {
                reason = called(reason);
            }
        }
        let mut last = delta(index, json!({}), Value::Null);
        last["finish_reason"] = json!(reason);
        last["stop_reason"] = json!(finish.stop.as_ref().map(stop_reason));
        out.push(last);
        out
    }
}

fn delta(index: u32, delta: Value, logprobs: Value) -> Value {
    json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null, "stop_reason": null})
}

/// vLLM's `stop_reason`.
pub(super) fn stop_reason(cause: &StopCause) -> Value {
    match cause {
        StopCause::Token(id) => json!(id),
        StopCause::Text(text) => json!(text),
    }
}

/// Chat's shape of log probabilities.
fn logprobs(tokens: &[TokenText]) -> Value {
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let top: Vec<Value> = token
                .top
                .iter()
                .map(|top| json!({"token": top.text, "logprob": top.logprob, "bytes": top.bytes}))
                .collect();
            json!({"token": token.text, "logprob": token.logprob, "bytes": token.bytes, "top_logprobs": top})
        })
        .collect();
    json!({"content": content, "refusal": null})
}
