//! The router of a mixture of experts: softmax, top k, renormalised.

use crate::buf::View;
use crate::error::{KernelError, Result, same};
use crate::exec::Exec;

/// For each row of `logits [T, E]`, the `k` likeliest experts, best first (ties by lower index), and their softmax
/// weights; with `renormalize` the weights sum to 1.
///
/// # Errors
/// [`KernelError`] when shapes do not agree.
pub fn route_topk(
    _exec: &Exec,
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
    for row in 0..logits.n_rows() {
        let row_logits = logits.row(row);
        let (ids, weights) = (&mut ids[row * k..(row + 1) * k], &mut weights[row * k..(row + 1) * k]);
        for rank in 0..k {
            let (mut best, mut best_logit) = (u32::MAX, f32::NEG_INFINITY);
            for (expert, logit) in row_logits.iter().enumerate() {
                let expert = expert as u32;
                if (best == u32::MAX || *logit > best_logit) && !ids[..rank].contains(&expert) {
                    (best, best_logit) = (expert, *logit);
                }
            }
            ids[rank] = best;
        }
        let largest = row_logits[ids[0] as usize];
        let all: f32 = row_logits.iter().map(|logit| (logit - largest).exp()).sum();
        let mut kept = 0.0;
        for (weight, id) in weights.iter_mut().zip(ids.iter()) {
            *weight = (row_logits[*id as usize] - largest).exp() / all;
            kept += *weight;
        }
        if renormalize {
            weights.iter_mut().for_each(|weight| *weight /= kept);
        }
    }
    Ok(())
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
}
