//! From the engine's events to text: detokenization, stop texts, echo, log probabilities.
//!
//! Text is handed on as soon as it is certain: whole characters that cannot become part of
//! a stop text any more. Tokens are handed on at once, so a [`GenerateEvent::Delta`] may
//! carry tokens and no text yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;

use crate::engine::{
    EngineError, Event, EventStream, FinishReason, SampleError, SampledToken, TokenLogprobs, Usage,
};
use crate::telemetry::Metrics;
use crate::text::{Detokenizer, StopStrings, Tokenizer};

use super::error::GenerateError;
use super::generation::{
    Choice, Finish, GenerateEvent, GenerateRequest, Generated, Prompt, StopCause, TokenText, TopToken,
};
use super::generator::{Generator, Ready};

/// One generation as it happens. Dropping it cancels what is left.
pub struct GenerateStream {
    tokenizer: Tokenizer,
    /// `None` once nothing more is wanted from the engine.
    events: Option<EventStream>,
    ready: VecDeque<GenerateEvent>,
    choices: Vec<ChoiceState>,
    prompt: Arc<[u32]>,
    prompt_seen: bool,
    cached_tokens: u32,
    echo: Option<String>,
    skip_special: bool,
    include_stop: bool,
    /// Tokens that end a choice, the model's own and the request's.
    stop_token_ids: Vec<u32>,
    own_eos: Vec<u32>,
    stop: Vec<String>,
    /// The field that asked for a grammar.
    grammar: Option<&'static str>,
    min_tokens: u32,
    max_tokens: u32,
    started: Instant,
    first_token: Option<Instant>,
    metrics: Option<(Metrics, String)>,
}

struct ChoiceState {
    detokenizer: Detokenizer,
    stop: Option<StopStrings>,
    /// Characters of the choice's text so far, held-back ones included.
    chars: usize,
    tokens: u32,
    finished: bool,
    /// Ended by a stop text, which the engine learns of some tokens later.
    cut: bool,
}

impl std::fmt::Debug for GenerateStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerateStream")
            .field("prompt_tokens", &self.prompt.len())
            .field("choices", &self.choices.len())
            .field("open", &self.events.is_some())
            .finish_non_exhaustive()
    }
}

impl GenerateStream {
    /// What a request needs from its events, before the engine has it.
    pub(super) fn prepare(generator: &Generator, ready: &Ready, request: &GenerateRequest) -> GenerateStream {
        let tokenizer = generator.tokenizer().clone();
        let own_eos = if request.ignore_eos { Vec::new() } else { generator.eos().to_vec() };
        let mut stop_token_ids = own_eos.clone();
        stop_token_ids.extend(&request.stop_token_ids);
        let echo = request.echo.then(|| match &ready.prompt {
            Prompt::Text(text) | Prompt::Bare(text) if request.keep_last.is_none() => text.clone(),
            _ => tokenizer.decode(&ready.ids, request.skip_special_tokens),
        });
        let choices = (0..request.n)
            .map(|_| ChoiceState {
                detokenizer: Detokenizer::continuing(&tokenizer, request.skip_special_tokens),
                stop: (!request.stop.is_empty())
                    .then(|| StopStrings::new(request.stop.clone(), request.include_stop_str_in_output)),
                chars: echo.as_ref().map_or(0, |text| text.chars().count()),
                tokens: 0,
                finished: false,
                cut: false,
            })
            .collect();
        GenerateStream {
            tokenizer,
            events: None,
            ready: VecDeque::new(),
            choices,
            prompt: Arc::clone(&ready.ids),
            prompt_seen: false,
            cached_tokens: 0,
            echo,
            skip_special: request.skip_special_tokens,
            include_stop: request.include_stop_str_in_output,
            stop_token_ids,
            own_eos,
            stop: request.stop.clone(),
            grammar: request.grammar.as_ref().map(|grammar| grammar.field),
            min_tokens: request.min_tokens,
            max_tokens: ready.max_tokens,
            started: Instant::now(),
            first_token: None,
            metrics: generator.metrics().map(|metrics| (metrics.clone(), generator.name().to_owned())),
        }
    }

    pub(super) fn over(mut self, events: EventStream) -> GenerateStream {
        self.events = Some(events);
        self
    }

    /// The prompt's token ids.
    pub fn prompt_token_ids(&self) -> &Arc<[u32]> {
        &self.prompt
    }

