//! Scoring pairs: how well a document answers a query, read together by a cross-encoder.
//!
//! The reranker lives on the embed thread beside the encoder: both compute with the same team, and interactive work
//! of either goes before bulk work of the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use crate::model::{DeviceEncoder, Encoder, ScoreScale};
use crate::text::{EncoderInput, Tokenizer};

use super::handle::{EmbedError, EmbedHandle, Job, MAX_WAITING, Network, Priority};

/// What the reranker is.
#[derive(Debug, Clone, PartialEq)]
pub struct RerankerInfo {
    /// Its name.
    pub id: String,
    /// Longest pair in tokens, special tokens included; what is longer is cut.
    pub max_tokens: usize,
    /// How the two texts become one, with `{query}` and `{document}`; `None`: the tokenizer's own form of a pair.
    pub template: Option<String>,
    /// What its logit means.
    pub scale: ScoreScale,
}

/// What computes logits of pairs: an [`Encoder`] or a [`DeviceEncoder`] with a head, or a fake in tests.
pub trait PairScorer {
    /// Logits `[sequences]` of the sequences `cu_seqlens[i]..cu_seqlens[i + 1]` of `ids`, whose tokens are of the text
    /// that `types` says, into `out`.
    ///
    /// # Errors
    /// What went wrong.
    fn score(
        &mut self,
        ids: &[u32],
        types: &[u32],
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<(), String>;

    /// As [`PairScorer::score`], for bulk work: it may make way for work that somebody waits for.
    ///
    /// # Errors
    /// What went wrong.
    fn score_bulk(
        &mut self,
        ids: &[u32],
        types: &[u32],
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<(), String> {
        self.score(ids, types, cu_seqlens, out)
    }
}

impl PairScorer for Encoder {
    fn score(
        &mut self,
        ids: &[u32],
        types: &[u32],
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<(), String> {
        Encoder::score(self, ids, types, cu_seqlens, out).map_err(|error| error.to_string())
    }

    fn score_bulk(
        &mut self,
        ids: &[u32],
        types: &[u32],
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<(), String> {
        Encoder::score_bulk(self, ids, types, cu_seqlens, out).map_err(|error| error.to_string())
    }
}

impl PairScorer for DeviceEncoder {
    fn score(
        &mut self,
        ids: &[u32],
        types: &[u32],
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<(), String> {
        DeviceEncoder::score(self, ids, types, cu_seqlens, out).map_err(|error| error.to_string())
    }
}

/// Builds a scorer on the embed thread, which owns it.
pub type BuildScorer = Box<dyn FnOnce() -> Result<Box<dyn PairScorer>, String> + Send>;

/// A reranker to be started with the embed thread.
pub struct RerankerParts {
    /// What it is.
    pub info: RerankerInfo,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its model.
    pub build: BuildScorer,
}

impl std::fmt::Debug for RerankerParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RerankerParts").field("info", &self.info).finish_non_exhaustive()
    }
}

/// The caller's side of the reranker.
#[derive(Debug)]
pub(super) struct Reranker {
    pub(super) info: RerankerInfo,
    pub(super) tokenizer: Tokenizer,
}

/// A query and a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What is asked.
    pub query: Arc<str>,
    /// What may answer it.
    pub document: String,
}

/// Scores of pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// One a pair, in order; the higher, the better.
    pub scores: Vec<f32>,
    /// Tokens of all pairs.
    pub tokens: usize,
}

impl Reranker {
    fn input(&self, pair: &Pair, max_tokens: usize) -> Result<EncoderInput, EmbedError> {
        let Pair { query, document } = pair;
        let Some(template) = &self.info.template else {
            return Ok(self.tokenizer.encode_cut(query, Some(document), max_tokens)?);
        };
        // One pass over the template: what a text says is never taken for a place of the template.
        let mut text = String::with_capacity(template.len() + query.len() + document.len());
        let mut rest = template.as_str();
        while let Some(at) = rest.find('{') {
            text.push_str(&rest[..at]);
            rest = &rest[at..];
            let (place, value) = match (rest.strip_prefix("{query}"), rest.strip_prefix("{document}")) {
                (Some(after), _) => (after, &**query),
                (_, Some(after)) => (after, document.as_str()),
                _ => (&rest[1..], "{"),
            };
            text.push_str(value);
            rest = place;
        }
        text.push_str(rest);
        Ok(self.tokenizer.encode_cut(&text, None, max_tokens)?)
    }
}

impl EmbedHandle {
    /// What the reranker is, if there is one.
    #[must_use]
    pub fn reranker(&self) -> Option<&RerankerInfo> {
        self.shared.reranker.as_ref().map(|reranker| &reranker.info)
    }

    /// Scores of `pairs`, in order; pairs longer than `max_tokens` (or the model takes) are cut. Dropping the future
    /// cancels it.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub async fn score_pairs(
        &self,
        pairs: Vec<Pair>,
        max_tokens: Option<usize>,
        priority: Priority,
    ) -> Result<Scores, EmbedError> {
        let scale = self.reranker().ok_or(EmbedError::NoReranker)?.scale;
        let count = pairs.len();
        let shared = self.shared.clone();
        let tokenize = move || {
            let reranker = shared.reranker.as_ref().ok_or(EmbedError::NoReranker)?;
            let longest = reranker.info.max_tokens;
            let max_tokens = max_tokens.unwrap_or(longest).min(longest);
            pairs.iter().map(|pair| reranker.input(pair, max_tokens)).collect::<Result<Vec<_>, EmbedError>>()
        };
        let texts = tokio::task::spawn_blocking(tokenize)
            .await
            .map_err(|error| EmbedError::Failed { message: error.to_string() })??;
        let _permit = match priority {
            Priority::Interactive => None,
            Priority::Bulk => {
                let permits = count.clamp(1, MAX_WAITING) as u32;
                Some(self.shared.permits.acquire_many(permits).await.map_err(|_| EmbedError::Stopped)?)
            }
        };
        let tokens = texts.iter().map(|text| text.ids.len()).sum();
        let (reply, answer) = oneshot::channel();
        let job = Job { texts, network: Network::Reranker, priority, reply };
        self.jobs.send(job).map_err(|_| EmbedError::Stopped)?;
        let logits = answer.await.map_err(|_| EmbedError::Stopped)??;
        Ok(Scores { scores: logits.into_iter().flatten().map(|logit| scale.of(logit)).collect(), tokens })
    }

    /// Tokens that the reranker computed since the start.
    #[must_use]
    pub fn tokens_reranked(&self) -> usize {
        self.shared.reranked.load(Ordering::Relaxed)
    }
}
