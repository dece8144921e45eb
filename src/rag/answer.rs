//! From a question to an answer with citations.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;
use serde::Serialize;

use crate::embed::EmbedHandle;
use crate::engine::Priority;
use crate::lake::{Lakes, ScoredChunk};

use super::cite::{Citation, Source, cite, cite_all};
use super::error::RagError;
use super::fuse::Weights;
use super::generate_stream::GenerateStream;
use super::generation::{Finish, GenerateEvent, GenerateRequest};
use super::generator::Generator;
use super::marker::MarkerFilter;
use super::prompt::{Budget, Packed, pack};
use super::retrieve::{Retrieval, RetrieveRequest, RetrieveTimings, retrieve};

/// What is answered, without asking the model, when nothing was found.
pub const NOTHING_FOUND: &str = "I don't know: nothing in the documents answers that.";

/// How answers are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RagConfig {
    /// Most tokens of sources in a prompt.
    pub context_tokens: usize,
    /// Most tokens of an answer, if the request does not say.
    pub answer_tokens: u32,
    /// What the rankings by meaning and by words count.
    pub weights: Weights,
}

impl Default for RagConfig {
    /// 2048 tokens of sources, 256 of answer, equal votes.
    fn default() -> RagConfig {
        RagConfig { context_tokens: 2048, answer_tokens: 256, weights: Weights::default() }
    }
}

/// Retrieval-augmented answers over the customers' lakes. Cheap to clone.
#[derive(Clone)]
pub struct RagService {
    lakes: Arc<Lakes>,
    embed: EmbedHandle,
    generator: Option<Generator>,
    config: RagConfig,
}

impl std::fmt::Debug for RagService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RagService").field("generator", &self.generator).finish_non_exhaustive()
    }
}

/// A question.
#[derive(Debug, Clone)]
pub struct RagRequest {
    /// What to find.
    pub retrieve: RetrieveRequest,
    /// Whether the model writes an answer, or the passages are all that is wanted.
    pub generate: bool,
    /// Most tokens of the answer.
    pub max_tokens: Option<u32>,
    /// How freely words are drawn; `None`: always the likeliest.
    pub temperature: Option<f32>,
    /// Makes drawing repeatable.
    pub seed: Option<u64>,
    /// Before or behind bulk work.
    pub priority: Priority,
    /// The name of the adapter that answers; `None`: the base model.
    pub adapter: Option<Arc<str>>,
}

impl RagRequest {
    /// An answer from what [`RetrieveRequest::new`] finds.
    pub fn new(customer: impl Into<String>, query: impl Into<String>) -> RagRequest {
        RagRequest {
            retrieve: RetrieveRequest::new(customer, query),
            generate: true,
            max_tokens: None,
            temperature: None,
            seed: None,
            priority: Priority::Interactive,
            adapter: None,
        }
    }
}

/// Milliseconds of each phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RagTimings {
    /// Finding passages.
    pub retrieve: RetrieveTimings,
    /// Packing the prompt.
    pub pack_ms: f64,
    /// From the question to the first word.
    pub first_token_ms: Option<f64>,
    /// Writing the answer.
    pub generate_ms: f64,
    /// All of it.
    pub total_ms: f64,
}

/// What the answer took, in OpenAI's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RagUsage {
    /// Tokens of instructions, sources and question.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
}

/// An answer.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// The words; `None` where only passages were asked for.
    pub answer: Option<String>,
    /// Whether the model was asked.
    pub generated: bool,
    /// The model, if it was.
    pub model: Option<String>,
    /// OpenAI's `finish_reason`.
    pub finish_reason: Option<&'static str>,
    /// What the answer rests on; without an answer, what was found.
    pub citations: Vec<Citation>,
    /// The state of the lake.
    pub lake_version: i64,
    /// What the caller should know.
    pub warnings: Vec<String>,
    /// Where the time went.
    pub timings: RagTimings,
    /// What the model took.
    pub usage: RagUsage,
}

/// What an answer yields: one `Retrieval`, then `Delta`s, one `Done`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AnswerEvent {
    /// Passages were found; these stand in the context.
    Retrieval {
        /// One for each source.
        candidates: Vec<Citation>,
        /// The state of the lake.
        lake_version: i64,
        /// What the caller should know.
        warnings: Vec<String>,
        /// Where the time went.
        timings: RetrieveTimings,
    },
    /// More words.
    Delta {
        /// The words.
        text: String,
    },
    /// All is complete.
    Done(Box<Answer>),
}

