//! The items of a response's output: messages and calls of functions.

use serde_json::{Value, json};

use super::super::tools;

/// One item.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) status: &'static str,
    pub(super) kind: Kind,
}

/// What an item is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Words for the reader.
    Message {
        /// The words so far.
        text: String,
        /// Log probabilities of their tokens, where they were asked for.
        logprobs: Vec<Value>,
    },
    /// A function that the model wants called.
    Call {
        /// The name under which its result comes back.
        call_id: String,
        /// The function.
        name: String,
        /// Its arguments so far.
        arguments: String,
    },
}

impl Item {
    /// A message, empty and open.
    pub(super) fn message() -> Item {
        Item::open("msg_", Kind::Message { text: String::new(), logprobs: Vec::new() })
    }

    /// A call, without its arguments and open.
    pub(super) fn call(call_id: String, name: String) -> Item {
        Item::open("fc_", Kind::Call { call_id, name, arguments: String::new() })
    }

    fn open(prefix: &str, kind: Kind) -> Item {
        Item { id: super::super::id(prefix), status: "in_progress", kind }
    }

    /// A message's one part.
    pub(super) fn part(&self) -> Value {
        match &self.kind {
            Kind::Message { text, logprobs } => {
                json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
            }
            Kind::Call { .. } => Value::Null,
        }
    }

    /// The item; an open message has no part yet.
    pub(super) fn shown(&self) -> Value {
        match &self.kind {
            Kind::Message { .. } => {
                let content = if self.status == "in_progress" { Vec::new() } else { vec![self.part()] };
                json!({"id": self.id, "type": "message", "status": self.status, "role": "assistant",
                    "content": content})
            }
            Kind::Call { call_id, name, arguments } => {
                json!({"id": self.id, "type": "function_call", "status": self.status, "call_id": call_id,
                    "name": name, "arguments": arguments})
            }
        }
    }
}

/// The assistant's turn that `items` were, as chat templates take it. A call that was cut off is none.
pub(super) fn turn(items: &[Item]) -> Value {
    let (mut content, mut calls) = (String::new(), Vec::new());
    for item in items {
        match &item.kind {
            Kind::Message { text, .. } => content.push_str(text),
            Kind::Call { call_id, name, arguments } => {
                if let Some(arguments) =
                    tools::arguments(arguments).ok().filter(|_| item.status == "completed")
                {
                    calls.push(tools::call(call_id, name, arguments));
                }
            }
        }
    }
    let mut message = json!({"role": "assistant", "content": content});
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    message
}
