//! Chat templates: Jinja, with what Hugging Face's templates expect.

mod json;

use std::sync::Arc;

use minijinja::{Environment, Error, ErrorKind};
use serde_json::Value;

use super::error::TextError;

/// A compiled template; cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
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
        environment.add_function("strftime_now", |format: String| strftime(&format));
        environment.add_filter("tojson", self::json::to_json);
        let opened = open_generation_tags(source);
        let source = Arc::from(source);
        environment
            .add_template_owned("chat", opened)
            .map_err(|err| TextError::Template { message: describe(&err) })?;
        Ok(ChatTemplate {
            environment: Arc::new(environment),
            source,
            bos: bos.unwrap_or_default().to_owned(),
            eos: eos.unwrap_or_default().to_owned(),
        })
    }

    /// The template as its author wrote it.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
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
        // As in transformers both are always there, `none` where nothing was given.
        let tools = tools.map_or(Value::Null, |tools| Value::Array(tools.to_vec()));
        context.insert("tools".to_owned(), tools);
        context.entry("documents".to_owned()).or_insert(Value::Null);
        let template = self
            .environment
            .get_template("chat")
            .map_err(|err| TextError::Template { message: describe(&err) })?;
        template.render(&context).map_err(|err| TextError::Refused { message: describe(&err) })
    }
}

/// Cuts a rendered chat after its final message, which the model then continues, at the place where transformers cuts.
///
/// # Errors
/// [`TextError::Refused`] where the template does not show that message as it is.
pub fn cut_after_final(rendered: &mut String, message: &str) -> Result<(), TextError> {
    let bare = message.trim();
    let at = rendered.rfind(bare).filter(|_| !bare.is_empty()).ok_or_else(|| TextError::Refused {
        message: "the final message is empty or not shown as it is, so that it cannot be continued"
            .to_owned(),
    })?;
    // Blanks at its end belong to it where the template keeps them.
    let spaced = message.trim_start();
    let len = if rendered[at..].starts_with(spaced) { spaced.len() } else { bare.len() };
    rendered.truncate(at + len);
    Ok(())
}

/// The innermost message, which is what the template's author wrote.
fn describe(error: &Error) -> String {
    error.detail().map_or_else(|| error.to_string(), str::to_owned)
}

/// `{% generation %}` only marks the assistant's words for training. It becomes a block that is always taken, so that
/// blanks around it go as they do around any block.
fn open_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let (inside, end) = (&rest[start + 2..start + len], start + len + 2);
        let word = inside.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let block = match word {
            "generation" => inside.replace(word, "if true"),
            "endgeneration" => inside.replace(word, "endif"),
            _ => inside.to_owned(),
        };
        out.push_str(&rest[..start + 2]);
        out.push_str(&block);
        out.push_str("%}");
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// The local time; a format that makes no sense is the template's error.
fn strftime(format: &str) -> Result<String, Error> {
    use std::fmt::Write as _;
    let mut out = String::new();
    write!(out, "{}", chrono::Local::now().format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("`{format}` is not a format of strftime"))
    })?;
    Ok(out)
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
    fn generation_marks_are_blocks_that_say_nothing() {
        assert_eq!(render("a{% generation %}b{%- endgeneration -%}c", &[]).expect("renders"), "abc");
        let blocks = "x\n  {% generation %}\ny \n{%- endgeneration %}\nz";
        assert_eq!(render(blocks, &[]).expect("renders"), "x\nyz");
    }

    #[test]
    fn what_was_not_given_is_none_and_not_undefined() {
        let source = "{{ tools is none }} {{ documents is none }} {{ tools is defined }}";
        assert_eq!(render(source, &[]).expect("renders"), "True True True");
    }

    #[test]
    fn a_final_message_is_open_at_its_end() {
        let cut = |rendered: &str, message: &str| {
            let mut text = rendered.to_owned();
            cut_after_final(&mut text, message).map(|()| text)
        };
        assert_eq!(cut("<a>so</a><a>so</a>", "so").expect("cut"), "<a>so</a><a>so");
        assert_eq!(cut("<a>so </a>", " so ").expect("cut"), "<a>so ", "kept blanks are kept");
        assert_eq!(cut("<a>so</a>", " so ").expect("cut"), "<a>so");
        assert!(cut("<a>so</a>", "other").is_err() && cut("<a></a>", " ").is_err());
    }

    #[test]
    fn a_senseless_time_format_is_refused() {
        assert_eq!(render("{{ strftime_now('%Y')|length }}", &[]).expect("renders"), "4");
        assert!(matches!(render("{{ strftime_now('%Q') }}", &[]), Err(TextError::Refused { .. })));
    }
}
