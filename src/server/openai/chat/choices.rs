//! Choices of chats, whole and in pieces.

use serde_json::{Value, json};

use super::super::finish::{held_stop, stop_reason};
use super::super::logprobs;
use super::super::tools::ToolReader;
use super::super::usage::{self, StreamOptions};
use super::ChatFields;
use crate::rag::{Choice, Finish, GenerateEvent, Generated, TokenText};

/// What every answer and event of a request repeats, and how its choices are written.
#[derive(Debug)]
pub(super) struct Rendering {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) model: String,
    pub(super) fields: ChatFields,
    pub(super) include_stop: bool,
    /// What every answer begins with: the message that it continues, where that is echoed.
    pub(super) echoed: String,
}

impl Rendering {
    fn body(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    fn logprobs(&self, tokens: &[TokenText]) -> Value {
        if !self.fields.logprobs {
            return Value::Null;
        }
        json!({"content": logprobs::chat(tokens, self.fields.names), "refusal": null})
    }

    /// The whole answer; `reader` finds the calls in each choice.
    pub(super) fn whole(&self, generated: &Generated, reader: Option<&ToolReader>) -> Value {
        let choices = generated.choices.iter().map(|one| self.choice(one, reader.cloned())).collect();
        let mut body = self.body("chat.completion", choices);
        body["usage"] = usage::shown(&generated.usage);
        if let Some(most) = self.fields.prompt_logprobs {
            body["prompt_logprobs"] = logprobs::prompt(&generated.prompt_tokens, most);
        }
        if self.fields.return_token_ids {
            body["prompt_token_ids"] = json!(generated.prompt_token_ids);
        }
        body
    }

    fn choice(&self, choice: &Choice, reader: Option<ToolReader>) -> Value {
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
        if !self.echoed.is_empty() {
            let said = message["content"].as_str().unwrap_or_default();
            message["content"] = Value::String(format!("{}{said}", self.echoed));
        }
        let mut out = json!({
            "index": choice.index, "message": message, "logprobs": self.logprobs(&choice.tokens),
            "finish_reason": reason, "stop_reason": stop_reason(&choice.finish),
        });
        if self.fields.return_token_ids {
            let ids = choice.tokens.iter().map(|token| token.id);
            out["token_ids"] =
                json!(ids.chain(held_stop(&choice.finish, self.include_stop)).collect::<Vec<_>>());
        }
        out
    }
}

/// The reason of an answer that has calls.
fn called(reason: &'static str) -> &'static str {
    if reason == "stop" { "tool_calls" } else { reason }
}

/// The choices of a stream.
#[derive(Debug)]
pub(super) struct StreamedChoices {
    rendering: Rendering,
    options: StreamOptions,
    readers: Vec<Option<ToolReader>>,
    prompt_tokens: u32,
    /// Tokens of each choice so far.
    counts: Vec<u32>,
}

impl StreamedChoices {
    /// Those of `n` choices.
    pub(super) fn new(
        rendering: Rendering,
        options: StreamOptions,
        reader: Option<&ToolReader>,
        n: u32,
    ) -> StreamedChoices {
        let readers = (0..n).map(|_| reader.cloned()).collect();
        StreamedChoices { rendering, options, readers, prompt_tokens: 0, counts: vec![0; n as usize] }
    }

    /// The chunks before any token: whose turn it is.
    pub(super) fn opening(&mut self, prompt: &[u32]) -> Vec<Value> {
        self.prompt_tokens = prompt.len() as u32;
        let mut chunks = Vec::new();
        for index in 0..self.counts.len() as u32 {
            let role = delta(index, json!({"role": "assistant", "content": ""}), Value::Null);
            chunks.push(self.chunk(role));
            if !self.rendering.echoed.is_empty() {
                let echoed = delta(index, json!({"content": self.rendering.echoed}), Value::Null);
                chunks.push(self.chunk(echoed));
            }
        }
        if let Some(first) = chunks.first_mut().filter(|_| self.rendering.fields.return_token_ids) {
            first["prompt_token_ids"] = json!(prompt);
        }
        chunks
    }

    /// The chunks that an event becomes.
    pub(super) fn take(&mut self, event: GenerateEvent) -> Vec<Value> {
        let choices = match event {
            GenerateEvent::Prompt { .. } => Vec::new(),
            GenerateEvent::Delta { index, text, tokens } => self.push(index, text, &tokens),
            GenerateEvent::Finished { index, finish } => self.finish(index, &finish),
            GenerateEvent::Done(usage) => {
                let last = self.rendering.body("chat.completion.chunk", Vec::new());
                return self.options.last(last, &usage).into_iter().collect();
            }
        };
        choices.into_iter().map(|choice| self.chunk(choice)).collect()
    }

    /// A chunk of one choice.
    fn chunk(&self, choice: Value) -> Value {
        let index = choice["index"].as_u64().unwrap_or(0) as usize;
        let chunk = self.rendering.body("chat.completion.chunk", vec![choice]);
        self.options.count(chunk, self.prompt_tokens, self.counts[index])
    }

    fn push(&mut self, index: u32, text: String, tokens: &[TokenText]) -> Vec<Value> {
        self.counts[index as usize] += tokens.len() as u32;
        let fields = self.rendering.fields;
        let mut deltas = match &mut self.readers[index as usize] {
            Some(reader) => reader.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![json!({"content": text})],
        };
        let tells = !tokens.is_empty() && (fields.logprobs || fields.return_token_ids);
        if deltas.is_empty() && tells {
            deltas.push(json!({"content": ""}));
        }
        let mut choices: Vec<Value> = deltas.into_iter().map(|one| delta(index, one, Value::Null)).collect();
        if let Some(first) = choices.first_mut().filter(|_| tells) {
            first["logprobs"] = self.rendering.logprobs(tokens);
            if fields.return_token_ids {
                first["token_ids"] = tokens.iter().map(|token| json!(token.id)).collect();
            }
        }
        choices
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
        let held = held_stop(finish, self.rendering.include_stop);
        self.counts[index as usize] += u32::from(held.is_some());
        let mut last = delta(index, json!({}), Value::Null);
        last["finish_reason"] = json!(reason);
        last["stop_reason"] = stop_reason(finish);
        if self.rendering.fields.return_token_ids {
            last["token_ids"] = json!(held.as_slice());
        }
        out.push(last);
        out
    }
}

fn delta(index: u32, delta: Value, logprobs: Value) -> Value {
    json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null, "stop_reason": null})
}
