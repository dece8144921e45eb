//! Structured output: OpenAI's `response_format`, and what vLLM has beside it.

use serde::Deserialize;
use serde_json::Value;

use super::super::error::ApiError;
use super::fields::Fields;
use crate::rag::GrammarField;
use crate::text::Grammar;

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    r#type: String,
    json_schema: Option<JsonSchema>,
}

#[derive(Debug, Deserialize)]
struct JsonSchema {
    #[serde(alias = "json_schema")]
    schema: Option<Value>,
    strict: Option<bool>,
}

/// Ways to use other grammar engines, or more whitespace than Tarn allows.
const BACKENDS: [&str; 2] = ["auto", "guidance"];

/// Takes the grammar that a request asks for, if any.
pub(super) fn take(fields: &mut Fields) -> Result<Option<GrammarField>, ApiError> {
    let mut asked = Vec::new();
    if let Some(format) = fields.take::<ResponseFormat>("response_format")? {
        let grammar = format_of("response_format", &format.r#type, format.json_schema)?;
        asked.extend(grammar.map(|grammar| ("response_format", grammar)));
    }
    if let Some(schema) = fields.take("guided_json")? {
        asked.push(("guided_json", schema_of("guided_json", schema)?));
    }
    if let Some(regex) = fields.take("guided_regex")? {
        asked.push(("guided_regex", Grammar::Regex(regex)));
    }
    if let Some(choice) = fields.take("guided_choice")? {
        asked.push(("guided_choice", Grammar::Choice(choice)));
    }
    if let Some(grammar) = fields.take("guided_grammar")? {
        asked.push(("guided_grammar", Grammar::Context(grammar)));
    }
    if let Some(backend) = fields.take::<String>("guided_decoding_backend")?
        && !BACKENDS.contains(&backend.split(':').next().unwrap_or_default())
    {
        return Err(ApiError::invalid(
            "guided_decoding_backend",
            format!("`{backend}` is not supported: leave guided_decoding_backend out"),
        ));
    }
    if let Some(outputs) = fields.take::<Fields>("structured_outputs")? {
        asked.extend(structured_outputs(outputs)?.map(|grammar| ("structured_outputs", grammar)));
    }
    match asked.len() {
        0 => Ok(None),
        1 => Ok(asked.pop().map(|(field, grammar)| GrammarField { grammar, field })),
        _ => {
            let names: Vec<&str> = asked.iter().map(|(field, _)| *field).collect();
            Err(ApiError::invalid(names[1], format!("only one of {} can be followed", names.join(", "))))
        }
    }
}

/// `text.format` of responses, where the schema lies beside the type.
pub(super) fn text_format(format: Value) -> Result<Option<GrammarField>, ApiError> {
    let field = "text.format";
    let not_valid = |error| ApiError::invalid(field, format!("{field} is not valid: {error}"));
    let kind = format["type"].as_str().unwrap_or_default().to_owned();
    let schema: JsonSchema = serde_json::from_value(format).map_err(not_valid)?;
    Ok(format_of(field, &kind, Some(schema))?.map(|grammar| GrammarField { grammar, field }))
}

fn format_of(field: &str, kind: &str, json_schema: Option<JsonSchema>) -> Result<Option<Grammar>, ApiError> {
    let wrong = |message: String| ApiError::invalid(field, message);
    match (kind, json_schema) {
        ("text", _) => Ok(None),
        ("json_object", _) => Ok(Some(Grammar::JsonObject)),
        ("json_schema", Some(JsonSchema { schema: Some(schema), strict })) => {
            // OpenAI: without `strict` the schema is followed as far as it can be. Only who says so gets less.
            Ok(Some(Grammar::JsonSchema { schema, strict: strict != Some(false) }))
        }
        ("json_schema", _) => Err(wrong(format!("{field} has no schema"))),
        (other, _) => Err(wrong(format!(
            "{field}.type `{other}` is not supported: it must be text, json_object or json_schema"
        ))),
    }
}

/// vLLM takes schemas as objects and as texts.
fn schema_of(field: &str, schema: Value) -> Result<Grammar, ApiError> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::invalid(field, format!("{field} is no JSON: {error}")))?,
        schema => schema,
    };
    Ok(Grammar::JsonSchema { schema, strict: true })
}

fn structured_outputs(mut outputs: Fields) -> Result<Option<Grammar>, ApiError> {
    let field = "structured_outputs";
    let mut asked = Vec::new();
    if let Some(schema) = outputs.take("json")? {
        asked.push(schema_of(field, schema)?);
    }
    if let Some(regex) = outputs.take("regex")? {
        asked.push(Grammar::Regex(regex));
    }
    if let Some(choice) = outputs.take("choice")? {
        asked.push(Grammar::Choice(choice));
    }
    if let Some(grammar) = outputs.take("grammar")? {
        asked.push(Grammar::Context(grammar));
    }
    if outputs.take("json_object")? == Some(true) {
        asked.push(Grammar::JsonObject);
    }
    outputs.refuse(&[
        ("structural_tag", &[]),
        ("whitespace_pattern", &[]),
        ("disable_any_whitespace", &["false"]),
        ("disable_additional_properties", &["false"]),
        ("disable_fallback", &["true", "false"]),
    ])?;
    if asked.len() != 1 {
        let message = "structured_outputs must have exactly one of json, regex, choice, grammar, json_object";
        return Err(ApiError::invalid(field, message));
    }
    Ok(asked.pop())
}
