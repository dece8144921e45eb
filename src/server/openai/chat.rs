//! `/v1/chat/completions`.

mod choices;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Map, Value};

use self::choices::{Rendering, StreamedChoices};
use super::super::AppState;
use super::super::auth::Customer;
use super::super::error::{ApiError, Body};
use super::fields::{Fields, Refused};
use super::logprobs::{TokenNames, up_to_twenty};
use super::sampling::SamplingFields;
use super::tools::Tools;
use crate::rag::{GenerateRequest, Generator, Prompt};

/// What only completions take.
const REFUSED: &[Refused] = &[("prompt", &[]), ("add_special_tokens", &["false"])];

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

/// The conversation that a request begins with, as its template will see it.
pub(super) struct Conversation {
    pub(super) prompt: Prompt,
    /// The final message's text, where it is the assistant's own.
    unfinished: Option<String>,
}

impl Conversation {
    /// Takes what makes up the prompt; `tools` may be called in the answer.
    pub(super) fn take(
        fields: &mut Fields,
        generator: &Generator,
        tools: Option<&Tools>,
    ) -> Result<Conversation, ApiError> {
        let mut messages = messages(fields.need("messages")?)?;
        let definitions = tools.and_then(|tools| tools.prompt(generator, &mut messages));
        let continue_final_message = fields.take("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt: Option<bool> = fields.take("add_generation_prompt")?;
        if continue_final_message && add_generation_prompt == Some(true) {
            let message = "an answer continues the final message or begins its own: leave continue_final_message \
                           or add_generation_prompt out";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        let last = messages.last().filter(|message| message["role"] == "assistant");
        let unfinished = last.and_then(|message| message["content"].as_str()).map(str::to_owned);
        let prompt = Prompt::Chat {
            messages,
            tools: definitions,
            add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            extra: fields.take("chat_template_kwargs")?.unwrap_or_default(),
        };
        Ok(Conversation { prompt, unfinished })
    }
}

/// The fields that say what chats tell beside their words.
#[derive(Debug, Clone, Copy)]
struct ChatFields {
    logprobs: bool,
    top_logprobs: Option<u8>,
    prompt_logprobs: Option<u8>,
    return_token_ids: bool,
    names: TokenNames,
}

impl ChatFields {
    fn take(fields: &mut Fields) -> Result<ChatFields, ApiError> {
        let taken = ChatFields {
            logprobs: fields.take("logprobs")?.unwrap_or(false),
            top_logprobs: up_to_twenty(fields, "top_logprobs")?,
            prompt_logprobs: up_to_twenty(fields, "prompt_logprobs")?,
            return_token_ids: fields.take("return_token_ids")?.unwrap_or(false),
            names: TokenNames::take(fields)?,
        };
        if taken.top_logprobs.is_some_and(|n| n > 0) && !taken.logprobs {
            return Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs to be true"));
        }
        Ok(taken)
    }

    /// Makes `request` one that can tell it.
    fn apply(&self, request: &mut GenerateRequest) {
        request.sampling.logprobs = self.logprobs.then(|| self.top_logprobs.unwrap_or(0));
        request.sampling.prompt_logprobs = self.prompt_logprobs;
    }
}

pub(in crate::server) async fn create(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Body(mut fields): Body<Fields>,
) -> Result<Response, ApiError> {
    let target = super::target(&state, &fields.take::<String>("model")?.unwrap_or_default())?;
    let generator = target.generator.clone();
    let own = ChatFields::take(&mut fields)?;
    let grammar = super::structured::take(&mut fields)?;
    let tools = Tools::take(&mut fields)?;
    let conversation = Conversation::take(&mut fields, &generator, tools.as_ref())?;
    let echo = fields.take("echo")?.unwrap_or(false);
    let sampling = SamplingFields::take(&mut fields)?;
    fields.refuse(REFUSED)?;
    if sampling.streams() && own.prompt_logprobs.is_some() {
        let message = "prompt_logprobs does not go with stream: leave one out";
        return Err(ApiError::invalid("prompt_logprobs", message));
    }
    let mut request = sampling.request(&generator, conversation.prompt, &customer)?;
    request.adapter = target.adapter.clone();
    request.grammar = grammar;
    own.apply(&mut request);
    if let Some(tools) = &tools {
        tools.apply(&generator, &mut request)?;
    }
    let reader = tools.map(|tools| tools.reader(generator.tool_format()));
    let rendering = Rendering {
        id: super::id("chatcmpl-"),
        created: super::now(),
        model: target.name().to_owned(),
        fields: own,
        include_stop: sampling.includes_stop(),
        echoed: conversation.unfinished.filter(|_| echo).unwrap_or_default(),
    };
    let generation = generator.generate(request).await?;
    if !sampling.streams() {
        let generated = generation.collect().await?;
        return Ok(Json(rendering.whole(&generated, reader.as_ref())).into_response());
    }
    let mut choices =
        StreamedChoices::new(rendering, sampling.stream_options(), reader.as_ref(), sampling.n());
    let opening = choices.opening(generation.prompt_token_ids()).into_iter().map(Ok);
    let events = generation.into_stream().flat_map(move |event| {
        let chunks: Vec<Result<Value, ApiError>> = match event {
            Ok(event) => choices.take(event).into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error.into())],
        };
        futures::stream::iter(chunks)
    });
    Ok(super::sse::respond(futures::stream::iter(opening).chain(events)))
}