impl RagService {
    /// A service over `lakes`. Without a generator it retrieves and does not answer.
    pub fn new(
        lakes: Arc<Lakes>,
        embed: EmbedHandle,
        generator: Option<Generator>,
        config: RagConfig,
    ) -> RagService {
        RagService { lakes, embed, generator, config }
    }

    /// Finds passages.
    ///
    /// # Errors
    /// See [`RagError`].
    pub async fn retrieve(&self, request: &RetrieveRequest) -> Result<Retrieval, RagError> {
        retrieve(&self.lakes, &self.embed, self.config.weights, request).await
    }

    /// Finds passages and starts the answer.
    ///
    /// # Errors
    /// See [`RagError`]; what goes wrong while the model writes comes through the stream.
    pub async fn answer(&self, request: RagRequest) -> Result<AnswerStream, RagError> {
        let started = Instant::now();
        if request.generate && self.generator.is_none() {
            return Err(RagError::NoGenerator);
        }
        let retrieval = self.retrieve(&request.retrieve).await?;
        answer_from(self.generator.as_ref(), self.config, request, retrieval, started).await
    }
}

/// Starts the answer to `request` from what was found.
async fn answer_from(
    generator: Option<&Generator>,
    config: RagConfig,
    request: RagRequest,
    retrieval: Retrieval,
    started: Instant,
) -> Result<AnswerStream, RagError> {
    let Retrieval { hits, lake_version, warnings, timings, .. } = retrieval;
    let mut stream =
        AnswerStream::new(started, request.retrieve.query.clone(), lake_version, warnings, timings);
    match generator {
        Some(generator) if request.generate && !hits.is_empty() => {
            let packing = Instant::now();
            let answer_tokens = request.max_tokens.unwrap_or(config.answer_tokens);
            let budget = Budget {
                window: generator.max_model_len(),
                answer: answer_tokens as usize,
                context: config.context_tokens,
            };
            let packed = pack_off_thread(generator, &request, hits, budget).await?;
            stream.timings.pack_ms = ms(packing);
            stream.candidates(&packed.sources);
            let generation =
                generator.generate(generation(generator, &request, &packed, answer_tokens)).await?;
            let model = request.adapter.as_deref().unwrap_or_else(|| generator.name());
            stream.generate(model, packed.sources, generation);
        }
        _ if hits.is_empty() => stream.nothing_found(request.generate),
        _ => {
            let sources: Vec<Source> = (1..)
                .zip(hits)
                .map(|(marker, hit)| Source { marker, shown: 0..hit.chunk.text.len(), hit })
                .collect();
            stream.only_passages(&sources);
        }
    }
    Ok(stream)
}

/// Packs on a thread that may compute.
async fn pack_off_thread(
    generator: &Generator,
    request: &RagRequest,
    hits: Vec<ScoredChunk>,
    budget: Budget,
) -> Result<Packed, RagError> {
    let (generator, query) = (generator.clone(), request.retrieve.query.clone());
    let packed = tokio::task::spawn_blocking(move || {
        let count = |prompt: &_| generator.prompt_tokens(prompt).map(|ids| ids.len());
        let neutral = |text: &str| generator.neutral(text);
        pack(&query, hits, budget, generator.form(), generator.citing(), &neutral, &count)
    });
    packed.await.unwrap_or_else(|_| Err(RagError::Generate(super::GenerateError::Interrupted)))
}

fn generation(
    generator: &Generator,
    request: &RagRequest,
    packed: &Packed,
    answer_tokens: u32,
) -> GenerateRequest {
    let mut sampling = generator.default_sampling();
    sampling.temperature = request.temperature.unwrap_or(0.0);
    sampling.seed = request.seed;
    GenerateRequest {
        max_tokens: Some(answer_tokens),
        stop: packed.stop.clone(),
        customer: Arc::from(request.retrieve.customer.as_str()),
        // Documents are the customer's own: so are the cache blocks that they fill.
        cache_salt: Some(Arc::from(request.retrieve.customer.as_str())),
        priority: request.priority,
        adapter: request.adapter.clone(),
        ..GenerateRequest::new(packed.prompt.clone(), sampling)
    }
}

/// An answer as it is written. Dropping it stops the writing.
#[derive(Debug)]
pub struct AnswerStream {
    started: Instant,
    query: String,
    ready: VecDeque<AnswerEvent>,
    writing: Option<Writing>,
    lake_version: i64,
    warnings: Vec<String>,
    timings: RagTimings,
}

#[derive(Debug)]
struct Writing {
    stream: GenerateStream,
    model: String,
    sources: Vec<Source>,
    filter: MarkerFilter,
    text: String,
    started: Instant,
    finish: Option<Finish>,
}

