//! Grammars of answers that are calls, or calls or JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::ToolFormat;
use crate::text::grammar::{Grammar, laid_out};
use crate::text::tokenizer::Tokenizer;

/// Most calls of one forced answer.
const MOST: usize = 16;

/// What a forced answer may call.
#[derive(Debug, Clone, Copy)]
pub struct ForcedCalls<'a> {
    /// Names and the schemas of their arguments.
    pub functions: &'a [(String, Option<Value>)],
    /// Whether there may be more than one call.
    pub parallel: bool,
    /// A grammar of JSON that may stand instead of calls.
    pub instead: Option<&'a Grammar>,
}

/// The grammar of an answer that is calls in the family's own words; `None` where `instead` is no JSON.
#[must_use]
pub fn forced_calls(format: ToolFormat, tokenizer: &Tokenizer, calls: ForcedCalls<'_>) -> Option<Grammar> {
    let mark = |text: &str| match tokenizer.id(text) {
        Some(id) if tokenizer.is_special(id) => format!("<[{id}]>"),
        _ => quoted(text),
    };
    let key = if format == ToolFormat::Llama { "parameters" } else { "arguments" };
    let mut lark = String::new();
    // What may follow the first call.
    let more =
        |again: &str| if calls.parallel { format!("({again}){{0,{}}}", MOST - 1) } else { String::new() };
    let start = match format {
        ToolFormat::Hermes => {
            let call = format!("{} \"\\n\" call \"\\n\" {}", mark("<tool_call>"), mark("</tool_call>"));
            format!("calls: marked {}\nmarked: {call}\n", more("\"\\n\" marked"))
        }
        ToolFormat::Mistral => {
            let mark = mark("[TOOL_CALLS]");
            format!("calls: {mark} / ?/ \"[\" call {} \"]\"\n", more("\", \" call"))
        }
        ToolFormat::MistralArgs => {
            format!("calls: marked {}\nmarked: {} call\n", more("marked"), mark("[TOOL_CALLS]"))
        }
        // The family was trained on one call at a time.
        ToolFormat::Llama => "calls: call\n".to_owned(),
    };
    match calls.instead {
        None => lark.push_str("start: calls\n"),
        Some(grammar) => {
            let _ = writeln!(lark, "start: calls | json\njson: %json {}", grammar.schema()?);
        }
    }
    lark.push_str(&start);
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
