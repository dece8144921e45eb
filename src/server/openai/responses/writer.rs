//! A response as it is written: the generation's events folded into items, and told in OpenAI's events.
//!
//! Whole and streamed responses are this one fold: the last event has the whole.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::super::super::error::ApiError;
use super::super::tools::{Piece, ToolReader};
use super::items::{Item, Kind};
use super::object::Answer;
use crate::rag::{Finish, GenerateError, GenerateEvent, TokenText};

/// Called once with the complete response.
pub(super) type Keep = Box<dyn Fn(&Answer, &Value) + Send>;

/// Writes one response.
pub(super) struct Writer {
    answer: Answer,
    reader: Option<ToolReader>,
    keep: Keep,
    finish: Option<Finish>,
    /// OpenAI's events that nobody took yet.
    pub(super) told: VecDeque<Value>,
    /// Log probabilities of tokens whose text is not certain yet.
    held: Vec<Value>,
    /// The number of the next event.
    sequence: u64,
}

impl Writer {
    /// Begins `answer`, in which `reader` finds the calls.
    pub(super) fn new(answer: Answer, reader: Option<ToolReader>, keep: Keep) -> Writer {
        let (told, held) = (VecDeque::new(), Vec::new());
        let mut writer = Writer { answer, reader, keep, finish: None, told, held, sequence: 0 };
        let response = writer.answer.response();
        writer.say("response.created", json!({"response": response}));
        writer.say("response.in_progress", json!({"response": response}));
        // Where nothing may be called, words are all that can come.
        if writer.reader.is_none() {
            writer.open(Item::message());
        }
        writer
    }

    /// Goes on with what was generated.
    pub(super) fn take(&mut self, event: GenerateEvent) {
        match event {
            GenerateEvent::Prompt { .. } => {}
            GenerateEvent::Delta { text, tokens, .. } => self.push(text, &tokens),
            GenerateEvent::Finished { finish, .. } => self.finish = Some(finish),
            GenerateEvent::Done(usage) => {
                if let Some(finish) = self.finish.take() {
                    self.answer.finish(&finish, &usage);
                }
                self.end();
            }
        }
    }

    /// Ends a response of which there will be no more.
    pub(super) fn fail(&mut self, error: GenerateError) {
        let body = ApiError::from(error).body();
        self.answer.fail(body["error"]["message"].as_str().unwrap_or_default().to_owned());
        self.end();
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
            // Tokens without a text of their own, such as those of a stop text.
            let words = self.opened().is_some_and(|item| matches!(item.kind, Kind::Message { .. }));
            if words && !self.held.is_empty() {
                self.piece(Piece::Content(String::new()));
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
        self.told.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fields::Fields;
    use super::super::super::tools::Tools;
    use super::super::object::Asked;
    use super::*;
    use crate::engine::{FinishReason, Usage};
    use crate::text::ToolFormat;

    #[test]
    fn words_and_calls_are_items_in_their_order() {
        let fields = json!({"tools": [{"type": "function", "name": "add"}], "parallel_tool_calls": false});
        let mut fields: Fields = serde_json::from_value(fields).expect("fields");
        let answer = Answer::new(Asked::take(&mut fields, "m").expect("asked"));
        let tools = Tools::take_flat(&mut fields).expect("tools").expect("some");
        let keep = Box::new(|answer: &Answer, response: &Value| {
            let turn = super::super::items::turn(&answer.output);
            let output = &response["output"];
            assert_eq!(
                (&turn["content"], &turn["tool_calls"][0]["id"]),
                (&json!("Well."), &output[1]["call_id"])
            );
            assert_eq!(turn["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        });
        let mut writer = Writer::new(answer, Some(tools.reader(ToolFormat::Hermes)), keep);
        let call = r#"<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>"#;
        for text in ["Well. ", call, call] {
            writer.take(GenerateEvent::Delta { index: 0, text: text.to_owned(), tokens: Vec::new() });
        }
        let finish = Finish { reason: FinishReason::Length, stop: None };
        writer.take(GenerateEvent::Finished { index: 0, finish });
        writer.take(GenerateEvent::Done(Usage::default()));
        let last = writer.told.pop_back().expect("a last event");
        let output = last["response"]["output"].as_array().expect("items");
        assert_eq!(output.len(), 2, "not parallel: {last}");
        assert_eq!(
            (&output[0]["content"][0]["text"], &output[0]["status"]),
            (&json!("Well."), &json!("completed"))
        );
        assert_eq!((&output[1]["name"], &output[1]["arguments"]), (&json!("add"), &json!(r#"{"a": 1}"#)));
        assert_eq!(
            (&last["type"], &last["response"]["status"]),
            (&json!("response.incomplete"), &json!("incomplete"))
        );
        assert_eq!(last["response"]["incomplete_details"]["reason"], "max_output_tokens");
    }
}
