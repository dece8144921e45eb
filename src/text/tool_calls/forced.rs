//! Grammars of answers that are calls, or may have them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::ToolFormat;
use crate::text::grammar::{Grammar, laid_out};
use crate::text::tokenizer::Tokenizer;

/// Most calls after the first one.
const MORE: usize = 15;

/// What an answer may call.
#[derive(Debug, Clone, Copy)]
pub struct ForcedCalls<'a> {
    /// Names and the schemas of their arguments.
    pub functions: &'a [(String, Option<Value>)],
    /// Whether there may be more than one call.
    pub parallel: bool,
    /// What else an answer may be.
    pub otherwise: Otherwise<'a>,
}

/// What an answer may be beside calls.
#[derive(Debug, Clone, Copy)]
pub enum Otherwise<'a> {
    /// Nothing.
    Nothing,
    /// What a grammar of JSON admits, instead of calls.
    Json(&'a Grammar),
    /// Any text, before calls or without them.
    Text,
}

/// The grammar of an answer that is calls in the family's own words; `None` where [`Otherwise::Json`] is none.
#[must_use]
pub fn forced_calls(format: ToolFormat, tokenizer: &Tokenizer, calls: ForcedCalls<'_>) -> Option<Grammar> {
    let mark = |text: &str| match tokenizer.id(text) {
        Some(id) if tokenizer.is_special(id) => format!("<[{id}]>"),
        _ => quoted(text),
    };
    let opening = mark(format.mark());
    let more = |again: &str| if calls.parallel { format!("({again}){{0,{MORE}}}") } else { String::new() };
    // What follows the first mark.
    let after = match format {
        ToolFormat::Hermes => format!("body {}", more(&format!("\"\\n\" {opening} body"))),
        ToolFormat::MistralArgs => format!("body {}", more(&format!("{opening} body"))),
        ToolFormat::Mistral | ToolFormat::Llama => "body".to_owned(),
    };
    let body = match format {
        ToolFormat::Hermes => format!("\"\\n\" call \"\\n\" {}", mark("</tool_call>")),
        ToolFormat::Mistral => format!("/ ?/ \"[\" call {} \"]\"", more("\", \" call")),
        // The family was trained on one call at a time, without a mark.
        ToolFormat::MistralArgs | ToolFormat::Llama => "call".to_owned(),
    };
    let opening_or_none = if format.bare() { "" } else { &opening };
    let mut lark = format!("calls: {opening_or_none} {after}\nbody: {body}\n");
    match calls.otherwise {
        Otherwise::Nothing => lark.push_str("start: calls\n"),
        Otherwise::Json(grammar) => {
            let _ = writeln!(lark, "start: calls | json\njson: %json {}", grammar.schema()?);
        }
        // What begins like a call must be one.
        Otherwise::Text if format.bare() => lark.push_str("start: calls | TEXT |\nTEXT: /[^{](?s:.*)/\n"),
        Otherwise::Text if opening.starts_with('<') => {
            let _ = writeln!(lark, "start: TEXT? calls | TEXT |\nTEXT: /(?s:.+)/");
        }
        // The first mark ends the text, however the tokens spell it.
        Otherwise::Text => {
            let _ = writeln!(lark, "start: lead {after} | TEXT |\nTEXT: /(?s:.+)/");
            let mark = format.mark().replace('[', r"\[").replace(']', r"\]");
            let _ = writeln!(lark, "lead[lazy]: /(?s:.*){mark}/");
        }
    }
    let key = if format == ToolFormat::Llama { "parameters" } else { "arguments" };
    let (mut choices, mut rules) = (Vec::new(), String::new());
    for (at, (name, schema)) in calls.functions.iter().enumerate() {
        choices.push(format!("call{at}"));
        let arguments = schema.clone().unwrap_or_else(|| json!({"type": "object"}));
        let arguments = laid_out(&object_only(arguments), true);
        let words = match format {
            ToolFormat::MistralArgs => format!("{} {} args{at}", quoted(name), mark("[ARGS]")),
            _ => {
                let head = format!("{{\"name\": {}, \"{key}\": ", Value::from(name.as_str()));
                format!("{} args{at} \"}}\"", quoted(&head))
            }
        };
        let _ = writeln!(rules, "call{at}: {words}\nargs{at}: %json {arguments}");
    }
    let _ = writeln!(lark, "call: {}", choices.join(" | "));
    Some(Grammar::Context(lark + &rules))
}

/// Arguments are an object, whether their schema says so or not.
fn object_only(mut schema: Value) -> Value {
    if let Value::Object(fields) = &mut schema
        && !fields.contains_key("type")
        && !fields.contains_key("$ref")
    {
        fields.insert("type".to_owned(), json!("object"));
    }
    schema
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
