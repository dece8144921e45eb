//! Finding passages: by meaning, by words, or both on one snapshot.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::embed::{EmbedHandle, InputKind, Priority};
use crate::lake::{AsOf, DocumentFilter, Lakes, ScoredChunk, Snapshot, Viewer};
use crate::text::{analyze, language};

use super::dedupe;
use super::error::RagError;
use super::fuse::{self, Weights};
use super::rerank::{CANDIDATES, rerank};

/// How many hits of each ranking are fused, at least.
const DEPTH: usize = 50;

/// How to find passages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By meaning: the nearest vectors.
    Vector,
    /// By words: full text.
    Text,
    /// Both, fused by rank.
    #[default]
    Hybrid,
}

/// What to find, for whom, in which state of the lake.
#[derive(Debug, Clone)]
pub struct RetrieveRequest {
    /// Whose lake.
    pub customer: String,
    /// The question.
    pub query: String,
    /// Most passages.
    pub top_k: usize,
    /// How.
    pub mode: Mode,
    /// Whether a cross-encoder orders what was found.
    pub rerank: bool,
    /// In which documents.
    pub filter: DocumentFilter,
    /// In which state of the lake; `None`: the present one.
    pub as_of: Option<AsOf>,
    /// Who asks.
    pub viewer: Viewer,
}

impl RetrieveRequest {
    /// The five best passages of `customer`'s whole present lake, hybrid.
    pub fn new(customer: impl Into<String>, query: impl Into<String>) -> RetrieveRequest {
        RetrieveRequest {
            customer: customer.into(),
            query: query.into(),
            top_k: 5,
            mode: Mode::default(),
            rerank: false,
            filter: DocumentFilter::default(),
            as_of: None,
            viewer: Viewer::all(),
        }
    }
}

/// Milliseconds of each phase; phases of `Hybrid` overlap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RetrieveTimings {
    /// Opening the snapshot.
    pub snapshot_ms: f64,
    /// Embedding the query.
    pub embed_ms: f64,
    /// Searching vectors.
    pub vector_ms: f64,
    /// Analysing the query and searching words.
    pub text_ms: f64,
    /// Fusing and dropping repetitions.
    pub fuse_ms: f64,
    /// Reranking, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rerank_ms: Option<f64>,
    /// All of it.
    pub total_ms: f64,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Retrieval {
    /// Best first; scores are cosines, BM25 or fused, by mode, or the reranker's.
    pub hits: Vec<ScoredChunk>,
    /// The state of the lake that was searched.
    pub lake_version: i64,
    /// How it was searched in the end.
    pub mode: Mode,
    /// What the caller should know.
    pub warnings: Vec<String>,
    /// Where the time went.
    pub timings: RetrieveTimings,
}

/// Answers a [`RetrieveRequest`].
pub(super) async fn retrieve(
    lakes: &Lakes,
    embed: &EmbedHandle,
    weights: Weights,
    request: &RetrieveRequest,
) -> Result<Retrieval, RagError> {
    let started = Instant::now();
    let query = request.query.trim();
    if query.is_empty() {
        return Err(RagError::EmptyQuery);
    }
    if request.rerank && embed.reranker().is_none() {
        return Err(RagError::NoReranker);
    }
    let snapshot =
        lakes.customer(&request.customer)?.snapshot(request.as_of.clone(), &request.viewer).await?;
    let mut search =
        Search { snapshot, embed, query, filter: &request.filter, timings: RetrieveTimings::default() };
    search.timings.snapshot_ms = ms(started);
    let wanted = if request.rerank { request.top_k.saturating_mul(CANDIDATES) } else { request.top_k };
    let depth = DEPTH.max(request.top_k.saturating_mul(3)).max(wanted);
    let mut warnings = Vec::new();
    let mut mode = request.mode;
    if mode != Mode::Text
        && let Err(mismatch) = search.check_embedder()
    {
        if mode == Mode::Vector {
            return Err(mismatch);
        }
        warnings.push(format!("searched by words only: {mismatch}"));
        mode = Mode::Text;
    }
    let hits = match mode {
        Mode::Vector => {
            let (hits, spent) = search.by_vector(depth).await?;
            search.timings = search.timings.with_vector(spent);
            hits
        }
        Mode::Text => {
            let (hits, spent) = search.by_text(depth).await?;
            search.timings.text_ms = spent;
            hits
        }
        Mode::Hybrid => {
            let (vector, text) =
                futures::future::try_join(search.by_vector(depth), search.by_text(depth)).await?;
            search.timings = search.timings.with_vector(vector.1);
            search.timings.text_ms = text.1;
            let fusing = Instant::now();
            let hits = fuse::hybrid(vector.0, text.0, weights);
            search.timings.fuse_ms = ms(fusing);
            hits
        }
    };
    let fusing = Instant::now();
    let mut hits = dedupe::distinct(hits, wanted);
    let mut timings = search.timings;
    timings.fuse_ms += ms(fusing);
    if request.rerank {
        let reading = Instant::now();
        hits = rerank(embed, query, hits, request.top_k).await?;
        timings.rerank_ms = Some(ms(reading));
    }
    timings.total_ms = ms(started);
    Ok(Retrieval { hits, lake_version: search.snapshot.version(), mode, warnings, timings })
}

struct Search<'a> {
    snapshot: Snapshot,
    embed: &'a EmbedHandle,
    query: &'a str,
    filter: &'a DocumentFilter,
    timings: RetrieveTimings,
}

impl Search<'_> {
    fn check_embedder(&self) -> Result<(), RagError> {
        let loaded = self.embed.fingerprint();
        match self.snapshot.embedder() {
            Some(lake) if lake != loaded => Err(RagError::EmbedderMismatch { lake: lake.to_owned(), loaded }),
            _ => Ok(()),
        }
    }

    /// Hits, and milliseconds of embedding and searching.
    async fn by_vector(&self, depth: usize) -> Result<(Vec<ScoredChunk>, [f64; 2]), RagError> {
        let started = Instant::now();
        let texts = vec![self.query.to_owned()];
        let vectors = self.embed.embed(InputKind::Query, texts, Priority::Interactive).await?;
        let embed_ms = ms(started);
        let started = Instant::now();
        let hits = match vectors.first() {
            Some(vector) => self.snapshot.vector_search(vector, depth, self.filter).await?,
            None => Vec::new(),
        };
        Ok((hits, [embed_ms, ms(started)]))
    }

    /// Hits, and milliseconds.
    async fn by_text(&self, depth: usize) -> Result<(Vec<ScoredChunk>, f64), RagError> {
        let started = Instant::now();
        let terms = analyze::query_terms(self.query, language::detect(self.query));
        let hits = match terms.is_empty() {
            true => Vec::new(),
            false => self.snapshot.text_search(&terms, depth, self.filter).await?,
        };
        Ok((hits, ms(started)))
    }
}

impl RetrieveTimings {
    fn with_vector(self, [embed_ms, vector_ms]: [f64; 2]) -> RetrieveTimings {
        RetrieveTimings { embed_ms, vector_ms, ..self }
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
