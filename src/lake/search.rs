//! Exact search in one snapshot: by vectors and by words.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tarn_kernels::Exec;

use super::error::{LakeError, Result};
use super::rows::{DocumentRow, ScoredChunk};
use super::segment::Segment;
use super::snapshot::{DocumentFilter, Snapshot};
use super::state::blocking;

/// A segment with the rows that count: `visible` ones make the statistics, `kept` ones can be hits.
pub(super) struct Shown {
    segment: Arc<Segment>,
    visible: Vec<u64>,
    kept: Vec<u64>,
}

/// `(score, segment, row)`.
type Hit = (f32, usize, u32);

impl Snapshot {
    /// The `k` chunks nearest to `query`, exactly, among the documents that `filter` takes.
    ///
    /// # Errors
    /// [`LakeError::Dimension`] when the query comes from another embedder.
    pub async fn vector_search(
        &self,
        query: &[f32],
        k: usize,
        filter: &DocumentFilter,
    ) -> Result<Vec<ScoredChunk>> {
        if self.state.vectors.is_none() {
            return Ok(Vec::new());
        }
        if query.len() != self.state.dim {
            return Err(LakeError::Dimension { found: self.state.dim, wanted: query.len() });
        }
        let query = query.to_vec();
        self.search(filter, move |shown, exec| {
            let mut hits = Vec::new();
            for (at, one) in shown.iter().enumerate() {
                let found = one.segment.nearest(exec, &query, k, &one.kept)?;
                hits.extend(found.into_iter().map(|(row, score)| (score, at, row)));
            }
            Ok(best(hits, k))
        })
        .await
    }

    /// The `k` best chunks by BM25 for analysed `terms`, among the documents that `filter` takes. Frequencies are
    /// those of what the viewer sees.
    ///
    /// # Errors
    /// What reading the index said.
    pub async fn text_search(
        &self,
        terms: &[String],
        k: usize,
        filter: &DocumentFilter,
    ) -> Result<Vec<ScoredChunk>> {
        let terms = terms.to_vec();
        self.search(filter, move |shown, _| {
            let (rows, length) = shown
                .iter()
                .map(|one| one.segment.extent(&one.visible))
                .fold((0, 0), |sum, extent| (sum.0 + extent.0, sum.1 + extent.1));
            let average = (length as f32 / rows.max(1) as f32).max(1.0);
            let weighted: Vec<(&str, f32)> = terms
                .iter()
                .map(|term| {
                    let frequency: usize =
                        shown.iter().map(|one| one.segment.frequency(term, &one.visible)).sum();
                    let (n, f) = (rows as f32, frequency as f32);
                    (term.as_str(), (1.0 + (n - f + 0.5) / (f + 0.5)).ln())
                })
                .collect();
            let mut hits = Vec::new();
            for (at, one) in shown.iter().enumerate() {
                let scored = one.segment.score(&weighted, average, &one.kept);
                hits.extend(scored.into_iter().map(|(row, score)| (score, at, row)));
            }
            Ok(best(hits, k))
        })
        .await
    }

    /// Runs `rank` over the segments that have rows to see, off the async threads, and resolves what it found.
    async fn search(
        &self,
        filter: &DocumentFilter,
        rank: impl FnOnce(&[Shown], &Exec) -> Result<Vec<Hit>> + Send + 'static,
    ) -> Result<Vec<ScoredChunk>> {
        let segments = self.lake.segments(&self.state).await?.to_vec();
        let (this, filter) = (self.clone(), filter.clone());
        let run = move || -> Result<Vec<(f32, String, String)>> {
            let all = DocumentFilter::default();
            let visible = ingests(&this, &all);
            let kept = (filter != all).then(|| ingests(&this, &filter));
            let shown: Vec<Shown> = segments
                .iter()
                .filter_map(|segment| {
                    let visible = segment.live(&visible)?;
                    let kept = match &kept {
                        None => visible.clone(),
                        Some(kept) => segment.live(kept).unwrap_or_else(|| vec![0; visible.len()]),
                    };
                    Some(Shown { segment: segment.clone(), visible, kept })
                })
                .collect();
            let found = rank(&shown, &this.lake.exec)?;
            let names = found.into_iter().map(|(score, at, row)| {
                let segment = &shown[at].segment;
                (score, segment.chunk_ids[row as usize].clone(), segment.ingest(row).to_owned())
            });
            Ok(names.collect())
        };
        let found = blocking(run).await?;
        let all = DocumentFilter::default();
        let documents: HashMap<&str, &DocumentRow> =
            self.visible(&all).map(|document| (document.ingest_id.as_str(), document)).collect();
        let mut hits = Vec::with_capacity(found.len());
        for (score, chunk_id, ingest) in found {
            if let Some(document) = documents.get(ingest.as_str())
                && let Some(chunk) = self.chunk(&ingest, &chunk_id).await?
            {
                hits.push(ScoredChunk { chunk, document: document.head(), score });
            }
        }
        Ok(hits)
    }
}

fn ingests<'a>(snapshot: &'a Snapshot, filter: &'a DocumentFilter) -> HashSet<&'a str> {
    snapshot.visible(filter).map(|document| document.ingest_id.as_str()).collect()
}

/// The `k` largest scores, ties by place.
fn best(mut hits: Vec<Hit>, k: usize) -> Vec<Hit> {
    let order = |a: &Hit, b: &Hit| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2)));
    if hits.len() > k && k > 0 {
        hits.select_nth_unstable_by(k - 1, order);
    }
    hits.truncate(k);
    hits.sort_unstable_by(order);
    hits
}
