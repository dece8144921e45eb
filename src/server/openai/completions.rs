//! `/v1/completions`.

mod choices;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::Value;

use self::choices::{Rendering, StreamedChoices};
use super::super::AppState;
use super::super::auth::Customer;
use super::super::error::{ApiError, Body};
use super::fields::{Fields, Refused};
use super::logprobs::{TokenNames, up_to_twenty};
use super::sampling::SamplingFields;
use super::usage;
use crate::engine::Usage;
use crate::rag::{GenerateEvent, GenerateRequest, GenerateStream, Prompt};

/// What only chats take.
const REFUSED: &[Refused] = &[("messages", &[])];

/// Most prompts of a request.
const MOST_PROMPTS: usize = 256;

/// Most answers to a prompt.
const MOST_ANSWERS: u32 = 128;

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
    fn prompts(self, special: bool) -> Vec<Prompt> {
        let text = if special { Prompt::Text } else { Prompt::Bare };
        match self {
            PromptField::Text(one) => vec![text(one)],
            PromptField::Texts(texts) => texts.into_iter().map(text).collect(),
            PromptField::Tokens(ids) => vec![Prompt::Tokens(ids)],
            PromptField::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

/// The fields that only completions take.
#[derive(Debug, Clone, Copy)]
struct CompletionFields {
    logprobs: Option<u8>,
    prompt_logprobs: Option<u8>,
    echo: bool,
    best_of: Option<u32>,
    add_special_tokens: bool,
    return_token_ids: bool,
    names: TokenNames,
}

impl CompletionFields {
    fn take(fields: &mut Fields) -> Result<CompletionFields, ApiError> {
        Ok(CompletionFields {
            logprobs: up_to_twenty(fields, "logprobs")?,
            prompt_logprobs: up_to_twenty(fields, "prompt_logprobs")?,
            echo: fields.take("echo")?.unwrap_or(false),
            best_of: fields.take("best_of")?,
            add_special_tokens: fields.take("add_special_tokens")?.unwrap_or(true),
            return_token_ids: fields.take("return_token_ids")?.unwrap_or(false),
            names: TokenNames::take(fields)?,
        })
    }

    /// Refuses what does not go together.
    fn agree(&self, n: u32, streams: bool) -> Result<(), ApiError> {
        if let Some(best) = self.best_of {
            if best < n || best > MOST_ANSWERS {
                let message = format!("best_of is {best}, but must be {n} (n) to {MOST_ANSWERS}");
                return Err(ApiError::invalid("best_of", message));
            }
            if streams && best > n {
                let message = "the best answers are known at the end only: best_of does not go with stream";
                return Err(ApiError::invalid("best_of", message));
            }
        }
        if streams && self.prompt_logprobs.is_some() {
            let message = "prompt_logprobs does not go with stream: ask with echo and logprobs";
            return Err(ApiError::invalid("prompt_logprobs", message));
        }
        Ok(())
    }

    /// Makes `request` one of completions.
    fn apply(&self, request: &mut GenerateRequest) {
        // OpenAI's default for completions.
        request.max_tokens = request.max_tokens.or(Some(16));
        request.echo = self.echo;
        let best_of = self.best_of.unwrap_or(request.n);
        let ranked = (best_of > request.n).then_some(0);
        request.n = best_of;
        request.sampling.logprobs = self.logprobs.or(ranked);
        let echoed = if self.echo { self.logprobs } else { None };
        request.sampling.prompt_logprobs = self.prompt_logprobs.max(echoed);
    }
}

pub(in crate::server) async fn create(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Body(mut fields): Body<Fields>,
) -> Result<Response, ApiError> {
    let target = super::target(&state, &fields.take::<String>("model")?.unwrap_or_default())?;
    let own = CompletionFields::take(&mut fields)?;
    let mut prompts = fields.need::<PromptField>("prompt")?.prompts(own.add_special_tokens);
    if prompts.is_empty() || prompts.len() > MOST_PROMPTS {
        return Err(ApiError::invalid("prompt", format!("prompt must hold 1 to {MOST_PROMPTS} prompts")));
    }
    let grammar = super::structured::take(&mut fields)?;
    let sampling = SamplingFields::take(&mut fields)?;
    fields.refuse(REFUSED)?;
    own.agree(sampling.n(), sampling.streams())?;
    let mut request = sampling.request(&target.generator, prompts.remove(0), &customer)?;
    request.adapter = target.adapter.clone();
    request.grammar = grammar;
    own.apply(&mut request);
    let running = target.generator.generate_all(request, prompts).await?;
    let rendering = Rendering {
        id: super::id("cmpl-"),
        created: super::now(),
        model: target.name().to_owned(),
        n: sampling.n(),
        fields: own,
        include_stop: sampling.includes_stop(),
    };
    if !sampling.streams() {
        return Ok(Json(rendering.whole(running).await?).into_response());
    }
    Ok(stream(running, StreamedChoices::new(rendering, sampling.stream_options())))
}

impl Rendering {
    /// The answer to all prompts. They are read side by side: the engine drops a reader that falls behind.
    async fn whole(&self, running: Vec<GenerateStream>) -> Result<Value, ApiError> {
        let all = try_join_all(running.into_iter().map(GenerateStream::collect)).await?;
        let mut choices = Vec::new();
        let mut sum = Usage::default();
        for (at, generated) in (0_u32..).zip(all) {
            usage::add(&mut sum, &generated.usage);
            choices.extend(self.choices(at, generated));
        }
        let mut body = self.chunk(choices);
        body["usage"] = usage::shown(&sum);
        Ok(body)
    }
}

fn stream(running: Vec<GenerateStream>, mut choices: StreamedChoices) -> Response {
    let streams = (0_u32..).zip(running);
    let streams = streams.map(|(at, one)| one.into_stream().map(move |event| (at, event)).boxed());
    let events = futures::stream::select_all(streams).map(Some).chain(futures::stream::iter([None]));
    let mut sum = Usage::default();
    let events = events.filter_map(move |event| {
        std::future::ready(match event {
            Some((at, Ok(event))) => {
                if let GenerateEvent::Done(one) = &event {
                    usage::add(&mut sum, one);
                }
                choices.take(at, event).map(Ok)
            }
            Some((_, Err(error))) => Some(Err(error.into())),
            None => choices.last(&sum).map(Ok),
        })
    });
    super::sse::respond(events)
}
