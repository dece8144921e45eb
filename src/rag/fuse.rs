//! Reciprocal rank fusion (Cormack, Clarke, Büttcher: SIGIR 2009).
//!
//! A passage's fused score is the sum over the rankings of `weight / (60 + rank)`. Ranks
//! and not scores are added, because a cosine and a BM25 score have no common unit.

use std::collections::HashMap;

use crate::lake::ScoredChunk;

/// The constant of the paper: how fast a rank's worth falls.
pub const K: f32 = 60.0;

/// What a ranking's vote counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Of the ranking by meaning.
    pub vector: f32,
    /// Of the ranking by words.
    pub text: f32,
}

impl Default for Weights {
    /// Equal votes.
    fn default() -> Weights {
        Weights { vector: 1.0, text: 1.0 }
    }
}

/// Merges rankings of ids, each best first with its weight, into one with scores, best first.
///
/// Equal scores keep the order in which the ids were first met, so that the result depends on
/// nothing else than the rankings. An id that a ranking has twice counts at its first place.
pub fn rrf<'a>(rankings: &[(f32, Vec<&'a str>)]) -> Vec<(&'a str, f32)> {
    let mut place: HashMap<&str, usize> = HashMap::new();
    let mut fused: Vec<(&str, f32)> = Vec::new();
    for (weight, ids) in rankings {
        let mut voted = std::collections::HashSet::new();
        for (rank, id) in ids.iter().copied().enumerate().filter(|(_, id)| voted.insert(*id)) {
            let at = *place.entry(id).or_insert_with(|| {
                fused.push((id, 0.0));
                fused.len() - 1
            });
            fused[at].1 += weight / (K + rank as f32 + 1.0);
        }
    }
    fused.sort_by(|a, b| b.1.total_cmp(&a.1));
    fused
}

/// Merges what was found by meaning and by words; the scores become fused ones.
pub fn hybrid(vector: Vec<ScoredChunk>, text: Vec<ScoredChunk>, weights: Weights) -> Vec<ScoredChunk> {
    let ids = |hits: &[ScoredChunk]| hits.iter().map(|hit| hit.chunk.chunk_id.clone()).collect::<Vec<_>>();
    let (by_vector, by_text) = (ids(&vector), ids(&text));
    let mut chunks: HashMap<String, ScoredChunk> =
        text.into_iter().chain(vector).map(|hit| (hit.chunk.chunk_id.clone(), hit)).collect();
    rrf(&[
        (weights.vector, by_vector.iter().map(String::as_str).collect()),
        (weights.text, by_text.iter().map(String::as_str).collect()),
    ])
    .into_iter()
    .filter_map(|(id, score)| chunks.remove(id).map(|hit| ScoredChunk { score, ..hit }))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_the_papers_sums_of_reciprocal_ranks() {
        let fused = rrf(&[(1.0, vec!["a", "b", "c"]), (1.0, vec!["c", "a"])]);
        let expected = [("a", 1.0 / 61.0 + 1.0 / 62.0), ("c", 1.0 / 63.0 + 1.0 / 61.0), ("b", 1.0 / 62.0)];
        assert_eq!(fused.len(), 3);
        for ((id, score), (wanted, sum)) in fused.iter().zip(expected) {
            assert_eq!(*id, wanted);
            assert!((score - sum).abs() < 1e-7, "{id}: {score} is not {sum}");
        }
    }

    #[test]
    fn what_both_rankings_have_goes_before_the_best_of_one() {
        let fused = rrf(&[(1.0, vec!["only-vector", "both"]), (1.0, vec!["only-text", "both"])]);
        assert_eq!(fused[0].0, "both");
        assert_eq!([fused[1].0, fused[2].0], ["only-vector", "only-text"]);
    }

    #[test]
    fn a_weight_of_zero_leaves_the_other_ranking_as_it_is() {
        let fused = rrf(&[(0.0, vec!["x", "y"]), (1.0, vec!["b", "a"])]);
        assert_eq!(fused.iter().map(|(id, _)| *id).take(2).collect::<Vec<_>>(), ["b", "a"]);
    }

    #[test]
    fn an_id_listed_twice_counts_once() {
        let fused = rrf(&[(1.0, vec!["a", "a", "b"])]);
        assert_eq!(fused.len(), 2);
        assert!((fused[0].1 - 1.0 / 61.0).abs() < 1e-7);
    }
}
