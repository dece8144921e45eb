//! `/v1/responses`: OpenAI's answers that later requests may go on from.

mod events;
mod input;
mod object;
mod store;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use self::events::Events;
use self::object::{Answer, Asked};
pub use self::store::ResponseStore;
use super::super::AppState;
use super::super::auth::Customer;
use super::super::error::{ApiError, Body, Path, Query};
use super::Target;
use super::fields::{Fields, Refused};
use super::sampling::SamplingFields;
use crate::rag::{GenerateRequest, Generator, Prompt};

/// What Tarn does not do, with the values that ask for nothing, and what only chats and completions take.
const REFUSED: &[Refused] = &[
    ("background", &["false"]),
    ("context_management", &["[]"]),
    ("conversation", &[]),
    ("include", &["[]"]),
    ("logprobs", &["false"]),
    ("max_completion_tokens", &[]),
    ("max_tokens", &[]),
    ("max_tool_calls", &[]),
    ("messages", &[]),
    ("n", &["1"]),
    ("prompt", &[]),
    ("reasoning", &["{}", r#"{"effort":"none"}"#, r#"{"effort":null}"#, r#"{"effort":null,"summary":null}"#]),
    ("response_format", &[]),
    ("top_logprobs", &["0"]),
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

/// Takes `text`; only plain text is written.
fn take_text(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(text) = fields.take::<TextField>("text")? else { return Ok(()) };
    if let Some(format) = text.format.filter(|format| format["type"] != "text") {
        let message = format!("text.format {} is not supported here: leave it out", format["type"]);
        return Err(ApiError::invalid("text.format", message));
    }
    match text.verbosity.as_deref() {
        None | Some("medium") => Ok(()),
        Some(_) => Err(ApiError::invalid("text.verbosity", "text.verbosity is not supported: leave it out")),
    }
}

pub(in crate::server) async fn create(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Body(mut fields): Body<Fields>,
) -> Result<Response, ApiError> {
    let target = super::target(&state, &fields.take::<String>("model")?.unwrap_or_default())?;
    let mut asked = Asked::take(&mut fields, target.name())?;
    take_text(&mut fields)?;
    let input = input::messages(fields.need("input")?)?;
    let max_output_tokens = asked.max_output_tokens;
    // Of a stream's options there is one, padding against eavesdroppers, which belongs to OpenAI's network.
    fields.take::<Value>("stream_options")?;
    fields.refuse(REFUSED)?;
    let sampling = SamplingFields::take(&mut fields)?;
    let mut history = match &asked.previous_response_id {
        None => Vec::new(),
        Some(id) => state.responses.conversation(&customer, id).ok_or_else(|| no_response(id))?,
    };
    history.extend(input);
    let generator = &target.generator;
    let mut request = sampling.request(generator, Prompt::Text(String::new()), &customer)?;
    request.max_tokens = max_output_tokens;
    asked.drawn(&request.sampling);
    let kept = match asked.truncation {
        Truncation::Disabled => history.clone(),
        Truncation::Auto => newest(generator, &asked, &history).await?,
    };
    request.prompt = Prompt::chat(asked.under_instructions(kept));
    answer(state, target, customer, request, asked, history, sampling.streams()).await
}

/// Generates and, where wished, keeps the answer.
async fn answer(
    state: AppState,
    target: Target,
    customer: String,
    mut request: GenerateRequest,
    asked: Asked,
    history: Vec<Value>,
    streams: bool,
) -> Result<Response, ApiError> {
    request.adapter = target.adapter.clone();
    let generation = target.generator.generate(request).await?;
    let keep = move |answer: &Answer, response: &Value| {
        if answer.asked.store && answer.ended_well() {
            let mut conversation = history.clone();
            conversation.push(json!({"role": "assistant", "content": answer.text}));
            state.responses.put(&customer, response.clone(), conversation);
        }
    };
    let mut answer = Answer::new(asked);
    if streams {
        return Ok(super::sse::respond_named(Events::new(answer, generation, Box::new(keep)).into_stream()));
    }
    let generated = generation.collect().await?;
    if let Some(choice) = generated.choices.into_iter().next() {
        answer.text = choice.text;
        answer.finish(&choice.finish, &generated.usage);
    }
    let response = answer.response();
    keep(&answer, &response);
    Ok(Json(response).into_response())
}

/// The newest turns that fit the window with the answer behind them: a question goes together with what answered it,
/// as templates want it. At least the last message.
async fn newest(generator: &Generator, asked: &Asked, history: &[Value]) -> Result<Vec<Value>, ApiError> {
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
    let (generator, asked, history) = (generator.clone(), asked.clone(), history.to_vec());
    super::off_thread(move || {
        let answer = asked.max_output_tokens.map_or(1, |most| most as usize);
        let room = max_model_len.saturating_sub(answer);
        let fits = |from: usize| {
            let prompt = Prompt::chat(asked.under_instructions(history[from..].to_vec()));
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
) -> Result<Json<Value>, ApiError> {
    if query.stream == Some(true) {
        let message = "a response is streamed while it is made only: leave stream out";
        return Err(ApiError::invalid("stream", message));
    }
    state.responses.get(&customer, &id).map(Json).ok_or_else(|| no_response(&id))
}

pub(in crate::server) async fn delete(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if !state.responses.delete(&customer, &id) {
        return Err(no_response(&id));
    }
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}
