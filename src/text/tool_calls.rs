//! Calls of functions in what a model wrote.
//!
//! Every family of models has its own way to write a call ([`ToolFormat`]). The parser goes through an answer a
//! character at a time, so that what it finds does not depend on how the text was cut into pieces, and hands on what
//! is certain at once: content, then a call's name, then its arguments as they come, verbatim.

mod call_object;
mod event;
mod forced;
mod format;

use call_object::{CallObject, Outcome, Part, Scan, Step};

pub use event::{ToolCall, ToolEvent};
pub use forced::{ForcedCalls, Otherwise, forced_calls};
pub use format::ToolFormat;

#[derive(Debug, Clone)]
enum State {
    /// Text; `held` may be the beginning of a mark.
    Content,
    /// After a mark.
    Marked,
    /// Between the calls of a list.
    List,
    /// In the object of a call.
    Object(Box<CallObject>),
    /// In the name that stands before bare arguments.
    Name(String),
    /// In bare arguments.
    Arguments(Scan),
    /// After a call, before the mark that closes it; what was met of that mark.
    Close(String),
    /// After a call.
    Between,
}

/// Finds calls in an answer as it comes.
#[derive(Debug, Clone)]
pub struct ToolCallParser {
    format: ToolFormat,
    functions: Vec<String>,
    state: State,
    /// Text that is not certain yet.
    held: String,
    /// The call at hand as it was written.
    raw: String,
    /// Its arguments so far.
    arguments: String,
    /// The call at hand was handed on.
    begun: bool,
    /// The call at hand stands in a list.
    listed: bool,
    /// Nothing but blanks so far.
    fresh: bool,
    events: Vec<ToolEvent>,
}

impl ToolCallParser {
    /// For answers of a model that writes `format` and may call `functions`.
    #[must_use]
    pub fn new(format: ToolFormat, functions: Vec<String>) -> ToolCallParser {
        ToolCallParser {
            format,
            functions,
            state: State::Content,
            held: String::new(),
            raw: String::new(),
            arguments: String::new(),
            begun: false,
            listed: false,
            fresh: true,
            events: Vec::new(),
        }
    }