    /// The next event; `None` after `Done` or an error.
    pub async fn next(&mut self) -> Option<Result<GenerateEvent, GenerateError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            let taken = match self.events.as_mut()?.next().await {
                Some(event) => self.take(event),
                None => Err(GenerateError::Interrupted),
            };
            if let Err(error) = taken {
                self.events = None;
                return Some(Err(error));
            }
        }
    }

    /// The events as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<GenerateEvent, GenerateError>> + Send {
        futures::stream::unfold(self, |mut this| async move { this.next().await.map(|event| (event, this)) })
    }

    /// Waits for the end and puts the choices together.
    ///
    /// # Errors
    /// What the engine failed with.
    pub async fn collect(mut self) -> Result<Generated, GenerateError> {
        let mut texts = vec![(String::new(), Vec::new(), None); self.choices.len()];
        let mut prompt_tokens = Vec::new();
        while let Some(event) = self.next().await {
            match event? {
                GenerateEvent::Prompt { tokens, .. } => prompt_tokens = tokens,
                GenerateEvent::Delta { index, text, mut tokens } => {
                    let choice = &mut texts[index as usize];
                    choice.0.push_str(&text);
                    choice.1.append(&mut tokens);
                }
                GenerateEvent::Finished { index, finish } => texts[index as usize].2 = Some(finish),
                GenerateEvent::Done(usage) => {
                    let choices = (0..)
                        .zip(texts)
                        .map(|(index, (text, tokens, finish))| {
                            let finish =
                                finish.unwrap_or(Finish { reason: FinishReason::Cancelled, stop: None });
                            Choice { index, text, tokens, finish }
                        })
                        .collect();
                    return Ok(Generated { prompt_token_ids: self.prompt, prompt_tokens, choices, usage });
                }
            }
        }
        Err(GenerateError::Interrupted)
    }

    fn take(&mut self, event: Event) -> Result<(), GenerateError> {
        match event {
            Event::Prompt { logprobs, cached_tokens } => self.on_prompt(&logprobs, cached_tokens),
            Event::Token { index, token } => {
                self.on_prompt(&[], 0);
                self.on_token(index, token);
            }
            Event::Finished { index, reason } => {
                self.on_prompt(&[], 0);
                self.on_finished(index, reason);
            }
            Event::Done(usage) => self.finish(usage),
            Event::Failed(error) => return Err(self.failed(error)),
        }
        Ok(())
    }

    /// A grammar that grows beyond its limits, or leaves its model no token, is the request's own fault.
    fn failed(&self, error: EngineError) -> GenerateError {
        match (error, self.grammar) {
            (EngineError::Sample(SampleError::NothingAllowed), Some(field)) => GenerateError::Invalid {
                field,
                message: format!(
                    "the grammar became too large to follow, or no token of the model fits it, after {} tokens: \
                     make it simpler, with bounds for its texts and lists",
                    self.completion_tokens()
                ),
            },
            (error, _) => error.into(),
        }
    }

    fn on_prompt(&mut self, logprobs: &[Option<TokenLogprobs>], cached_tokens: u32) {
        if std::mem::replace(&mut self.prompt_seen, true) {
            return;
        }
        self.cached_tokens = cached_tokens;
        let tokens = self.prompt_texts(logprobs);
        self.ready.push_back(GenerateEvent::Prompt {
            token_ids: Arc::clone(&self.prompt),
            tokens: tokens.clone(),
            cached_tokens,
        });
        if let Some(text) = self.echo.take() {
            for index in 0..self.choices.len() {
                self.ready.push_back(GenerateEvent::Delta {
                    index: index as u32,
                    text: text.clone(),
                    tokens: tokens.clone(),
                });
            }
        }
        if self.max_tokens == 0 {
            let length = Finish { reason: FinishReason::Length, stop: None };
            for index in 0..self.choices.len() {
                self.ready.push_back(GenerateEvent::Finished { index: index as u32, finish: length.clone() });
            }
            self.finish_early();
        }
    }

    /// The prompt's tokens with their texts; empty without log probabilities.
    fn prompt_texts(&self, logprobs: &[Option<TokenLogprobs>]) -> Vec<TokenText> {
        let mut detokenizer = Detokenizer::new(&self.tokenizer, self.skip_special);
        let mut offset = 0;
        self.prompt
            .iter()
            .zip(logprobs)
            .map(|(&id, logprobs)| {
                let at = offset;
                offset += detokenizer.push(id).map_or(0, |text| text.chars().count());
                let top = logprobs.as_ref().map_or(&[][..], |logprobs| &logprobs.top);
                self.token_text(id, at, logprobs.as_ref().map(|logprobs| logprobs.logprob), top)
            })
            .collect()
    }

    fn on_token(&mut self, index: u32, token: SampledToken) {
        self.first_token.get_or_insert_with(Instant::now);
        let Some(choice) = self.choices.get_mut(index as usize).filter(|choice| !choice.finished) else {
            return;
        };
        choice.tokens += 1;
        let counts = choice.tokens >= self.min_tokens.max(1);
        if counts && self.stop_token_ids.contains(&token.id) && !self.include_stop {
            return; // its `Finished` follows
        }
        let offset = choice.chars;
        let text = choice.detokenizer.push(token.id).unwrap_or_default();
        choice.chars += text.chars().count();
        let (emit, stopped) = match &mut choice.stop {
            Some(stop) if counts => {
                let outcome = stop.push(&text);
                (outcome.emit, outcome.stopped)
            }
            _ => (text, None),
        };
        let tokens = vec![self.token_text(token.id, offset, token.logprob, &token.top)];
        self.ready.push_back(GenerateEvent::Delta { index, text: emit, tokens });
        if let Some(which) = stopped {
            self.cut(index, which);
        }
    }

    /// Ends a choice at a stop text, in the engine too; the last one ends the request.
    fn cut(&mut self, index: u32, which: usize) {
        let choice = &mut self.choices[index as usize];
        (choice.finished, choice.cut) = (true, true);
        let finish = Finish {
            reason: FinishReason::Stop(None),
            stop: self.stop.get(which).cloned().map(StopCause::Text),
        };
        self.ready.push_back(GenerateEvent::Finished { index, finish });
        if self.choices.iter().all(|choice| choice.finished) {
            self.finish_early();
        } else if let Some(events) = &self.events {
            events.stop_answer(index);
        }
    }

    fn on_finished(&mut self, index: u32, reason: FinishReason) {
        let Some(choice) = self.choices.get_mut(index as usize).filter(|choice| !choice.finished) else {
            return;
        };
        choice.finished = true;
        let mut text = choice.detokenizer.finish();
        let mut stopped = None;
        if let Some(stop) = &mut choice.stop {
            let outcome = stop.push(&text);
            stopped = outcome.stopped;
            text = outcome.emit;
            if stopped.is_none() {
                text.push_str(&stop.finish());
            }
        }
        if !text.is_empty() {
            self.ready.push_back(GenerateEvent::Delta { index, text, tokens: Vec::new() });
        }
        let finish = match (stopped, &reason) {
            (Some(which), _) => Finish {
                reason: FinishReason::Stop(None),
                stop: self.stop.get(which).cloned().map(StopCause::Text),
            },
            (None, FinishReason::Stop(Some(id))) if !self.own_eos.contains(id) => {
                Finish { stop: Some(StopCause::Token(*id)), reason }
            }
            (None, _) => Finish { stop: None, reason },
        };
        self.ready.push_back(GenerateEvent::Finished { index, finish });
    }

    /// The engine is done; where it went on past a stop text, what the caller saw is what counts.
    fn finish(&mut self, usage: Usage) {
        let usage = match self.choices.iter().any(|choice| choice.cut) {
            true => Usage { completion_tokens: self.completion_tokens(), ..usage },
            false => usage,
        };
        self.done(usage);
    }

    /// The one place where a generation ends well: its times are counted here.
    fn done(&mut self, usage: Usage) {
        if let Some((metrics, model)) = &self.metrics {
            let first = usage.queue_s + usage.prefill_s;
            let longest = self.choices.iter().map(|choice| choice.tokens).max().unwrap_or(0);
            metrics.generated(model, first, first + usage.decode_s, longest);
        }
        self.ready.push_back(GenerateEvent::Done(usage));
        self.events = None;
    }

    /// Nothing more is wanted: cancels the request and accounts for it here.
    fn finish_early(&mut self) {
        if let Some(events) = self.events.take() {
            events.stop();
        }
        let now = Instant::now();
        let first = self.first_token.unwrap_or(now);
        self.done(Usage {
            prompt_tokens: self.prompt.len() as u32,
            completion_tokens: self.completion_tokens(),
            cached_tokens: self.cached_tokens,
            queue_s: 0.0,
            prefill_s: (first - self.started).as_secs_f64(),
            decode_s: (now - first).as_secs_f64(),
        });
    }

    fn completion_tokens(&self) -> u32 {
        self.choices.iter().map(|choice| choice.tokens).sum()
    }

    fn token_text(&self, id: u32, offset: usize, logprob: Option<f32>, top: &[(u32, f32)]) -> TokenText {
        let top = top
            .iter()
            .map(|&(id, logprob)| {
                let bytes = self.tokenizer.token_bytes(id);
                TopToken { id, text: String::from_utf8_lossy(&bytes).into_owned(), bytes, logprob }
            })
            .collect();
        let bytes = self.tokenizer.token_bytes(id);
        TokenText { id, text: String::from_utf8_lossy(&bytes).into_owned(), bytes, offset, logprob, top }
    }
}
