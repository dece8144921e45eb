//! `/v1/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::AppState;
use super::super::auth::Customer;
use super::super::error::{ApiError, Body};
use super::fields::{Fields, Refused};
use super::sampling::SamplingFields;
use crate::engine::Usage;
use crate::rag::{Finish, GenerateEvent, GenerateRequest, Generator, Prompt, TokenText};

/// What only chats take, and what only completions would.
const REFUSED: &[Refused] = &[("messages", &[]), ("add_special_tokens", &["true"])];

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "it must be a text, a list of texts, a list of token ids or a list of such lists"
)]
enum PromptField {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

impl PromptField {
    fn prompts(self) -> Vec<Prompt> {
        match self {
            PromptField::Text(text) => vec![Prompt::Text(text)],
            PromptField::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            PromptField::Tokens(ids) => vec![Prompt::Tokens(ids)],
            PromptField::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

pub(in crate::server) async fn create(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Body(mut fields): Body<Fields>,
) -> Result<Response, ApiError> {
    let target = super::target(&state, &fields.take::<String>("model")?.unwrap_or_default())?;
    let generator = target.generator.clone();
    let logprobs: Option<u8> = fields.take("logprobs")?;
    if logprobs.is_some_and(|n| n > 20) {
        return Err(ApiError::invalid("logprobs", "logprobs must be 0 to 20"));
    }
    let echo = fields.take("echo")?.unwrap_or(false);
    let prompts = fields.need::<PromptField>("prompt")?.prompts();
    if prompts.is_empty() || prompts.len() > 256 {
        return Err(ApiError::invalid("prompt", "prompt must hold 1 to 256 prompts"));
    }
    let grammar = super::structured::take(&mut fields)?;
    let sampling = SamplingFields::take(&mut fields)?;
    fields.refuse(REFUSED)?;
    let mut requests = Vec::new();
    for prompt in prompts {
        let mut request = sampling.request(&generator, prompt, &customer)?;
        // OpenAI's default for completions.
        request.max_tokens = request.max_tokens.or(Some(16));
        request.adapter = target.adapter.clone();
        request.grammar = grammar.clone();
        request.echo = echo;
        request.sampling.logprobs = logprobs;
        request.sampling.prompt_logprobs = if echo { logprobs } else { None };
        requests.push(request);
    }
    let head = Head {
        id: super::id("cmpl"),
        created: super::now(),
        model: target.name().to_owned(),
        logprobs: logprobs.is_some(),
    };
    if sampling.streams() {
        return stream(&generator, requests, head, sampling.include_usage()).await;
    }
    let mut choices = Vec::new();
    let mut usage = Usage::default();
    let n = requests[0].n;
    let mut running = Vec::new();
    for request in requests {
        running.push(generator.generate(request).await?);
    }
    for (at, one) in (0_u32..).zip(running) {
        let generated = one.collect().await?;
        add(&mut usage, &generated.usage);
        for choice in generated.choices {
            let index = at * n + choice.index;
            choices.push(head.choice(index, &choice.text, &choice.tokens, Some(&choice.finish)));
        }
    }
    let body = json!({"id": head.id, "object": "text_completion", "created": head.created, "model": head.model,
        "choices": choices, "usage": usage_json(&usage)});
    Ok(Json(body).into_response())
}

async fn stream(
    generator: &Generator,
    requests: Vec<GenerateRequest>,
    head: Head,
    include_usage: bool,
) -> Result<Response, ApiError> {
    let n = requests[0].n;
    let mut streams = Vec::new();
    for (at, request) in (0_u32..).zip(requests) {
        streams.push(generator.generate(request).await?.into_stream().map(move |event| (at, event)).boxed());
    }
    let mut usage = Usage::default();
    let last = head.clone();
    let events = futures::stream::select_all(streams).map(Some).chain(futures::stream::iter([None]));
    let events = events.filter_map(move |event| {
        let chunk = match event {
            Some((at, Ok(GenerateEvent::Delta { index, text, tokens }))) => (!text.is_empty()
                || !tokens.is_empty())
            .then(|| Ok(last.chunk(vec![last.choice(at * n + index, &text, &tokens, None)]))),
            Some((at, Ok(GenerateEvent::Finished { index, finish }))) => {
                Some(Ok(last.chunk(vec![last.choice(at * n + index, "", &[], Some(&finish))])))
            }
            Some((_, Ok(GenerateEvent::Done(one)))) => {
                add(&mut usage, &one);
                None
            }
            Some((_, Ok(GenerateEvent::Prompt { .. }))) => None,
            Some((_, Err(error))) => Some(Err(error.into())),
            None => include_usage.then(|| {
                let mut chunk = last.chunk(Vec::new());
                chunk["usage"] = usage_json(&usage);
                Ok(chunk)
            }),
        };
        std::future::ready(chunk)
    });
    Ok(super::sse::respond(events))
}

/// What every answer and event of a request repeats.
#[derive(Debug, Clone)]
struct Head {
    id: String,
    created: i64,
    model: String,
    logprobs: bool,
}

impl Head {
    fn chunk(&self, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": "text_completion", "created": self.created, "model": self.model, "choices": choices})
    }

    fn choice(&self, index: u32, text: &str, tokens: &[TokenText], finish: Option<&Finish>) -> Value {
        let stop = finish.and_then(|finish| finish.stop.as_ref()).map(super::chat::stop_reason);
        json!({
            "index": index, "text": text,
            "logprobs": if self.logprobs && !tokens.is_empty() { logprobs(tokens) } else { Value::Null },
            "finish_reason": finish.map(Finish::as_openai), "stop_reason": stop,
        })
    }
}

/// The legacy shape of log probabilities.
fn logprobs(tokens: &[TokenText]) -> Value {
    // The token itself is always among them, as with OpenAI and vLLM, however unlikely it was.
    let top = |token: &TokenText| {
        let Some(logprob) = token.logprob else { return Value::Null };
        let mut all: Map<String, Value> =
            token.top.iter().map(|top| (top.text.clone(), json!(top.logprob))).collect();
        all.entry(token.text.clone()).or_insert_with(|| json!(logprob));
        Value::Object(all)
    };
    json!({
        "tokens": tokens.iter().map(|token| &token.text).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
    })
}

pub(super) fn add(sum: &mut Usage, one: &Usage) {
    sum.prompt_tokens += one.prompt_tokens;
    sum.completion_tokens += one.completion_tokens;
    sum.cached_tokens += one.cached_tokens;
}

pub(super) fn usage_json(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}