impl AnswerStream {
    fn new(
        started: Instant,
        query: String,
        lake_version: i64,
        warnings: Vec<String>,
        retrieve: RetrieveTimings,
    ) -> AnswerStream {
        let timings = RagTimings { retrieve, ..RagTimings::default() };
        AnswerStream {
            started,
            query,
            ready: VecDeque::new(),
            writing: None,
            lake_version,
            warnings,
            timings,
        }
    }

    /// The next event; `None` after `Done` or an error.
    pub async fn next(&mut self) -> Option<Result<AnswerEvent, RagError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            match self.writing.as_mut()?.stream.next().await {
                Some(Ok(event)) => self.take(event),
                Some(Err(error)) => {
                    self.writing = None;
                    return Some(Err(error.into()));
                }
                None => {
                    self.writing = None;
                    return Some(Err(super::GenerateError::Interrupted.into()));
                }
            }
        }
    }

    /// The events as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<AnswerEvent, RagError>> + Send {
        futures::stream::unfold(self, |mut this| async move { this.next().await.map(|event| (event, this)) })
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// What went wrong while the model wrote.
    pub async fn collect(mut self) -> Result<Answer, RagError> {
        while let Some(event) = self.next().await {
            if let AnswerEvent::Done(answer) = event? {
                return Ok(*answer);
            }
        }
        Err(super::GenerateError::Interrupted.into())
    }

    fn candidates(&mut self, sources: &[Source]) -> Vec<Citation> {
        let candidates = cite_all(&self.query, sources);
        self.ready.push_back(AnswerEvent::Retrieval {
            candidates: candidates.clone(),
            lake_version: self.lake_version,
            warnings: self.warnings.clone(),
            timings: self.timings.retrieve,
        });
        candidates
    }

    fn generate(&mut self, model: &str, sources: Vec<Source>, stream: GenerateStream) {
        self.writing = Some(Writing {
            stream,
            model: model.to_owned(),
            filter: MarkerFilter::new(sources.len() as u32),
            sources,
            text: String::new(),
            started: Instant::now(),
            finish: None,
        });
    }

    fn nothing_found(&mut self, wanted: bool) {
        self.candidates(&[]);
        let words = wanted.then(|| NOTHING_FOUND.to_owned());
        self.ready.extend(words.clone().map(|text| AnswerEvent::Delta { text }));
        self.done(Answer { answer: words, ..self.blank() });
    }

    fn only_passages(&mut self, sources: &[Source]) {
        let citations = self.candidates(sources);
        self.done(Answer { citations, ..self.blank() });
    }

    fn take(&mut self, event: GenerateEvent) {
        let Some(writing) = &mut self.writing else { return };
        match event {
            GenerateEvent::Prompt { .. } => {}
            GenerateEvent::Delta { text, .. } => {
                self.timings.first_token_ms.get_or_insert_with(|| ms(self.started));
                let text = writing.filter.push(&text);
                self.ready.extend(writing.write(&text));
            }
            GenerateEvent::Finished { finish, .. } => writing.finish = Some(finish),
            GenerateEvent::Done(usage) => {
                let text = writing.filter.finish();
                self.ready.extend(writing.write(text.trim_end()));
                self.timings.generate_ms = ms(writing.started);
                let citations = cite(&self.query, &writing.text, &writing.sources);
                let answer = Answer {
                    answer: Some(writing.text.clone()),
                    generated: true,
                    model: Some(writing.model.clone()),
                    finish_reason: writing.finish.as_ref().map(Finish::as_openai),
                    citations,
                    usage: RagUsage {
                        prompt_tokens: usage.prompt_tokens,
                        completion_tokens: usage.completion_tokens,
                        total_tokens: usage.prompt_tokens + usage.completion_tokens,
                    },
                    ..self.blank()
                };
                self.writing = None;
                self.done(answer);
            }
        }
    }

    fn blank(&self) -> Answer {
        Answer {
            answer: None,
            generated: false,
            model: None,
            finish_reason: None,
            citations: Vec::new(),
            lake_version: self.lake_version,
            warnings: self.warnings.clone(),
            timings: self.timings,
            usage: RagUsage::default(),
        }
    }

    fn done(&mut self, mut answer: Answer) {
        answer.timings.total_ms = ms(self.started);
        self.ready.push_back(AnswerEvent::Done(Box::new(answer)));
    }
}

impl Writing {
    /// Adds to the answer; blanks before its first word are left out.
    fn write(&mut self, text: &str) -> Option<AnswerEvent> {
        let text = if self.text.is_empty() { text.trim_start() } else { text };
        self.text.push_str(text);
        (!text.is_empty()).then(|| AnswerEvent::Delta { text: text.to_owned() })
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests;
