//! `/v1/responses`: OpenAI's answers that later requests may go on from.

mod events;
mod input;
mod items;
mod object;
mod store;
mod writer;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use self::events::Events;
use self::object::{Answer, Asked};
pub use self::store::{RESPONSE_BYTES, ResponseStore};
use self::writer::{Keep, Writer};
use super::super::AppState;
use super::super::auth::Customer;
use super::super::error::{ApiError, Body, Path, Query};
use super::fields::{Fields, Refused};
use super::sampling::SamplingFields;
use super::tools::Tools;
use crate::rag::{Generator, GrammarField, Prompt};

/// What Tarn does not do, with the values that ask for nothing, and what only chats and completions take.
const REFUSED: &[Refused] = &[
    ("background", &["false"]),
    ("context_management", &["[]"]),
    ("conversation", &[]),
    ("logprobs", &["false"]),
    ("max_completion_tokens", &[]),
    ("max_tokens", &[]),
    ("max_tool_calls", &[]),
    ("messages", &[]),
    ("n", &["1"]),
    ("prompt", &[]),
    ("reasoning", &["{}", r#"{"effort":"none"}"#, r#"{"effort":null}"#, r#"{"effort":null,"summary":null}"#]),
    ("response_format", &[]),
    ("truncate_prompt_tokens", &[]),
];

/// What is done where the conversation is longer than the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Truncation {
    /// The oldest messages are left out.
    Auto,
    /// The request is refused.
    #[default]
    Disabled,
}

#[derive(Debug, Deserialize)]
struct TextField {
    format: Option<Value>,
    verbosity: Option<String>,
}

/// Takes `text`, and the grammar that it or vLLM's fields ask for.
fn take_format(fields: &mut Fields) -> Result<Option<GrammarField>, ApiError> {
    let text = fields.take::<TextField>("text")?;
    if text.as_ref().and_then(|text| text.verbosity.as_deref()).is_some_and(|asked| asked != "medium") {
        return Err(ApiError::invalid("text.verbosity", "text.verbosity is not supported: leave it out"));
    }
    let format = text.and_then(|text| text.format).map_or(Ok(None), super::structured::text_format)?;
    match (format, super::structured::take(fields)?) {
        (Some(_), Some(other)) => {
            let message = format!("only one of text.format and {} can be followed", other.field);
            Err(ApiError::invalid(other.field, message))
        }
        (format, other) => Ok(format.or(other)),
    }
}

/// What the model is asked: the conversation under the request's instructions, and what it may call.
fn prompt(generator: &Generator, asked: &Asked, tools: Option<&Tools>, conversation: Vec<Value>) -> Prompt {
    let mut messages = asked.under_instructions(conversation);
    let tools = tools.and_then(|tools| tools.prompt(generator, &mut messages));
    Prompt::chat(messages, tools)
}

pub(in crate::server) async fn create(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Body(mut fields): Body<Fields>,
) -> Result<Response, ApiError> {
    let target = super::target(&state, &fields.take::<String>("model")?.unwrap_or_default())?;
    let customer: Arc<str> = customer.into();
    let mut asked = Asked::take(&mut fields, target.name())?;
    let input = input::messages(fields.need("input")?)?;
    // Of a stream's options there is one, padding against eavesdroppers, which belongs to OpenAI's network.
    fields.take::<Value>("stream_options")?;
    fields.refuse(REFUSED)?;
    let grammar = take_format(&mut fields)?;
    let tools = Tools::take_flat(&mut fields)?;
    let sampling = SamplingFields::take(&mut fields)?;
    let mut history = match &asked.previous_response_id {
        None => Vec::new(),
        Some(id) => state.responses.conversation(&customer, id).ok_or_else(|| no_response(id))?,
    };
    history.extend(input);
    let generator = &target.generator;
    let mut request = sampling.request(generator, Prompt::Text(String::new()), &customer)?;
    request.adapter = target.adapter.clone();
    request.grammar = grammar;
    asked.apply(&mut request);
    asked.drawn(&request.sampling);
    let kept = match asked.truncation {
        Truncation::Disabled => history.clone(),
        Truncation::Auto => newest(generator, &asked, tools.as_ref(), &history).await?,
    };
    request.prompt = prompt(generator, &asked, tools.as_ref(), kept);
    if let Some(tools) = &tools {
        tools.apply(generator, &mut request)?;
    }
    let keep: Keep = Box::new(move |answer, response| {
        if answer.asked.store && answer.ended_well() {
            let mut conversation = history.clone();
            conversation.push(items::turn(&answer.output));
            state.responses.put(&customer, response, conversation);
        }
    });
    let reader = tools.map(|tools| tools.reader(generator.tool_format()));
    let generation = generator.generate(request).await?;
    let events = Events { writer: Writer::new(Answer::new(asked), reader, keep), generation };
    if sampling.streams() {
        return Ok(super::sse::respond_named(events.into_stream()));
    }
    Ok(Json(events.whole().await?).into_response())
}

/// The newest turns that fit the window with the answer behind them: a question goes together with what answered it,
/// as templates want it. At least the last message.
async fn newest(
    generator: &Generator,
    asked: &Asked,
    tools: Option<&Tools>,
    history: &[Value],
) -> Result<Vec<Value>, ApiError> {
    let last = history.len() - 1;
    let max_model_len = generator.max_model_len();
    // What cannot fit by its bytes or its number is not looked at: rendering takes time by the length.
    let longest = max_model_len.saturating_mul(generator.tokenizer().longest_token());
    let bytes = history.iter().rev().scan(0_usize, |sum, message| {
        *sum += message["content"].as_str().map_or(0, str::len);
        Some(*sum)
    });
    let few = bytes.take(max_model_len).take_while(|sum| *sum <= longest).count();
    let turns = (history.len() - few..last).filter(|at| *at == 0 || history[*at]["role"] == "user");
    let turns: Vec<usize> = turns.collect();
    let (generator, asked, tools) = (generator.clone(), asked.clone(), tools.cloned());
    let history = history.to_vec();
    super::off_thread(move || {
        let answer = asked.max_output_tokens.map_or(1, |most| most as usize);
        let room = max_model_len.saturating_sub(answer);
        let fits = |from: usize| {
            let prompt = prompt(&generator, &asked, tools.as_ref(), history[from..].to_vec());
            generator.prompt_tokens(&prompt).is_ok_and(|ids| ids.len() <= room)
        };
        let from = turns.partition_point(|from| !fits(*from));
        Ok(history[turns.get(from).copied().unwrap_or(last)..].to_vec())
    })
    .await
}

fn no_response(id: &str) -> ApiError {
    let message = format!(
        "there is no response `{id}`: it was not stored, it was deleted, or newer ones took its place"
    );
    ApiError::not_found(message).about("response_id")
}

#[derive(Debug, Deserialize)]
pub(in crate::server) struct Retrieve {
    stream: Option<bool>,
}

pub(in crate::server) async fn one(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(id): Path<String>,
    Query(query): Query<Retrieve>,
) -> Result<Response, ApiError> {
    if query.stream == Some(true) {
        let message = "a response is streamed while it is made only: leave stream out";
        return Err(ApiError::invalid("stream", message));
    }
    let kept = state.responses.get(&customer.into(), &id).ok_or_else(|| no_response(&id))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], kept).into_response())
}

pub(in crate::server) async fn delete(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if !state.responses.delete(&customer.into(), &id) {
        return Err(no_response(&id));
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}
