//! `{"name": .., "arguments": {..}}`, a character at a time.

use super::is_object;

/// A JSON value's extent: brackets and strings, not its validity.
#[derive(Debug, Clone, Default)]
pub(super) struct Scan {
    started: bool,
    depth: u32,
    string: bool,
    escaped: bool,
}

/// Where a character stands in a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Inside.
    In,
    /// It is the value's last.
    Last,
    /// The value ended before it.
    Past,
}

impl Scan {
    pub(super) fn started(&self) -> bool {
        self.started
    }

    pub(super) fn push(&mut self, c: char) -> Step {
        self.started = true;
        if self.string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.string = false;
                    if self.depth == 0 {
                        return Step::Last;
                    }
                }
                _ => {}
            }
            return Step::In;
        }
        match c {
            '"' => self.string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' if self.depth == 0 => return Step::Past,
            '}' | ']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Step::Last;
                }
            }
            _ if self.depth == 0 && (c == ',' || c.is_whitespace()) => return Step::Past,
            _ => {}
        }
        Step::In
    }
}

/// What became known of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// The function; once.
    Name(String),
    /// More of its arguments.
    Arguments(String),
}

/// What a character did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The object goes on.
    More,
    /// It was the last.
    Done,
    /// This is no call.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Open,
    /// Before the first key.
    First,
    /// Before another key.
    Key,
    InKey,
    Colon,
    /// Before or in a value.
    Value,
    After,
}

/// The object of a call.
#[derive(Debug, Clone)]
pub(super) struct CallObject {
    at: At,
    scan: Scan,
    key: String,
    value: String,
    name: Option<String>,
    /// Arguments that wait for the name, or for their end.
    held: Option<String>,
    /// The name was handed on.
    begun: bool,
    /// The arguments ended.
    complete: bool,
    /// The only names that make a call; then it needs arguments as well.
    known: Option<Vec<String>>,
}

impl CallObject {
    pub(super) fn new(known: Option<Vec<String>>) -> CallObject {
        CallObject {
            at: At::Open,
            scan: Scan::default(),
            key: String::new(),
            value: String::new(),
            name: None,
            held: None,
            begun: false,
            complete: false,
            known,
        }
    }

    pub(super) fn push(&mut self, c: char, parts: &mut Vec<Part>) -> Outcome {
        let blank = c.is_whitespace();
        match (self.at, c) {
            (At::Open, '{') => self.at = At::First,
            (At::First, '}') | (At::After, '}') => return self.done(parts),
            (At::First | At::Key, '"') => {
                self.at = At::InKey;
                self.scan = Scan::default();
                self.key = c.to_string();
                self.scan.push(c);
            }
            (At::InKey, _) => {
                self.key.push(c);
                if self.scan.push(c) == Step::Last {
                    match serde_json::from_str(&self.key) {
                        Ok(key) => self.key = key,
                        Err(_) => return Outcome::Broken,
                    }
                    self.at = At::Colon;
                }
            }
            (At::Colon, ':') => {
                self.at = At::Value;
                self.scan = Scan::default();
                self.value.clear();
            }
            (At::Value, _) if blank && !self.scan.started() => {}
            (At::Value, _) => return self.value(c, parts),
            (At::After, ',') => self.at = At::Key,
            (At::First | At::Key | At::Colon | At::After, _) if blank => {}
            _ => return Outcome::Broken,
        }
        Outcome::More
    }

    fn value(&mut self, c: char, parts: &mut Vec<Part>) -> Outcome {
        let arguments = matches!(self.key.as_str(), "arguments" | "parameters");
        if arguments && self.complete {
            return Outcome::Broken;
        }
        // Arguments go out as they come, once it is known whose they are.
        if arguments && !self.scan.started() && c == '{' {
            self.begin(parts);
        }
        let live = arguments && self.begun;
        let step = self.scan.push(c);
        if step != Step::Past {
            self.value.push(c);
            if live {
                parts.push(Part::Arguments(c.to_string()));
            }
        }
        if step == Step::In {
            return Outcome::More;
        }
        self.at = At::After;
        self.complete |= arguments;
        let known = match self.key.as_str() {
            "name" => self.take_name(),
            _ if arguments && !live => self.take_arguments(),
            _ => true,
        };
        match (known, step) {
            (false, _) => Outcome::Broken,
            // The character belongs to what follows.
            (true, Step::Past) => self.push(c, parts),
            (true, _) => Outcome::More,
        }
    }

    fn begin(&mut self, parts: &mut Vec<Part>) {
        if let Some(name) = &self.name {
            parts.push(Part::Name(name.clone()));
            self.begun = true;
        }
    }

    fn take_name(&mut self) -> bool {
        let Ok(name) = serde_json::from_str::<String>(&self.value) else { return false };
        let known = self.known.as_ref().is_none_or(|known| known.contains(&name));
        let first = self.name.is_none() && !name.is_empty();
        self.name = Some(name);
        known && first
    }

    /// Arguments that were not handed on: they came before the name, or as a text of JSON.
    fn take_arguments(&mut self) -> bool {
        let text = match serde_json::from_str::<String>(&self.value) {
            Ok(text) => text,
            Err(_) if self.value == "null" => "{}".to_owned(),
            Err(_) => self.value.clone(),
        };
        let object = is_object(&text);
        self.held = Some(text);
        object
    }

    fn done(&mut self, parts: &mut Vec<Part>) -> Outcome {
        if self.begun {
            return Outcome::Done;
        }
        let arguments = match (self.held.take(), &self.known) {
            (Some(text), _) => text,
            (None, None) => "{}".to_owned(),
            (None, Some(_)) => return Outcome::Broken,
        };
        self.begin(parts);
        if !self.begun {
            return Outcome::Broken;
        }
        parts.push(Part::Arguments(arguments));
        Outcome::Done
    }
}
