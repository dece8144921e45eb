//! The door to the embed thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use tokio::sync::{Semaphore, oneshot};

use crate::text::{EncoderInput, TextError, Tokenizer};

use super::rerank::Reranker;

/// What a text is for; e5 models put different words before queries and passages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// A question.
    Query,
    /// Something to be found.
    Passage,
    /// As it is.
    Raw,
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it.
    Interactive,
    /// Behind interactive texts.
    Bulk,
}

/// What the embedder is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct EmbedderInfo {
    /// Its name.
    pub id: String,
    /// A digest of its configuration, tokenizer and weights.
    pub sha256: String,
    /// Numbers of a vector.
    pub dim: usize,
    /// How token states become a vector.
    pub pooling: String,
    /// What stands before a query.
    pub query_prefix: String,
    /// What stands before a passage.
    pub passage_prefix: String,
    /// Longest text in tokens, special tokens included; what is longer is cut.
    pub max_tokens: usize,
}

/// Why texts could not be embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model failed on the batch.
    #[error("the embedder failed: {message}")]
    Failed {
        /// What it said.
        message: String,
    },
    /// The thread could not be started.
    #[error("the embedder could not start: {message}")]
    Start {
        /// Why.
        message: String,
    },
    /// Pairs to score, and nothing that scores them.
    #[error("no model that reranks is loaded; start with --reranker")]
    NoReranker,
    /// The thread has ended.
    #[error("the embedder has stopped")]
    Stopped,
}

/// Which of the thread's networks a job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// Makes a vector of each text.
    Embedder,
    /// Makes one number of each pair.
    Reranker,
}

/// Some texts as token ids, and where their vectors go.
pub(super) struct Job {
    pub(super) texts: Vec<EncoderInput>,
    pub(super) network: Network,
    pub(super) priority: Priority,
    pub(super) reply: oneshot::Sender<Result<Vec<Vec<f32>>, EmbedError>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) info: EmbedderInfo,
    pub(super) tokenizer: Tokenizer,
    /// Bounds the texts that are tokenized or wait, so that callers feel back-pressure.
    pub(super) permits: Semaphore,
    pub(super) tokens: AtomicUsize,
    pub(super) reranker: Option<Reranker>,
    /// Tokens that the reranker computed.
    pub(super) reranked: AtomicUsize,
}

/// Texts of one call that may wait at a time.
pub(super) const MAX_WAITING: usize = 4096;

/// Sends texts to the embed thread; cheap to clone.
#[derive(Debug, Clone)]
pub struct EmbedHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) jobs: mpsc::Sender<Job>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({} texts, {:?})", self.texts.len(), self.priority)
    }
}

impl EmbedHandle {
    /// The vectors of `texts`, in order. A text longer than the model takes is cut. Dropping the future cancels it.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub async fn embed(
        &self,
        kind: InputKind,
        texts: Vec<String>,
        priority: Priority,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let count = texts.len();
        let ids = self.tokenize(kind, texts).await?;
        let permits = count.clamp(1, MAX_WAITING) as u32;
        let _permit = match priority {
            // Queries are never behind the bulk that waits for room.
            Priority::Interactive => None,
            Priority::Bulk => {
                Some(self.shared.permits.acquire_many(permits).await.map_err(|_| EmbedError::Stopped)?)
            }
        };
        self.vectors(ids, priority).await
    }

    /// As [`EmbedHandle::embed`], for token ids that the caller made.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub async fn embed_tokens(
        &self,
        mut ids: Vec<Vec<u32>>,
        priority: Priority,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        let max = self.shared.info.max_tokens;
        ids.iter_mut().for_each(|ids| ids.truncate(max));
        self.vectors(ids, priority).await
    }

    async fn vectors(&self, ids: Vec<Vec<u32>>, priority: Priority) -> Result<Vec<Vec<f32>>, EmbedError> {
        let texts = ids.into_iter().map(|ids| EncoderInput { ids, types: Vec::new() }).collect();
        let (reply, answer) = oneshot::channel();
        let job = Job { texts, network: Network::Embedder, priority, reply };
        self.jobs.send(job).map_err(|_| EmbedError::Stopped)?;
        answer.await.map_err(|_| EmbedError::Stopped)?
    }

    async fn tokenize(&self, kind: InputKind, texts: Vec<String>) -> Result<Vec<Vec<u32>>, EmbedError> {
        let shared = self.shared.clone();
        let run = move || {
            texts.iter().map(|text| shared.tokenize(kind, text)).collect::<Result<Vec<_>, EmbedError>>()
        };
        tokio::task::spawn_blocking(run)
            .await
            .map_err(|error| EmbedError::Failed { message: error.to_string() })?
    }

    /// What the embedder is.
    #[must_use]
    pub fn info(&self) -> &EmbedderInfo {
        &self.shared.info
    }

    /// Its tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared.tokenizer
    }

    /// What a lake remembers of the embedder: vectors of different fingerprints must not be compared. Where and in which
    /// element type they were computed is not part of it: that changes a vector by its roundings alone, so that a lake
    /// may be filled on a GPU and asked on a CPU.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        serde_json::to_string(&self.shared.info).unwrap_or_default()
    }

    /// Tokens that `text` takes with its prefix and special tokens, before cutting.
    ///
    /// # Errors
    /// [`EmbedError::Text`].
    pub fn count_tokens(&self, kind: InputKind, text: &str) -> Result<usize, EmbedError> {
        Ok(self.shared.tokenizer.encode(&self.shared.prefixed(kind, text), true)?.len())
    }

    /// Tokens computed since the start.
    #[must_use]
    pub fn tokens_computed(&self) -> usize {
        self.shared.tokens.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn prefixed(&self, kind: InputKind, text: &str) -> String {
        let prefix = match kind {
            InputKind::Query => self.info.query_prefix.as_str(),
            InputKind::Passage => self.info.passage_prefix.as_str(),
            InputKind::Raw => "",
        };
        format!("{prefix}{text}")
    }

    fn tokenize(&self, kind: InputKind, text: &str) -> Result<Vec<u32>, EmbedError> {
        let mut text = self.prefixed(kind, text);
        // No token is shorter than a byte on average over a long text; what is past this is cut anyway.
        let longest = self.info.max_tokens.saturating_mul(64);
        if text.len() > longest {
            let end = (0..=longest).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
        }
        let mut ids = self.tokenizer.encode(&text, true)?;
        if ids.len() > self.info.max_tokens {
            // Cut before the closing special token, which stays.
            let last = ids.last().copied().filter(|id| self.tokenizer.is_special(*id));
            ids.truncate(self.info.max_tokens - usize::from(last.is_some()));
            ids.extend(last);
        }
        Ok(ids)
    }
}
