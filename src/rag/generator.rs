//! The generator: tokenizer, chat template and engine under a model's name.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use crate::engine::{
    AdapterError, AdapterLease, Adapters, Constraint, EngineHandle, Request, RequestId, SamplingParams,
};
use crate::telemetry::Metrics;
use crate::text::{ChatTemplate, GrammarMatcher, Tokenizer, ToolFormat, cut_after_final};

use super::constraint::Follow;
use super::error::GenerateError;
use super::generate_stream::GenerateStream;
use super::generation::{GenerateRequest, Prompt};
use super::grammars::{GrammarStats, Grammars};
use super::prompt::{Citing, Form};

/// Texts of more bytes are tokenized off the async threads.
const LONG_TEXT: usize = 1024;

/// Prompts of one request that are tokenized at once.
const TOKENIZING: usize = 4;

/// Marks of turns that some templates write as plain text.
const TURNS: [&str; 4] = ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"];

/// What a model says about itself beside its weights.
#[derive(Debug, Clone)]
pub struct GeneratorConfig {
    /// The name under which it is served.
    pub name: String,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// How it samples when the request does not say.
    pub sampling: SamplingParams,
    /// How its answers are cited: [`Citing::for_parameters`].
    pub citing: Citing,
    /// How it writes tool calls; `None`: what its chat template says.
    pub tool_format: Option<ToolFormat>,
}

/// A loaded model that generates: words in, words out. Cheap to clone.
#[derive(Clone)]
pub struct Generator {
    inner: Arc<Inner>,
    metrics: Option<Metrics>,
    adapters: Option<Adapters>,
}

/// A prompt that the engine can take.
pub(super) struct Ready {
    pub(super) prompt: Prompt,
    pub(super) ids: Arc<[u32]>,
    /// Most tokens of an answer to it.
    pub(super) max_tokens: u32,
}

struct Inner {
    engine: EngineHandle,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    config: GeneratorConfig,
    form: Form,
    /// What the tokenizer or the template takes for control, however it got into a text.
    control: Vec<String>,
    grammars: Arc<Grammars>,
    tool_format: ToolFormat,
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Generator {
    /// Puts the parts of a loaded model together.
    pub fn new(
        engine: EngineHandle,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        config: GeneratorConfig,
    ) -> Generator {
        let form = form(template.as_ref());
        let special = tokenizer.special_ids().into_iter().map(|id| tokenizer.token_bytes(id));
        let control = special
            .filter_map(|bytes| String::from_utf8(bytes).ok())
            .chain(TURNS.map(str::to_owned))
            .filter(|text| text.chars().count() > 1)
            .collect();
        let source = template.as_ref().map_or("", ChatTemplate::source);
        let tool_format = config.tool_format.unwrap_or_else(|| ToolFormat::detect(source));
        let vocab_size = engine.limits().vocab_size as usize;
        let grammars = Arc::new(Grammars::new(tokenizer.clone(), vocab_size, config.eos.clone()));
        let inner = Inner { engine, tokenizer, template, config, form, control, grammars, tool_format };
        let inner = Arc::new(inner);
        Generator { inner, metrics: None, adapters: None }
    }

    /// The same, with the times of every generation counted in `metrics`, whoever asked for it.
    #[must_use]
    pub fn measured(self, metrics: Metrics) -> Generator {
        Generator { metrics: Some(metrics), ..self }
    }

    /// The same, with adapters that requests may name.
    #[must_use]
    pub fn with_adapters(self, adapters: Adapters) -> Generator {
        Generator { adapters: Some(adapters), ..self }
    }

    /// The adapters that requests may name.
    pub fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    pub(super) fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_ref()
    }

    /// How the model takes instructions beside a question.
    pub fn form(&self) -> Form {
        self.inner.form
    }

    /// How the model's answers are cited.
    pub fn citing(&self) -> Citing {
        self.inner.config.citing
    }

    /// `text` with a blank inside whatever the tokenizer or the template would take for control:
    /// a document that says `<|im_end|>` must not end its turn.
    pub fn neutral(&self, text: &str) -> String {
        let mut neutral = text.to_owned();
        for control in self.inner.control.iter().filter(|control| text.contains(control.as_str())) {
            let first = control.chars().next().map_or(0, char::len_utf8);
            neutral = neutral.replace(control, &format!("{} {}", &control[..first], &control[first..]));
        }
        neutral
    }

    /// The name under which the model is served.
    pub fn name(&self) -> &str {
        &self.inner.config.name
    }

    /// Most tokens of a prompt and its answer together.
    pub fn max_model_len(&self) -> usize {
        self.inner.engine.limits().max_model_len as usize
    }

