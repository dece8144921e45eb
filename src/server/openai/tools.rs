//! OpenAI's `tools`: what a request may call, and calls in its answers.

mod reader;

use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(super) use self::reader::{Piece, ToolReader};

use super::super::error::ApiError;
use super::fields::{Fields, Refused};
use crate::rag::{GenerateRequest, Generator, GrammarField};
use crate::text::{ForcedCalls, Otherwise, ToolFormat, forced_calls};

/// Most functions of a request, as with OpenAI.
const MOST: usize = 128;

/// What came before `tools`.
const LEGACY: &[Refused] = &[("functions", &["[]"]), ("function_call", &["\"none\"", "\"auto\""])];

#[derive(Debug, Deserialize)]
struct Tool {
    r#type: String,
    function: Option<Function>,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    parameters: Option<Value>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "it must be none, auto, required or a function by its name")]
enum ChoiceField {
    Word(String),
    Function { r#type: String, function: Option<FunctionName> },
}

#[derive(Debug, Deserialize)]
struct FunctionName {
    name: String,
}

/// Which calls are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// As the model likes.
    Auto,
    /// At least one.
    Required,
    /// One of the only function that is left.
    Named,
}

/// The functions that a request may call.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    /// As they came, for the template.
    definitions: Vec<Value>,
    functions: Vec<(String, Option<Value>)>,
    /// The functions whose arguments follow their schema even where the model is free to call them.
    strict: Vec<String>,
    choice: Choice,
    parallel: bool,
}

