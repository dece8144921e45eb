//! Reading the question and each candidate together, and ordering them by that.

use std::sync::Arc;

use crate::embed::{EmbedHandle, Pair, Priority};
use crate::lake::ScoredChunk;

use super::error::RagError;

/// Candidates that are read for each passage that is wanted: the cross-encoder can bring up what the rankings put
/// fourth, and reading is what takes the time.
pub(super) const CANDIDATES: usize = 4;

/// The best `top_k` of `hits` by the reranker, whose scores they get. Equal scores keep their order.
///
/// # Errors
/// [`RagError::Embed`], also where no reranker is loaded.
pub(super) async fn rerank(
    embed: &EmbedHandle,
    query: &str,
    hits: Vec<ScoredChunk>,
    top_k: usize,
) -> Result<Vec<ScoredChunk>, RagError> {
    if hits.is_empty() {
        return Ok(hits);
    }
    let query: Arc<str> = Arc::from(query);
    let pair = |hit: &ScoredChunk| Pair { query: Arc::clone(&query), document: hit.chunk.text.clone() };
    let pairs = hits.iter().map(pair).collect();
    let scores = embed.score_pairs(pairs, None, Priority::Interactive).await?.scores;
    Ok(best(hits, &scores, top_k))
}

fn best(hits: Vec<ScoredChunk>, scores: &[f32], top_k: usize) -> Vec<ScoredChunk> {
    let mut hits: Vec<ScoredChunk> =
        hits.into_iter().zip(scores).map(|(hit, score)| ScoredChunk { score: *score, ..hit }).collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score));
    hits.truncate(top_k);
    hits
}

#[cfg(test)]
mod tests {
    use super::super::fixture::hit;
    use super::*;

    #[test]
    fn the_rerankers_order_wins_and_ties_stay() {
        let hits: Vec<ScoredChunk> = ["a", "b", "c", "d"].map(|text| hit("name", text)).to_vec();
        let ordered = best(hits, &[0.1, 0.7, 0.7, 0.2], 3);
        let seen: Vec<(&str, f32)> = ordered.iter().map(|hit| (hit.chunk.text.as_str(), hit.score)).collect();
        assert_eq!(seen, [("b", 0.7), ("c", 0.7), ("d", 0.2)]);
    }
}
