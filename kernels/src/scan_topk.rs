//! Exact nearest rows of a matrix by dot product.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

use crate::buf::View;
use crate::cpu::{Isa, dispatch, math};
use crate::error::{Result, at_least, same};
use crate::exec::{Exec, share};

/// A row and its score; the heap's greatest is the worst.
#[derive(PartialEq)]
struct Scored(f32, u32);
impl Eq for Scored {}
impl PartialOrd for Scored {
    fn partial_cmp(&self, other: &Scored) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scored {
    fn cmp(&self, other: &Scored) -> Ordering {
        other.0.total_cmp(&self.0).then(self.1.cmp(&other.1))
    }
}

/// The `k` rows of `matrix [N, D]` with the largest dot product with `query [D]`, best first, ties by lower row.
///
/// `keep` is a bitmap of rows to consider (bit `i` of word `i / 64`). Unlike other ops it returns fresh memory, `k`
/// long.
///
/// # Errors
/// [`crate::KernelError`] when shapes do not agree.
pub fn scan_topk(
    exec: &Exec,
    matrix: View<'_>,
    query: &[f32],
    k: usize,
    keep: Option<&[u64]>,
) -> Result<Vec<(u32, f32)>> {
    const OP: &str = "scan_topk";
    same(OP, "query", query.len(), matrix.n_cols())?;
    if let Some(keep) = keep {
        at_least(OP, "bitmap words", keep.len(), matrix.n_rows().div_ceil(64))?;
    }
    if k == 0 {
        return Ok(Vec::new());
    }
    let found = Mutex::new(Vec::new());
    let rows = matrix.n_rows();
    exec.run(&|worker, workers| {
        let mut best = BinaryHeap::with_capacity(k + 1);
        // SAFETY: no contract beyond the slices.
        unsafe { scan(matrix, query, share(rows, 64, worker, workers), k, keep, &mut best) };
        found.lock().unwrap_or_else(PoisonError::into_inner).extend(best);
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable();
    found.truncate(k);
    Ok(found.into_iter().map(|Scored(score, row)| (row, score)).collect())
}

dispatch!(
    /// # Safety
    /// None.
    unsafe fn scan(matrix: View<'_>, query: &[f32], rows: std::ops::Range<usize>, k: usize, keep: Option<&[u64]>, best: &mut BinaryHeap<Scored>) = scan_inner
);

#[inline(always)]
unsafe fn scan_inner<S: Isa>(
    matrix: View<'_>,
    query: &[f32],
    rows: std::ops::Range<usize>,
    k: usize,
    keep: Option<&[u64]>,
    best: &mut BinaryHeap<Scored>,
) {
    for row in rows {
        if keep.is_some_and(|keep| keep[row / 64] >> (row % 64) & 1 == 0) {
            continue;
        }
        let scored = Scored(math::dot(matrix.row(row), query), row as u32);
        if best.len() < k {
            best.push(scored);
        } else if best.peek().is_some_and(|worst| scored < *worst) {
            best.pop();
            best.push(scored);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fill;

    #[test]
    fn it_finds_what_a_sort_finds() {
        let (n, d) = (333, 48);
        let mut matrix = fill(n * d, 1);
        matrix.copy_within(0..d, 7 * d);
        let query = fill(d, 2);
        let keep: Vec<u64> = (0..6).map(|word| if word == 2 { 0 } else { u64::MAX << word }).collect();
        let view = View::new(&matrix, n, d).expect("view");
        let mut all: Vec<(u32, f32)> =
            (0..n).map(|row| (row as u32, math::dot(view.row(row), &query))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for threads in [1, 2] {
            let found = scan_topk(&Exec::simd(threads), view, &query, 20, None).expect("scans");
            assert_eq!(
                found.iter().map(|f| f.0).collect::<Vec<_>>(),
                all[..20].iter().map(|f| f.0).collect::<Vec<_>>()
            );
            let kept = scan_topk(&Exec::simd(threads), view, &query, 20, Some(&keep)).expect("scans");
            let expected: Vec<u32> = all
                .iter()
                .map(|f| f.0)
                .filter(|row| keep[*row as usize / 64] >> (row % 64) & 1 == 1)
                .take(20)
                .collect();
            assert_eq!(kept.iter().map(|f| f.0).collect::<Vec<_>>(), expected);
        }
        assert_eq!(scan_topk(&Exec::simd(2), view, &query, 0, None).expect("scans"), []);
    }
}
