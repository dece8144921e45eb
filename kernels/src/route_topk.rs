//! The router of a mixture of experts: softmax, top k, renormalised.

use crate::buf::View;
use crate::error::{KernelError, Result, same};
use crate::exec::{Exec, share};

/// For each row of `logits [T, E]`, the `k` likeliest experts, best first (ties by lower index), and their softmax
/// weights; with `renormalize` the weights sum to 1.
///
/// # Errors
/// [`KernelError`] when shapes do not agree.
pub fn route_topk(
    exec: &Exec,
    logits: View<'_>,
    k: usize,
    renormalize: bool,
    ids: &mut [u32],
    weights: &mut [f32],
) -> Result<()> {
    const OP: &str = "route_topk";
    same(OP, "ids", ids.len(), logits.n_rows() * k)?;
    same(OP, "weights", weights.len(), logits.n_rows() * k)?;
    if k == 0 || k > logits.n_cols() {
        return Err(KernelError::Unsupported { op: OP, what: "experts a token", value: k });
    }
    let rows = logits.n_rows();
    let (ids, weights) = (Rows(ids.as_mut_ptr()), Rows(weights.as_mut_ptr()));
    let one = |row: usize| {
        // SAFETY: both slices are [rows * k] (checked) and each row belongs to one worker.
        let (ids, weights) = unsafe {
            (
                std::slice::from_raw_parts_mut(ids.get().add(row * k), k),
                std::slice::from_raw_parts_mut(weights.get().add(row * k), k),
            )
        };
        route_row(logits.row(row), renormalize, ids, weights);
    };
    if rows < 32 {
        (0..rows).for_each(one);
    } else {
        exec.run(&|worker, workers| share(rows, 1, worker, workers).for_each(one));
    }
    Ok(())
}

/// A pointer that workers share; each writes its own rows.
struct Rows<T>(*mut T);
// SAFETY: used only inside the op, where every row has one worker.
unsafe impl<T> Sync for Rows<T> {}
impl<T> Rows<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

fn route_row(logits: &[f32], renormalize: bool, ids: &mut [u32], weights: &mut [f32]) {
    for rank in 0..ids.len() {
        let (mut best, mut best_logit) = (u32::MAX, f32::NEG_INFINITY);
        for (expert, logit) in logits.iter().enumerate() {
            let expert = expert as u32;
            if (best == u32::MAX || *logit > best_logit) && !ids[..rank].contains(&expert) {
                (best, best_logit) = (expert, *logit);
            }
        }
        ids[rank] = best;
    }
    let largest = logits[ids[0] as usize];
    let all: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    let mut kept = 0.0;
    for (weight, id) in weights.iter_mut().zip(ids.iter()) {
        *weight = (logits[*id as usize] - largest).exp() / all;
        kept += *weight;
    }
    if renormalize {
        weights.iter_mut().for_each(|weight| *weight /= kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_picks_the_best_in_order_and_renormalises() {
        let logits = [0.0_f32, 2.0, 1.0, 2.0];
        let (mut ids, mut weights) = ([0; 2], [0.0; 2]);
        let view = View::new(&logits, 1, 4).expect("view");
        route_topk(&Exec::Reference, view, 2, true, &mut ids, &mut weights).expect("routes");
        assert_eq!((ids, weights), ([1, 3], [0.5, 0.5]));
        route_topk(&Exec::Reference, view, 2, false, &mut ids, &mut weights).expect("routes");
        let all = 1.0 + 2.0 * 2.0_f32.exp() + 1.0_f32.exp();
        assert!((weights[0] - 2.0_f32.exp() / all).abs() < 1e-6);
    }

    #[test]
    fn rows_do_not_depend_on_the_batch_or_the_threads() {
        let (rows, experts, k) = (50, 8, 2);
        let logits = crate::check::fill(rows * experts, 3);
        let run = |exec: &Exec, from: usize, to: usize| {
            let n = to - from;
            let (mut ids, mut weights) = (vec![0; n * k], vec![0.0; n * k]);
            let view = View::new(&logits[from * experts..to * experts], n, experts).expect("view");
            route_topk(exec, view, k, true, &mut ids, &mut weights).expect("routes");
            (ids, weights)
        };
        let all = run(&Exec::Reference, 0, rows);
        assert_eq!(run(&Exec::simd(3), 0, rows), all);
        for row in 0..rows {
            let (ids, weights) = run(&Exec::simd(2), row, row + 1);
            assert_eq!((&ids[..], &weights[..]), (&all.0[row * k..][..k], &all.1[row * k..][..k]));
        }
    }
}