    /// The engine, for its limits and statistics.
    pub fn engine(&self) -> &EngineHandle {
        &self.inner.engine
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// Tokens that end an answer.
    pub fn eos(&self) -> &[u32] {
        &self.inner.config.eos
    }

    /// How the model writes tool calls.
    pub fn tool_format(&self) -> ToolFormat {
        self.inner.tool_format
    }

    /// Whether the chat template shows the model what it may call.
    pub fn template_knows_tools(&self) -> bool {
        self.inner.template.as_ref().is_some_and(|template| template.source().contains("tools"))
    }

    /// Whether the model takes chats.
    pub fn has_chat_template(&self) -> bool {
        self.inner.template.is_some()
    }

    /// How the model samples when the request does not say.
    pub fn default_sampling(&self) -> SamplingParams {
        self.inner.config.sampling.clone()
    }

    /// A prompt's text, chats through the template; `None` for a prompt of ids.
    ///
    /// # Errors
    /// [`GenerateError::NoChatTemplate`], or the template's own refusal of the messages.
    pub fn render(&self, prompt: &Prompt) -> Result<Option<String>, GenerateError> {
        match prompt {
            Prompt::Text(text) | Prompt::Bare(text) => Ok(Some(text.clone())),
            Prompt::Tokens(_) => Ok(None),
            Prompt::Chat { messages, tools, add_generation_prompt, continue_final_message, extra } => {
                let template = self
                    .inner
                    .template
                    .as_ref()
                    .ok_or_else(|| GenerateError::NoChatTemplate { model: self.name().to_owned() })?;
                let mut text = template.render(messages, tools.as_deref(), *add_generation_prompt, extra)?;
                if *continue_final_message {
                    let last = messages.last().and_then(|message| message["content"].as_str());
                    cut_after_final(&mut text, last.unwrap_or_default())?;
                }
                Ok(Some(text))
            }
        }
    }

    /// The token ids that a prompt becomes.
    ///
    /// A text gets the model's own special tokens; a chat has them from its template.
    ///
    /// # Errors
    /// Those of [`Generator::render`], and [`GenerateError::UnknownToken`].
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, GenerateError> {
        let special = matches!(prompt, Prompt::Text(_));
        match (prompt, self.render(prompt)?) {
            (Prompt::Tokens(ids), _) => {
                let vocab_size = self.inner.engine.limits().vocab_size as usize;
                match ids.iter().find(|id| **id as usize >= vocab_size) {
                    Some(&id) => Err(GenerateError::UnknownToken { id, vocab_size }),
                    None => Ok(ids.clone()),
                }
            }
            (_, Some(text)) => Ok(self.inner.tokenizer.encode(&text, special)?),
            (_, None) => Err(GenerateError::EmptyPrompt),
        }
    }

    /// How often grammars were compiled.
    pub fn grammar_stats(&self) -> GrammarStats {
        self.inner.grammars.stats()
    }

    /// Starts a generation.
    ///
    /// Dropping the stream cancels it.
    ///
    /// # Errors
    /// What makes the request impossible: see [`GenerateError`]. What goes wrong later comes
    /// through the stream.
    pub async fn generate(&self, request: GenerateRequest) -> Result<GenerateStream, GenerateError> {
        let mut all = self.generate_all(request, Vec::new()).await?;
        all.pop().ok_or(GenerateError::Interrupted)
    }

    /// Starts the generation of `request`, and the same of `others`, in this order.
    ///
    /// The engine drops a reader that falls behind, so no prompt is in the engine before all of them are ready for it:
    /// the streams are then to be read side by side.
    ///
    /// # Errors
    /// Those of [`Generator::generate`], for any of the prompts.
    pub async fn generate_all(
        &self,
        mut request: GenerateRequest,
        others: Vec<Prompt>,
    ) -> Result<Vec<GenerateStream>, GenerateError> {
        let mut prompts = vec![std::mem::replace(&mut request.prompt, Prompt::Tokens(Vec::new()))];
        prompts.extend(others);
        let ready =
            futures::stream::iter(prompts).map(|prompt| self.ready(prompt, &request)).buffered(TOKENIZING);
        let ready: Vec<Ready> = ready.try_collect().await?;
        let grammar = self.grammar(&request).await?;
        let adapter = self.lease(request.adapter.as_deref()).await?;
        let submit = |ready| {
            let follow =
                |grammar: &Arc<GrammarMatcher>| Box::new(Follow(grammar.fork())) as Box<dyn Constraint>;
            self.submit(ready, adapter.clone(), grammar.as_ref().map(follow), request.clone())
        };
        ready.into_iter().map(submit).collect()
    }

    /// Makes a prompt ready. What cannot fit, and may not be cut, is refused before it is tokenized, which takes time by
    /// its length.
    async fn ready(&self, prompt: Prompt, request: &GenerateRequest) -> Result<Ready, GenerateError> {
        let bytes = prompt.content_bytes();
        let max_model_len = self.max_model_len();
        let longest = max_model_len.saturating_mul(self.inner.tokenizer.longest_token());
        if bytes > longest && request.keep_last.is_none() {
            return Err(GenerateError::TooManyBytes { bytes, max_model_len });
        }
        let at_once = matches!(prompt, Prompt::Tokens(_)) || (bytes <= LONG_TEXT && !prompt.has_more());
        let (prompt, mut ids) = if at_once {
            let ids = self.prompt_tokens(&prompt)?;
            (prompt, ids)
        } else {
            let this = self.clone();
            let tokens =
                tokio::task::spawn_blocking(move || this.prompt_tokens(&prompt).map(|ids| (prompt, ids)));
            tokens.await.map_err(|_| GenerateError::Interrupted)??
        };
        ids.drain(..request.keep_last.map_or(0, |last| ids.len().saturating_sub(last)));
        let max_tokens = self.check(&ids, request)?;
        Ok(Ready { prompt, ids: ids.into(), max_tokens })
    }

    /// The grammar that answers follow.
    async fn grammar(&self, request: &GenerateRequest) -> Result<Option<Arc<GrammarMatcher>>, GenerateError> {
        let Some(asked) = &request.grammar else { return Ok(None) };
        let matcher = self.inner.grammars.matcher(&request.customer, &asked.grammar).await;
        let invalid = |message| GenerateError::Invalid { field: asked.field, message };
        matcher.map(Some).map_err(|error| invalid(error.to_string()))
    }

    /// The adapter of that name, read again where it was evicted.
    async fn lease(&self, name: Option<&str>) -> Result<Option<AdapterLease>, GenerateError> {
        let Some(name) = name else { return Ok(None) };
        let unknown = || AdapterError::Unknown { name: name.to_owned() };
        let adapters = self.adapters.clone().ok_or_else(unknown)?;
        if let Some(lease) = adapters.resident(name) {
            return Ok(Some(lease));
        }
        let name = name.to_owned();
        let lease = tokio::task::spawn_blocking(move || adapters.acquire(&name)).await;
        Ok(Some(lease.map_err(|_| GenerateError::Interrupted)??))
    }

    fn submit(
        &self,
        ready: Ready,
        adapter: Option<AdapterLease>,
        constraint: Option<Box<dyn Constraint>>,
        request: GenerateRequest,
    ) -> Result<GenerateStream, GenerateError> {
        let mut stop_token_ids = request.stop_token_ids.clone();
        if !request.ignore_eos {
            stop_token_ids.extend(self.eos().iter().filter(|id| !request.stop_token_ids.contains(id)));
        }
        let stream = GenerateStream::prepare(self, &ready, &request);
        let events = self.inner.engine.submit(Request {
            id: RequestId::new(),
            customer: request.customer,
            priority: request.priority,
            cache_salt: request.cache_salt,
            prompt: ready.ids.to_vec(),
            sampling: request.sampling,
            max_tokens: ready.max_tokens,
            min_tokens: request.min_tokens,
            stop_token_ids,
            n: request.n,
            deadline: request.deadline,
            adapter,
            constraint,
        })?;
        Ok(stream.over(events))
    }

    /// Checks lengths and counts; returns the most tokens that an answer may have.
    fn check(&self, ids: &[u32], request: &GenerateRequest) -> Result<u32, GenerateError> {
        let max_model_len = self.max_model_len();
        let prompt_tokens = ids.len();
        let invalid = |field, message: &str| GenerateError::Invalid { field, message: message.to_owned() };
        if ids.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if request.n == 0 {
            return Err(invalid("n", "must be at least 1"));
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(invalid("stop", "an empty text cannot end an answer"));
        }
        if request.grammar.is_some() && request.min_tokens > 0 {
            return Err(invalid("min_tokens", "a grammar says itself when an answer ends: leave it out"));
        }
        let left = max_model_len.saturating_sub(prompt_tokens);
        let too_long = |wanted| GenerateError::TooLong { prompt_tokens, wanted, max_model_len };
        match request.max_tokens {
            Some(0) if prompt_tokens <= max_model_len => Ok(0),
            Some(wanted) if wanted as usize <= left => Ok(wanted),
            None if left > 0 => Ok(u32::try_from(left).unwrap_or(u32::MAX)),
            wanted => Err(too_long(wanted)),
        }
    }
}

/// A template that refuses a system message says so by an error.
fn form(template: Option<&ChatTemplate>) -> Form {
    let Some(template) = template else { return Form::Text };
    let message = |role: &str| serde_json::json!({"role": role, "content": "x"});
    match template.render(&[message("system"), message("user")], None, true, &serde_json::Map::new()) {
        Ok(_) => Form::System,
        Err(_) => Form::User,
    }
}
