//! A response as a stream of OpenAI's typed events.

use std::collections::VecDeque;

use futures::Stream;
use serde_json::{Value, json};

use super::super::super::error::ApiError;
use super::object::Answer;
use crate::rag::{Finish, GenerateEvent, GenerateStream};

/// Called once with the complete response.
type Keep = Box<dyn Fn(&Answer, &Value) + Send>;

/// Turns a generation into events. Dropping it cancels the generation.
pub(super) struct Events {
    answer: Answer,
    generation: GenerateStream,
    keep: Keep,
    finish: Option<Finish>,
    ready: VecDeque<Value>,
    /// The number of the next event.
    sequence: u64,
}

impl Events {
    pub(super) fn new(answer: Answer, generation: GenerateStream, keep: Keep) -> Events {
        let mut events =
            Events { answer, generation, keep, finish: None, ready: VecDeque::new(), sequence: 0 };
        let response = events.answer.response();
        events.say("response.created", json!({"response": response}));
        events.say("response.in_progress", json!({"response": response}));
        let item = events.answer.message(Vec::new());
        events.say("response.output_item.added", json!({"output_index": 0, "item": item}));
        let part = events.answer.part();
        events.say_of_part("response.content_part.added", json!({"part": part}));
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
                Ok(GenerateEvent::Delta { text, .. }) => {
                    if !text.is_empty() {
                        self.answer.text.push_str(&text);
                        self.say_of_part(
                            "response.output_text.delta",
                            json!({"delta": text, "logprobs": []}),
                        );
                    }
                }
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

    fn end(&mut self) {
        let response = self.answer.response();
        if self.answer.ended_well() {
            let (text, part) = (self.answer.text.clone(), self.answer.part());
            self.say_of_part("response.output_text.done", json!({"text": text, "logprobs": []}));
            self.say_of_part("response.content_part.done", json!({"part": part}));
            let item = self.answer.message(vec![part]);
            self.say("response.output_item.done", json!({"output_index": 0, "item": item}));
            (self.keep)(&self.answer, &response);
        }
        let kind = format!("response.{}", self.answer.status());
        self.say(&kind, json!({"response": response}));
    }

    fn say_of_part(&mut self, kind: &str, mut event: Value) {
        event["item_id"] = json!(self.answer.message_id);
        event["output_index"] = json!(0);
        event["content_index"] = json!(0);
        self.say(kind, event);
    }

    fn say(&mut self, kind: &str, mut event: Value) {
        event["type"] = json!(kind);
        event["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        self.ready.push_back(event);
    }
}
