//! The router of a mixture of experts: softmax, top k, renormalisation.

use crate::error::{KernelError, Result, expect_shape};
use crate::{Exec, View};

/// For each row of `logits` `[T, E]`: the `k` most probable experts, most probable first, ties to the lower index,
/// and their probabilities, divided by their sum if `renormalize`. `ids` and `weights` are `[T * k]`.
pub fn route_topk(
    exec: &Exec,
    logits: View<'_>,
    k: usize,
    renormalize: bool,
    ids: &mut [u32],
    weights: &mut [f32],
) -> Result<()> {
    const OP: &str = "route_topk";
    // T * E is a few hundred numbers: one way serves every Exec.
    let _ = exec;
    let logits = logits.f32(OP, "logits")?;
    if k == 0 || k > logits.cols {
        return Err(KernelError::Index { op: OP, what: "k", index: k, limit: logits.cols + 1 });
    }
    expect_shape(OP, "ids", &[ids.len()], &[logits.rows * k])?;
    expect_shape(OP, "weights", &[weights.len()], &[logits.rows * k])?;
    for (t, (ids, weights)) in ids.chunks_exact_mut(k).zip(weights.chunks_exact_mut(k)).enumerate() {
        route(logits.row(t), renormalize, ids, weights);
    }
    Ok(())
}

fn route(logits: &[f32], renormalize: bool, ids: &mut [u32], weights: &mut [f32]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for rank in 0..ids.len() {
        let (taken, rest) = ids.split_at_mut(rank);
        let free = (0..logits.len()).filter(|&e| !taken.contains(&(e as u32)));
        let best = free.reduce(|best, e| if logits[e] > logits[best] { e } else { best }).unwrap_or(0);
        rest[0] = best as u32;
        weights[rank] = (logits[best] - largest).exp();
    }
    let total: f32 = if renormalize {
        weights.iter().sum()
    } else {
        logits.iter().map(|logit| (logit - largest).exp()).sum()
    };
    weights.iter_mut().for_each(|weight| *weight /= total);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::assert_close;

    #[test]
    fn the_most_probable_experts_come_first_and_ties_go_to_the_lower_index() {
        let logits = [1.0, 3.0, 3.0, 0.0];
        let view = View::from_f32(&logits, 1, 4).unwrap();
        let (mut ids, mut weights) = ([0; 3], [0.0; 3]);
        route_topk(&Exec::Reference, view, 3, true, &mut ids, &mut weights).unwrap();
        assert_eq!(ids, [1, 2, 0]);
        let e = (-2.0f32).exp();
        assert_close(&weights, &[1.0 / (2.0 + e), 1.0 / (2.0 + e), e / (2.0 + e)], 1e-6);
        route_topk(&Exec::Reference, view, 3, false, &mut ids, &mut weights).unwrap();
        let total = 2.0 + e + (-3.0f32).exp();
        assert_close(&weights, &[1.0 / total, 1.0 / total, e / total], 1e-6);
    }

    #[test]
    fn more_experts_than_there_are_is_an_error() {
        let view = View::from_f32(&[0.0; 2], 1, 2).unwrap();
        assert!(route_topk(&Exec::Reference, view, 3, true, &mut [0; 3], &mut [0.0; 3]).is_err());
    }
}
