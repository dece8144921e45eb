//! Exact nearest rows by dot product: the vector search of small tables and of filters that keep few rows.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Mutex;

use crate::error::{Result, expect_shape};
use crate::view::Matrix;
use crate::{Exec, View, cpu};

/// Rows that a task scans: enough to outweigh merging its hits.
const ROWS_OF_TASK: usize = 2048;

/// The `k` rows of `matrix` `[N, D]` with the largest dot product with `query` `[D]`, best first, ties to the lower
/// row. `keep` limits the rows: bit `r % 64` of word `r / 64`.
pub fn scan_topk(
    exec: &Exec,
    matrix: View<'_>,
    query: &[f32],
    k: usize,
    keep: Option<&[u64]>,
) -> Result<Vec<(u32, f32)>> {
    const OP: &str = "scan_topk";
    let matrix = matrix.f32(OP, "matrix")?;
    expect_shape(OP, "query", &[query.len()], &[matrix.cols])?;
    if let Some(keep) = keep {
        expect_shape(OP, "keep", &[keep.len()], &[matrix.rows.div_ceil(64)])?;
    }
    let best = Mutex::new(TopK::new(k));
    let task = |task: usize| {
        let rows = task * ROWS_OF_TASK..matrix.rows.min((task + 1) * ROWS_OF_TASK);
        let kept = rows.filter(|row| keep.is_none_or(|keep| keep[row / 64] >> (row % 64) & 1 == 1));
        let mut mine = TopK::new(k);
        match exec {
            Exec::Reference => kept.for_each(|row| mine.offer(row, reference(matrix, row, query))),
            Exec::Simd(team) => cpu::scan::scan(team.isa(), matrix, query, kept, &mut |row, score| mine.offer(row, score)),
        }
        best.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).merge(mine);
    };
    exec.each(matrix.rows.div_ceil(ROWS_OF_TASK), &task);
    Ok(best.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).into_sorted())
}

pub(crate) fn reference(matrix: Matrix<'_>, row: usize, query: &[f32]) -> f32 {
    matrix.row(row).iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

/// A scored row. Greater is better: a larger score, then a lower row.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Hit {
    score: f32,
    row: u32,
}

impl Eq for Hit {}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Hit {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.row.cmp(&self.row))
    }
}

/// The best `k` so far, the worst of them on top of the heap.
#[derive(Debug)]
struct TopK {
    k: usize,
    heap: BinaryHeap<Reverse<Hit>>,
}

impl TopK {
    fn new(k: usize) -> TopK {
        TopK { k, heap: BinaryHeap::new() }
    }

    fn offer(&mut self, row: usize, score: f32) {
        let hit = Hit { score, row: row as u32 };
        if self.heap.len() < self.k {
            self.heap.push(Reverse(hit));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && worst.0 < hit
        {
            worst.0 = hit;
        }
    }

    fn merge(&mut self, other: TopK) {
        other.heap.into_iter().for_each(|Reverse(hit)| self.offer(hit.row as usize, hit.score));
    }

    fn into_sorted(self) -> Vec<(u32, f32)> {
        let sorted = self.heap.into_sorted_vec();
        sorted.into_iter().map(|Reverse(hit)| (hit.row, hit.score)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Team;
    use crate::check::{Random, assert_close};

    #[test]
    fn the_best_rows_are_those_of_a_full_sort() {
        let mut random = Random::new(3);
        for (n, d, k) in [(5000, 37, 10), (100, 16, 200), (0, 8, 3), (3, 384, 0)] {
            let (matrix, query) = (random.floats(n * d), random.floats(d));
            let view = View::from_f32(&matrix, n, d).unwrap();
            let mut all: Vec<(u32, f32)> =
                (0..n).map(|r| (r as u32, reference(view.f32("", "").unwrap(), r, &query))).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            all.truncate(k);
            for exec in [Exec::Reference, Exec::Simd(Team::new(1)), Exec::Simd(Team::new(2))] {
                let hits = scan_topk(&exec, view, &query, k, None).unwrap();
                let (rows, scores): (Vec<u32>, Vec<f32>) = hits.into_iter().unzip();
                assert_eq!(rows, all.iter().map(|hit| hit.0).collect::<Vec<_>>());
                assert_close(&scores, &all.iter().map(|hit| hit.1).collect::<Vec<_>>(), 1e-5);
            }
        }
    }

    #[test]
    fn ties_go_to_the_lower_row_and_rows_that_are_not_kept_are_never_found() {
        let matrix = [1.0f32; 70];
        let view = View::from_f32(&matrix, 70, 1).unwrap();
        for exec in [Exec::Reference, Exec::Simd(Team::new(2))] {
            let rows = |keep| -> Vec<u32> {
                scan_topk(&exec, view, &[1.0], 3, keep).unwrap().into_iter().map(|hit| hit.0).collect()
            };
            assert_eq!(rows(None), [0, 1, 2]);
            assert_eq!(rows(Some(&[0b1010, 0b11])), [1, 3, 64]);
        }
    }
}