impl Tools {
    /// Takes `tools` and what belongs to them; `None` where nothing may be called.
    pub(super) fn take(fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
        fields.refuse(LEGACY)?;
        let definitions: Vec<Value> = fields.take("tools")?.unwrap_or_default();
        let choice: Option<ChoiceField> = fields.take("tool_choice")?;
        let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
        if definitions.len() > MOST {
            return Err(ApiError::invalid("tools", format!("tools must hold at most {MOST} functions")));
        }
        let (mut functions, mut strict): (Vec<(String, Option<Value>)>, _) = (Vec::new(), Vec::new());
        for (at, definition) in definitions.iter().enumerate() {
            let function = function(at, definition)?;
            if functions.iter().any(|(name, _)| *name == function.name) {
                let message = format!("the name `{}` is given twice", function.name);
                return Err(ApiError::invalid(format!("tools[{at}]"), message));
            }
            if function.strict == Some(true) {
                strict.push(function.name.clone());
            }
            functions.push((function.name, function.parameters));
        }
        let wrong = |message: String| Err(ApiError::invalid("tool_choice", message));
        let choice = match choice {
            None => Choice::Auto,
            Some(ChoiceField::Word(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => Choice::Auto,
                "required" => Choice::Required,
                _ => return wrong(format!("`{word}` must be none, auto, required or a function")),
            },
            Some(ChoiceField::Function { r#type, function: Some(FunctionName { name }) })
                if r#type == "function" =>
            {
                functions.retain(|(known, _)| *known == name);
                if functions.is_empty() {
                    return wrong(format!("`{name}` is none of the tools"));
                }
                Choice::Named
            }
            Some(ChoiceField::Function { r#type, .. }) => {
                return wrong(format!("tool_choice of type `{type}` is not supported: name one function"));
            }
        };
        if functions.is_empty() {
            return match choice {
                Choice::Auto => Ok(None),
                _ => wrong("tool_choice needs tools".to_owned()),
            };
        }
        Ok(Some(Tools { definitions, functions, strict, choice, parallel }))
    }

    /// The same for responses, where a function lies beside its type.
    pub(super) fn take_flat(fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
        let definitions: Vec<Value> = fields.take("tools")?.unwrap_or_default();
        fields.put("tools", definitions.into_iter().map(nested).collect());
        let choice = fields.take("tool_choice")?.map_or(Value::Null, nested);
        fields.put("tool_choice", choice);
        Tools::take(fields)
    }

    /// What the template is given: the functions where it knows what tools are, else messages that describe them.
    pub(super) fn prompt(&self, generator: &Generator, messages: &mut Vec<Value>) -> Option<Vec<Value>> {
        if generator.template_knows_tools() {
            return Some(self.definitions.clone());
        }
        spell_out(messages);
        describe(&self.definitions, messages);
        None
    }

    /// Makes `request` one whose answer may, or must, have calls.
    pub(super) fn apply(&self, generator: &Generator, request: &mut GenerateRequest) -> Result<(), ApiError> {
        let (format, tokenizer) = (generator.tool_format(), generator.tokenizer());
        // A mark that is control must be seen.
        if tokenizer.id(format.mark()).is_some_and(|id| tokenizer.is_special(id)) {
            request.skip_special_tokens = false;
        }
        let asked = request.grammar.take();
        let otherwise = match (self.choice, &asked) {
            // An answer that must be calls has no content that could follow another grammar.
            (Choice::Required | Choice::Named, _) => Otherwise::Nothing,
            (Choice::Auto, Some(asked)) => Otherwise::Json(&asked.grammar),
            (Choice::Auto, None) if self.strict.is_empty() => return Ok(()),
            (Choice::Auto, None) => Otherwise::Text,
        };
        let field =
            asked.as_ref().filter(|_| self.choice == Choice::Auto).map_or("tools", |asked| asked.field);
        let functions: Vec<(String, Option<Value>)> = match otherwise {
            Otherwise::Text => self.loosely(),
            _ => self.functions.clone(),
        };
        let parallel = self.parallel && self.choice != Choice::Named;
        let calls = ForcedCalls { functions: &functions, parallel, otherwise };
        let grammar = forced_calls(format, tokenizer, calls).ok_or_else(|| {
            let message = format!("{field} cannot be followed together with tools: leave one out");
            ApiError::invalid(field, message)
        })?;
        request.grammar = Some(GrammarField { grammar, field });
        Ok(())
    }

    /// The functions, with schemas of those only that are strict.
    fn loosely(&self) -> Vec<(String, Option<Value>)> {
        let strict = |name: &String| self.strict.contains(name);
        self.functions
            .iter()
            .map(|(name, schema)| (name.clone(), schema.clone().filter(|_| strict(name))))
            .collect()
    }

    /// Reads one answer.
    pub(super) fn reader(&self, format: ToolFormat) -> ToolReader {
        let functions = self.functions.iter().map(|(name, _)| name.clone()).collect();
        ToolReader::new(format, functions, self.parallel)
    }
}

/// A function, or a choice of one, in the shape of chats.
fn nested(flat: Value) -> Value {
    match flat {
        Value::Object(mut function) if function.get("type").is_some_and(|kind| kind == "function") => {
            function.remove("type");
            function.retain(|_, value| !value.is_null());
            json!({"type": "function", "function": function})
        }
        other => other,
    }
}

fn function(at: usize, definition: &Value) -> Result<Function, ApiError> {
    let wrong = |message: String| ApiError::invalid(format!("tools[{at}]"), message);
    let tool: Tool = serde_json::from_value(definition.clone())
        .map_err(|error| wrong(format!("it is no tool: {error}")))?;
    let function = match (tool.r#type.as_str(), tool.function) {
        ("function", Some(function)) => function,
        ("function", None) => return Err(wrong("function is missing".to_owned())),
        (other, _) => return Err(wrong(format!("tools of type `{other}` are not supported"))),
    };
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if function.name.is_empty() || function.name.len() > 64 || !function.name.chars().all(name) {
        return Err(wrong(format!(
            "the name `{}` must be 1 to 64 of a-z, A-Z, 0-9, _, - and .",
            function.name
        )));
    }
    if function.parameters.as_ref().is_some_and(|schema| !schema.is_object()) {
        return Err(wrong("parameters must be a JSON schema".to_owned()));
    }
    Ok(function)
}

/// A call in the shape of chats.
pub(super) fn call(id: &str, name: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// The JSON of a call's arguments; who says nothing has none.
pub(super) fn arguments(text: &str) -> Result<Value, String> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    serde_json::from_str(text).map_err(|error| format!("the arguments of a call are no JSON: {error}"))
}

/// Arguments of earlier calls as objects, which is what templates expect; OpenAI's are texts.
pub(super) fn parse_arguments(message: &mut Map<String, Value>) -> Result<(), String> {
    let Some(Value::Array(calls)) = message.get_mut("tool_calls") else { return Ok(()) };
    for call in calls {
        let Some(said) = call.pointer_mut("/function/arguments") else {
            return Err("a tool call needs a function with arguments".to_owned());
        };
        if let Value::String(text) = said {
            *said = arguments(text)?;
        }
    }
    Ok(())
}

/// Calls and their results as text, for templates that know neither.
fn spell_out(messages: &mut [Value]) {
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        let content = message.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(Value::Array(calls)) = message.remove("tool_calls") {
            let mut lines: Vec<String> = Some(content).filter(|text| !text.is_empty()).into_iter().collect();
            lines.extend(calls.iter().filter_map(|call| call.get("function")).map(|function| {
                let call = json!({"name": function["name"], "arguments": function["arguments"]});
                format!("<tool_call>\n{call}\n</tool_call>")
            }));
            message.insert("content".to_owned(), Value::String(lines.join("\n")));
        } else if message.get("role").is_some_and(|role| role == "tool") {
            message.insert("role".to_owned(), json!("user"));
            let text = format!("<tool_response>\n{content}\n</tool_response>");
            message.insert("content".to_owned(), Value::String(text));
        }
    }
}

/// Describes the functions in the first message, which the template would otherwise not mention.
fn describe(definitions: &[Value], messages: &mut Vec<Value>) {
    let lines: Vec<String> = definitions.iter().map(Value::to_string).collect();
    let text = format!(
        "You can call these functions:\n<tools>\n{}\n</tools>\nTo call one, write its name and arguments as JSON:\n\
         <tool_call>\n{{\"name\": \"function\", \"arguments\": {{\"argument\": \"value\"}}}}\n</tool_call>",
        lines.join("\n")
    );
    match messages.first_mut() {
        Some(first) if first["role"] == "system" => {
            let said = first["content"].as_str().unwrap_or_default();
            first["content"] = Value::String(format!("{said}\n\n{text}"));
        }
        _ => messages.insert(0, json!({"role": "system", "content": text})),
    }
}
