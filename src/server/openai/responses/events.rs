//! A response as a stream of OpenAI's typed events.

use std::collections::VecDeque;

use futures::Stream;
use serde_json::{Value, json};

use super::super::super::error::ApiError;
use super::super::tools::{Piece, ToolReader};
use super::items::{Item, Kind};
use super::object::Answer;
use crate::rag::{Finish, GenerateEvent, GenerateStream, TokenText};

/// Called once with the complete response.
pub(super) type Keep = Box<dyn Fn(&Answer, &Value) + Send>;

/// Turns a generation into events. Dropping it cancels the generation.
pub(super) struct Events {
    answer: Answer,
    generation: GenerateStream,
    reader: Option<ToolReader>,
    keep: Keep,
    finish: Option<Finish>,
    ready: VecDeque<Value>,
    /// Log probabilities of tokens whose text is not certain yet.
    held: Vec<Value>,
    /// The number of the next event.
    sequence: u64,
}

impl Events {
    pub(super) fn new(
        answer: Answer,
        generation: GenerateStream,
        reader: Option<ToolReader>,
        keep: Keep,
    ) -> Events {
        let mut events = Events {
            answer,
            generation,
            reader,
            keep,
            finish: None,
            ready: VecDeque::new(),
            held: Vec::new(),
            sequence: 0,
        };
        let response = events.answer.response();
        events.say("response.created", json!({"response": response}));
        events.say("response.in_progress", json!({"response": response}));
        // Where nothing may be called, words are all that can come.
        if events.reader.is_none() {
            events.open(Item::message());
        }
        events
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Value> + Send {
        futures::stream::unfold(self, |mut this| async move { this.next().await.map(|event| (event, this)) })
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.generation.next().await? {
                Ok(GenerateEvent::Prompt { .. }) => {}
                Ok(GenerateEvent::Delta { text, tokens, .. }) => self.push(text, &tokens),
                Ok(GenerateEvent::Finished { finish, .. }) => self.finish = Some(finish),
                Ok(GenerateEvent::Done(usage)) => {
                    if let Some(finish) = self.finish.take() {
                        self.answer.finish(&finish, &usage);
                    }
                    self.end();
                }
                Err(error) => {
                    let body = ApiError::from(error).body();
                    self.answer.fail(body["error"]["message"].as_str().unwrap_or_default().to_owned());
                    self.end();
                }
            }
        }
    }

    fn push(&mut self, text: String, tokens: &[TokenText]) {
        self.held.extend(self.answer.asked.logprobs(tokens));
        let pieces = match &mut self.reader {
            Some(reader) => reader.read(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![Piece::Content(text)],
        };
        pieces.into_iter().for_each(|piece| self.piece(piece));
    }

    fn piece(&mut self, piece: Piece) {
        match piece {
            Piece::Content(more) => {
                if self.opened().is_none_or(|item| matches!(item.kind, Kind::Call { .. })) {
                    self.close("completed");
                    self.open(Item::message());
                }
                let told = std::mem::take(&mut self.held);
                if let Some(Kind::Message { text, logprobs }) = self.opened().map(|item| &mut item.kind) {
                    text.push_str(&more);
                    logprobs.extend(told.iter().cloned());
                }
                self.say_of_part("response.output_text.delta", json!({"delta": more, "logprobs": told}));
            }
            Piece::Call { id, name, .. } => {
                self.close("completed");
                self.open(Item::call(id, name));
            }
            Piece::Arguments { text, .. } => {
                if let Some(Kind::Call { arguments, .. }) = self.opened().map(|item| &mut item.kind) {
                    arguments.push_str(&text);
                }
                self.say_of_item("response.function_call_arguments.delta", json!({"delta": text}));
            }
            Piece::End { valid } => {
                // Tokens of a call are nobody's words.
                self.held.clear();
                self.close(if valid { "completed" } else { "incomplete" });
            }
        }
    }

    fn end(&mut self) {
        if self.answer.ended_well() {
            let rest = self.reader.as_mut().map(ToolReader::rest).unwrap_or_default();
            rest.into_iter().for_each(|piece| self.piece(piece));
            if self.answer.output.is_empty() {
                self.open(Item::message());
            }
            self.close(self.answer.status());
        }
        let response = self.answer.response();
        if self.answer.ended_well() {
            (self.keep)(&self.answer, &response);
        }
        let kind = format!("response.{}", self.answer.status());
        self.say(&kind, json!({"response": response}));
    }

    /// The item that is being written.
    fn opened(&mut self) -> Option<&mut Item> {
        self.answer.output.last_mut().filter(|item| item.status == "in_progress")
    }

    fn open(&mut self, item: Item) {
        let (shown, part) = (item.shown(), item.part());
        self.answer.output.push(item);
        let output_index = self.answer.output.len() - 1;
        self.say("response.output_item.added", json!({"output_index": output_index, "item": shown}));
        if !part.is_null() {
            self.say_of_part("response.content_part.added", json!({"part": part}));
        }
    }

    /// Ends the item that is being written, if any.
    fn close(&mut self, status: &'static str) {
        let Some(item) = self.opened() else { return };
        item.status = status;
        let item = item.clone();
        match &item.kind {
            Kind::Message { text, logprobs } => {
                self.say_of_part("response.output_text.done", json!({"text": text, "logprobs": logprobs}));
                self.say_of_part("response.content_part.done", json!({"part": item.part()}));
            }
            Kind::Call { name, arguments, .. } => {
                let done = json!({"name": name, "arguments": arguments});
                self.say_of_item("response.function_call_arguments.done", done);
            }
        }
        let output_index = self.answer.output.len() - 1;
        self.say("response.output_item.done", json!({"output_index": output_index, "item": item.shown()}));
    }

    fn say_of_part(&mut self, kind: &str, mut event: Value) {
        event["content_index"] = json!(0);
        self.say_of_item(kind, event);
    }

    /// Says something of the newest item.
    fn say_of_item(&mut self, kind: &str, mut event: Value) {
        event["item_id"] = json!(self.answer.output.last().map(|item| item.id.as_str()));
        event["output_index"] = json!(self.answer.output.len().saturating_sub(1));
        self.say(kind, event);
    }

    fn say(&mut self, kind: &str, mut event: Value) {
        event["type"] = json!(kind);
        event["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        self.ready.push_back(event);
    }
}
