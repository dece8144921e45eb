//! What search needs of one Lance fragment, in memory.
//!
//! A segment never changes: it is a fragment with its deletions. A new commit loads its own rows only, and scores use
//! one document frequency over all segments.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use tarn_kernels::{Exec, View, scan_topk};

use super::error::Result;
use super::vectors::{numbers, strings};

/// The columns that a segment is made from.
pub(super) const COLUMNS: [&str; 4] = ["chunk_id", "ingest_id", "vector", "terms"];

/// BM25's saturation and length normalisation, the customary values.
const K1: f32 = 1.2;
const B: f32 = 0.75;

/// The rows of a fragment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) deleted_when_loaded: usize,
    pub(super) chunk_ids: Vec<String>,
    /// Distinct ingests, and which one each row is of.
    ingests: Vec<String>,
    ingest_of: Vec<u32>,
    vectors: Vec<f32>,
    dim: usize,
    /// Rows and counts by term.
    postings: HashMap<String, Vec<(u32, u16)>>,
    lengths: Vec<u32>,
}

impl Segment {
    pub(super) fn new(batches: &[RecordBatch], dim: usize, deleted: usize) -> Result<Segment> {
        let mut segment = Segment {
            deleted_when_loaded: deleted,
            chunk_ids: Vec::new(),
            ingests: Vec::new(),
            ingest_of: Vec::new(),
            vectors: Vec::new(),
            dim,
            postings: HashMap::new(),
            lengths: Vec::new(),
        };
        let mut known: HashMap<String, u32> = HashMap::new();
        for batch in batches {
            segment.vectors.extend(numbers(batch)?);
            for ingest in strings(batch, "ingest_id") {
                let next = segment.ingests.len() as u32;
                let at = *known.entry(ingest.clone()).or_insert(next);
                if at == next {
                    segment.ingests.push(ingest);
                }
                segment.ingest_of.push(at);
            }
            for terms in strings(batch, "terms") {
                segment.add_terms(&terms);
            }
            segment.chunk_ids.extend(strings(batch, "chunk_id"));
        }
        Ok(segment)
    }

    fn add_terms(&mut self, terms: &str) {
        let row = self.lengths.len() as u32;
        let mut counts: HashMap<&str, u16> = HashMap::new();
        let mut length = 0;
        for term in terms.split(' ').filter(|term| !term.is_empty()) {
            let count = counts.entry(term).or_insert(0);
            *count = count.saturating_add(1);
            length += 1;
        }
        for (term, count) in counts {
            match self.postings.get_mut(term) {
                Some(list) => list.push((row, count)),
                None => {
                    self.postings.insert(term.to_owned(), vec![(row, count)]);
                }
            }
        }
        self.lengths.push(length);
    }

    pub(super) fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Which rows belong to `live` ingests, as a bitmap; `None` when there are none.
    pub(super) fn live(&self, live: &HashSet<&str>) -> Option<Vec<u64>> {
        let keep: Vec<bool> = self.ingests.iter().map(|ingest| live.contains(ingest.as_str())).collect();
        if !keep.iter().any(|keep| *keep) {
            return None;
        }
        let mut bits = vec![0_u64; self.rows().div_ceil(64)];
        for (row, ingest) in self.ingest_of.iter().enumerate() {
            if keep[*ingest as usize] {
                bits[row / 64] |= 1 << (row % 64);
            }
        }
        Some(bits)
    }

    /// The `k` nearest of the kept rows: `(row, cosine)`.
    pub(super) fn nearest(
        &self,
        exec: &Exec,
        query: &[f32],
        k: usize,
        keep: &[u64],
    ) -> Result<Vec<(u32, f32)>> {
        let matrix = View::new(&self.vectors, self.rows(), self.dim)?;
        Ok(scan_topk(exec, matrix, query, k, Some(keep))?)
    }

    /// Which ingest a row is of.
    pub(super) fn ingest(&self, row: u32) -> &str {
        &self.ingests[self.ingest_of[row as usize] as usize]
    }

    /// Whether one of `others` has rows of an ingest that has rows here.
    pub(super) fn shares_an_ingest<'a>(
        &self,
        mut others: impl Iterator<Item = (usize, &'a Arc<Segment>)>,
    ) -> bool {
        let own: HashSet<&str> = self.ingests.iter().map(String::as_str).collect();
        others.any(|(_, other)| other.ingests.iter().any(|ingest| own.contains(ingest.as_str())))
    }

    /// Number and total length of the `kept` rows.
    pub(super) fn extent(&self, kept: &[u64]) -> (usize, u64) {
        let rows = (0..self.rows()).filter(|row| has(kept, *row as u32));
        rows.fold((0, 0), |(count, length), row| (count + 1, length + u64::from(self.lengths[row])))
    }

    /// How many of the `kept` rows have `term`.
    pub(super) fn frequency(&self, term: &str, kept: &[u64]) -> usize {
        self.postings.get(term).map_or(0, |list| list.iter().filter(|(row, _)| has(kept, *row)).count())
    }

    /// BM25 of the kept rows for `(term, idf)`s; `average` is the mean length over all segments.
    pub(super) fn score(&self, terms: &[(&str, f32)], average: f32, keep: &[u64]) -> Vec<(u32, f32)> {
        let mut scores: HashMap<u32, f32> = HashMap::new();
        for (term, idf) in terms {
            for (row, count) in self.postings.get(*term).map_or(&[][..], Vec::as_slice) {
                if !has(keep, *row) {
                    continue;
                }
                let length = self.lengths[*row as usize] as f32;
                let count = f32::from(*count);
                let weight = count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length / average));
                *scores.entry(*row).or_insert(0.0) += idf * weight;
            }
        }
        scores.into_iter().collect()
    }
}

fn has(bits: &[u64], row: u32) -> bool {
    bits[row as usize / 64] >> (row % 64) & 1 == 1
}