    /// Takes more of the answer; returns what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<ToolEvent> {
        for c in text.chars() {
            self.step(c);
        }
        std::mem::take(&mut self.events)
    }

    /// The rest, now that nothing follows.
    pub fn finish(&mut self) -> Vec<ToolEvent> {
        match std::mem::replace(&mut self.state, State::Between) {
            State::Content => {
                let held = std::mem::take(&mut self.held);
                self.content(&held);
            }
            State::Marked | State::Name(_) | State::Object(_) | State::Arguments(_) => self.abandon(),
            State::Close(met) => {
                self.raw.push_str(&met);
                self.end();
            }
            State::List | State::Between => {}
        }
        std::mem::take(&mut self.events)
    }

    /// Content and calls of a whole answer. A call whose arguments are no JSON object is content.
    #[must_use]
    pub fn whole(mut self, text: &str) -> (String, Vec<ToolCall>) {
        let mut events = self.push(text);
        events.extend(self.finish());
        let (mut content, mut calls) = (String::new(), Vec::new());
        let mut open: Option<ToolCall> = None;
        for event in events {
            match event {
                ToolEvent::Content(text) => content.push_str(&text),
                ToolEvent::Begin { name } => open = Some(ToolCall { name, arguments: String::new() }),
                ToolEvent::Arguments(text) => {
                    if let Some(call) = &mut open {
                        call.arguments.push_str(&text);
                    }
                }
                ToolEvent::End { raw, valid } => match open.take() {
                    Some(call) if valid => calls.push(call),
                    _ => content.push_str(&raw),
                },
            }
        }
        (content, calls)
    }

    fn step(&mut self, c: char) {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content => self.text(c),
            State::Marked => self.marked(c),
            State::List => self.list(c),
            State::Object(object) => self.object(object, c),
            State::Name(name) => self.name(name, c),
            State::Arguments(scan) => self.arguments(scan, c),
            State::Close(met) => self.close(met, c),
            State::Between => self.between(c),
        }
    }

    fn text(&mut self, c: char) {
        if self.fresh && self.format.bare() && c == '{' && self.held.trim().is_empty() {
            self.raw = std::mem::take(&mut self.held);
            return self.open(c, true);
        }
        self.held.push(c);
        let mark = self.format.mark();
        let at = (0..self.held.len())
            .filter(|at| self.held.is_char_boundary(*at))
            .find(|at| mark.starts_with(&self.held[*at..]))
            .unwrap_or(self.held.len());
        // Blanks before a call are layout.
        let certain = self.held[..at].trim_end().len();
        let text = self.held[..certain].to_owned();
        self.content(&text);
        if &self.held[at..] == mark {
            // Should it be no call, the blanks belong to the text.
            self.raw = self.held.split_off(certain);
            self.held.clear();
            self.state = State::Marked;
        } else {
            self.held.drain(..certain);
        }
    }

    fn marked(&mut self, c: char) {
        match c {
            _ if c.is_whitespace() => {
                self.raw.push(c);
                self.state = State::Marked;
            }
            '{' => self.open(c, false),
            '[' if self.format.lists() => {
                self.raw.push(c);
                self.listed = true;
                self.state = State::List;
            }
            _ if self.format.lists() && is_name(c) => {
                self.raw.push(c);
                self.state = State::Name(c.to_string());
            }
            _ => self.fail(c),
        }
    }

    fn list(&mut self, c: char) {
        match c {
            '{' => self.open(c, false),
            ']' => {
                self.listed = false;
                self.raw.clear();
                self.state = State::Between;
            }
            _ if c == ',' || c.is_whitespace() => {
                self.raw.push(c);
                self.state = State::List;
            }
            _ => self.fail(c),
        }
    }

    /// Opens the object of a call, whose first character `c` is. Without a mark it may be an answer in JSON: only a
    /// known function makes it a call.
    fn open(&mut self, c: char, bare: bool) {
        let known = bare.then(|| self.functions.clone());
        self.object(Box::new(CallObject::new(known)), c);
    }

    fn object(&mut self, mut object: Box<CallObject>, c: char) {
        let mut parts = Vec::new();
        let outcome = object.push(c, &mut parts);
        for part in parts {
            match part {
                Part::Name(name) => self.begin(name),
                Part::Arguments(text) => self.emit_arguments(&text),
            }
        }
        match outcome {
            Outcome::More => {
                self.raw.push(c);
                self.state = State::Object(object);
            }
            Outcome::Done => {
                self.raw.push(c);
                self.state = match self.format.close() {
                    Some(_) if !self.listed => State::Close(String::new()),
                    _ => {
                        self.end();
                        if self.listed { State::List } else { State::Between }
                    }
                };
            }
            Outcome::Broken => self.fail(c),
        }
    }

    fn name(&mut self, mut name: String, c: char) {
        const ARGUMENTS: &str = "[ARGS]";
        name.push(c);
        self.raw.push(c);
        let Some(at) = name.find('[') else {
            return if is_name(c) && name.len() <= 256 {
                self.state = State::Name(name);
            } else {
                self.abandon();
            };
        };
        let (function, mark) = name.split_at(at);
        // Newer models write the call's id between: `name[CALL_ID]id[ARGS]`.
        let mark = match mark.strip_prefix("[CALL_ID]") {
            Some(rest) => rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric()),
            None => mark,
        };
        if mark == ARGUMENTS {
            let function = function.to_owned();
            self.begin(function);
            self.state = State::Arguments(Scan::default());
        } else if ARGUMENTS.starts_with(mark) || "[CALL_ID]".starts_with(mark) {
            self.state = State::Name(name);
        } else {
            self.abandon();
        }
    }

    fn arguments(&mut self, mut scan: Scan, c: char) {
        if !scan.started() && c != '{' {
            if c.is_whitespace() {
                self.raw.push(c);
                self.state = State::Arguments(scan);
                return;
            }
            return self.fail(c);
        }
        self.raw.push(c);
        self.emit_arguments(c.encode_utf8(&mut [0; 4]));
        match scan.push(c) {
            Step::In => self.state = State::Arguments(scan),
            Step::Last | Step::Past => {
                self.end();
                self.state = State::Between;
            }
        }
    }

    /// The mark belongs to the call: should that be none, the reader gets both.
    fn close(&mut self, mut met: String, c: char) {
        let mark = self.format.close().unwrap_or_default();
        if met.is_empty() && c.is_whitespace() {
            self.raw.push(c);
            self.state = State::Close(met);
            return;
        }
        met.push(c);
        if met == mark {
            self.raw.push_str(mark);
            self.end();
            self.state = State::Between;
        } else if mark.starts_with(&met) {
            self.state = State::Close(met);
        } else {
            self.end();
            self.state = State::Between;
            met.chars().for_each(|c| self.step(c));
        }
    }

    fn between(&mut self, c: char) {
        if c.is_whitespace() || (self.format.bare() && c == ';') {
            self.state = State::Between;
        } else if self.format.bare() && c == '{' {
            self.open(c, true);
        } else {
            self.text(c);
        }
    }

    /// What was taken for a call is none, up to `c`.
    fn fail(&mut self, c: char) {
        self.abandon();
        self.step(c);
    }

    /// What was taken for a call is text; a call that was already handed on just ends.
    fn abandon(&mut self) {
        self.state = State::Content;
        self.listed = false;
        if self.begun {
            self.end();
        } else {
            let raw = std::mem::take(&mut self.raw);
            self.content(&raw);
        }
    }

    fn begin(&mut self, name: String) {
        self.begun = true;
        self.fresh = false;
        self.arguments.clear();
        self.events.push(ToolEvent::Begin { name });
    }

    fn end(&mut self) {
        self.begun = false;
        let raw = std::mem::take(&mut self.raw);
        self.events.push(ToolEvent::End { raw, valid: is_object(&self.arguments) });
    }

    fn content(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.fresh &= text.trim().is_empty();
        match self.events.last_mut() {
            Some(ToolEvent::Content(last)) => last.push_str(text),
            _ => self.events.push(ToolEvent::Content(text.to_owned())),
        }
    }

    fn emit_arguments(&mut self, text: &str) {
        self.arguments.push_str(text);
        match self.events.last_mut() {
            Some(ToolEvent::Arguments(last)) => last.push_str(text),
            _ => self.events.push(ToolEvent::Arguments(text.to_owned())),
        }
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

fn is_object(text: &str) -> bool {
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok()
}

#[cfg(test)]
mod tests;
