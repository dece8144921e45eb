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
use crate::rag::{Finish, GenerateEvent, Prompt, StopCause, TokenText};

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
    let prompt = Prompt::Chat {
        messages: messages(fields.need("messages")?)?,
        tools: None,
        add_generation_prompt: fields.take("add_generation_prompt")?.unwrap_or(true),
        extra: fields.take("chat_template_kwargs")?.unwrap_or_default(),
    };
    let sampling = SamplingFields::take(&mut fields)?;
    fields.refuse(REFUSED)?;
    let mut request = sampling.request(&generator, prompt, &customer)?;
    request.adapter = target.adapter.clone();
    request.sampling.logprobs = with_logprobs.then(|| top_logprobs.unwrap_or(0));
    let (n, include_usage) = (request.n, sampling.include_usage());
    let (id, created, model) = (super::id("chatcmpl"), super::now(), target.name().to_owned());
    let generation = generator.generate(request).await?;
    if !sampling.streams() {
        let generated = generation.collect().await?;
        let choices: Vec<Value> = generated
            .choices
            .iter()
            .map(|choice| {
                json!({
                    "index": choice.index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": null},
                    "logprobs": if with_logprobs { logprobs(&choice.tokens) } else { Value::Null },
                    "finish_reason": choice.finish.as_openai(),
                    "stop_reason": choice.finish.stop.as_ref().map(stop_reason),
                })
            })
            .collect();
        let body = json!({"id": id, "object": "chat.completion", "created": created, "model": model, "choices": choices,
            "usage": usage_json(&generated.usage)});
        return Ok(Json(body).into_response());
    }
    let chunk = move |choices: Vec<Value>| json!({"id": id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": choices});
    let delta = |index: u32, delta: Value, logprobs: Value, finish: Option<&Finish>| {
        let stop = finish.and_then(|finish| finish.stop.as_ref()).map(stop_reason);
        json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish.map(Finish::as_openai), "stop_reason": stop})
    };
    let roles =
        (0..n).map(|index| delta(index, json!({"role": "assistant", "content": ""}), Value::Null, None));
    let opening: Vec<_> = roles.map(|role| Ok(chunk(vec![role]))).collect();
    let events = generation.into_stream().filter_map(move |event| {
        let out = match event {
            Ok(GenerateEvent::Delta { index, text, tokens }) => {
                (!text.is_empty() || (with_logprobs && !tokens.is_empty())).then(|| {
                    let logprobs = if with_logprobs { logprobs(&tokens) } else { Value::Null };
                    Ok(chunk(vec![delta(index, json!({"content": text}), logprobs, None)]))
                })
            }
            Ok(GenerateEvent::Finished { index, finish }) => {
                Some(Ok(chunk(vec![delta(index, json!({}), Value::Null, Some(&finish))])))
            }
            Ok(GenerateEvent::Done(usage)) => include_usage.then(|| {
                let mut last = chunk(Vec::new());
                last["usage"] = usage_json(&usage);
                Ok(last)
            }),
            Ok(GenerateEvent::Prompt { .. }) => None,
            Err(error) => Some(Err(error.into())),
        };
        std::future::ready(out)
    });
    Ok(super::sse::respond(futures::stream::iter(opening).chain(events)))
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
