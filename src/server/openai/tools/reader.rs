//! Calls in an answer, in the shapes of chats and responses.

use serde_json::{Value, json};

use crate::text::{ToolCall, ToolCallParser, ToolEvent, ToolFormat};

/// What an answer is made of, in its order. Calls are numbered from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server::openai) enum Piece {
    /// Words for the reader.
    Content(String),
    /// A call begins.
    Call {
        /// Its number.
        index: usize,
        /// The name under which its result comes back.
        id: String,
        /// The function.
        name: String,
    },
    /// More of its arguments.
    Arguments {
        /// The call's number.
        index: usize,
        /// The characters.
        text: String,
    },
    /// It ends.
    End {
        /// Whether its arguments are a JSON object.
        valid: bool,
    },
}

/// Finds the calls in one answer.
#[derive(Debug, Clone)]
pub(in crate::server::openai) struct ToolReader {
    parser: ToolCallParser,
    format: ToolFormat,
    parallel: bool,
    calls: usize,
    /// Calls that can be made.
    valid: usize,
}

impl ToolReader {
    /// For an answer of a model that writes `format` and may call `functions`, more than one of them if `parallel`.
    pub(super) fn new(format: ToolFormat, functions: Vec<String>, parallel: bool) -> ToolReader {
        ToolReader { parser: ToolCallParser::new(format, functions), format, parallel, calls: 0, valid: 0 }
    }

    /// `content` and `tool_calls` of a whole answer.
    pub(in crate::server::openai) fn message(self, text: &str) -> (Value, Vec<Value>) {
        let (content, calls) = self.parser.whole(text);
        let most = if self.parallel { usize::MAX } else { 1 };
        let shown = |call: ToolCall| super::call(&call_id(self.format), &call.name, json!(call.arguments));
        let calls: Vec<Value> = calls.into_iter().take(most).map(shown).collect();
        let content = if content.is_empty() && !calls.is_empty() { Value::Null } else { json!(content) };
        (content, calls)
    }

    /// What more text adds.
    pub(in crate::server::openai) fn read(&mut self, text: &str) -> Vec<Piece> {
        let events = self.parser.push(text);
        self.pieces(events)
    }

    /// What is certain now that nothing follows.
    pub(in crate::server::openai) fn rest(&mut self) -> Vec<Piece> {
        let events = self.parser.finish();
        self.pieces(events)
    }

    /// Chat's deltas of more text.
    pub(in crate::server::openai) fn push(&mut self, text: &str) -> Vec<Value> {
        self.read(text).into_iter().filter_map(delta).collect()
    }

    /// Chat's last deltas.
    pub(in crate::server::openai) fn finish(&mut self) -> Vec<Value> {
        self.rest().into_iter().filter_map(delta).collect()
    }

    /// Whether there is a call that can be made: one that broke off was told and is none.
    pub(in crate::server::openai) fn called(&self) -> bool {
        self.valid > 0
    }

    fn pieces(&mut self, events: Vec<ToolEvent>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for event in events {
            self.calls += usize::from(matches!(event, ToolEvent::Begin { .. }));
            if !self.parallel && self.calls > 1 && !matches!(event, ToolEvent::Content(_)) {
                continue;
            }
            let index = self.calls.saturating_sub(1);
            pieces.push(match event {
                ToolEvent::Content(text) => Piece::Content(text),
                ToolEvent::Begin { name } => Piece::Call { index, id: call_id(self.format), name },
                ToolEvent::Arguments(text) => Piece::Arguments { index, text },
                ToolEvent::End { valid, .. } => {
                    self.valid += usize::from(valid);
                    Piece::End { valid }
                }
            });
        }
        pieces
    }
}

/// Chat's shape of a piece.
fn delta(piece: Piece) -> Option<Value> {
    match piece {
        Piece::Content(text) => Some(json!({"content": text})),
        Piece::Call { index, id, name } => Some(json!({"tool_calls": [{"index": index, "id": id,
            "type": "function", "function": {"name": name, "arguments": ""}}]})),
        Piece::Arguments { index, text } => {
            Some(json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]}))
        }
        Piece::End { .. } => None,
    }
}

/// A fresh id of a call.
fn call_id(format: ToolFormat) -> String {
    if format.short_ids() { super::super::id("")[..9].to_owned() } else { super::super::id("chatcmpl-tool-") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> ToolReader {
        ToolReader::new(ToolFormat::Hermes, vec!["add".to_owned()], true)
    }

    #[test]
    fn a_call_that_breaks_off_in_a_stream_is_none_to_its_end() {
        for (text, called) in [
            (r#"<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>"#, true),
            (r#"<tool_call>{"name": "add", "arguments": {"a": 1]} so"#, false),
            (r#"<tool_call>{"name": "add", "arguments": {"a": "#, false),
            ("no call", false),
        ] {
            let mut reader = reader();
            let mut pieces = reader.read(text);
            pieces.extend(reader.rest());
            assert_eq!(reader.called(), called, "{text}");
            let begun = pieces.iter().filter(|piece| matches!(piece, Piece::Call { .. })).count();
            let ended = pieces.iter().filter(|piece| **piece == Piece::End { valid: called }).count();
            assert_eq!((begun, ended), if text == "no call" { (0, 0) } else { (1, 1) }, "{pieces:?}");
            let (_, calls) = self::reader().message(text);
            assert_eq!(!calls.is_empty(), called, "whole and in pieces agree: {text}");
        }
    }
}
