//! Chat templates: Jinja, with what Hugging Face's templates expect.

use std::sync::Arc;

use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::Value;

use super::error::TextError;

/// A compiled template; cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos: String,
    eos: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChatTemplate")
    }
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the spellings that it knows as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TextError::Template`].
    pub fn compile(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<ChatTemplate, TextError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(5_000_000));
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_function("strftime_now", |format: String| chrono::Local::now().format(&format).to_string());
        environment.add_filter("tojson", to_json);
        // `generation` only marks the assistant's words for training.
        let source = strip_generation_tags(source);
        environment
            .add_template_owned("chat", source)
            .map_err(|err| TextError::Template { message: describe(&err) })?;
        Ok(ChatTemplate {
            environment: Arc::new(environment),
            bos: bos.unwrap_or_default().to_owned(),
            eos: eos.unwrap_or_default().to_owned(),
        })
    }

    /// The prompt for `messages`; `extra` are more variables (`chat_template_kwargs`).
    ///
    /// # Errors
    /// [`TextError::Refused`] with what the template said.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, Value>,
    ) -> Result<String, TextError> {
        let mut context = extra.clone();
        context.insert("messages".to_owned(), Value::Array(messages.to_vec()));
        context.insert("add_generation_prompt".to_owned(), Value::Bool(add_generation_prompt));
        context.insert("bos_token".to_owned(), Value::String(self.bos.clone()));
        context.insert("eos_token".to_owned(), Value::String(self.eos.clone()));
        if let Some(tools) = tools {
            context.insert("tools".to_owned(), Value::Array(tools.to_vec()));
        }
        let template = self
            .environment
            .get_template("chat")
            .map_err(|err| TextError::Template { message: describe(&err) })?;
        template.render(&context).map_err(|err| TextError::Refused { message: describe(&err) })
    }
}

/// The innermost message, which is what the template's author wrote.
fn describe(error: &Error) -> String {
    error.detail().map_or_else(|| error.to_string(), str::to_owned)
}

fn strip_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let inside =
            rest[start + 2..start + len].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let end = start + len + 2;
        if inside == "generation" || inside == "endgeneration" {
            out.push_str(&rest[..start]);
        } else {
            out.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// As Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Jinja, kwargs: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let failed = |err: serde_json::Error| Error::new(ErrorKind::BadSerialization, err.to_string());
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let blanks = " ".repeat(indent.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(blanks.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
                .map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?
        }
    }
    Ok(Jinja::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

/// Python's separators: `", "` and `": "`.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: &[Value]) -> Result<String, TextError> {
        let template = ChatTemplate::compile(source, Some("<s>"), Some("</s>"))?;
        template.render(messages, None, true, &serde_json::Map::new())
    }

    #[test]
    fn templates_use_python_methods_and_python_json() {
        let source = "{{ bos_token }}{% for m in messages %}{% if m['role'].startswith('u') %}[{{ m.content.strip() }}]\
                      {% endif %}{{ m | tojson }}{% endfor %}";
        let out = render(source, &[json!({"role": "user", "content": " hé <b> "})]).expect("renders");
        assert_eq!(out, "<s>[hé <b>]{\"role\": \"user\", \"content\": \" hé <b> \"}");
    }

    #[test]
    fn what_a_template_raises_is_passed_on() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).expect_err("refused");
        assert_eq!(error.to_string(), "the chat template refused the messages: roles must alternate");
        assert!(matches!(ChatTemplate::compile("{% if %}", None, None), Err(TextError::Template { .. })));
    }

    #[test]
    fn generation_marks_are_ignored() {
        assert_eq!(render("a{% generation %}b{%- endgeneration -%}c", &[]).expect("renders"), "abc");
    }
}
