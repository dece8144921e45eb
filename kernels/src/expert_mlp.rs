//! The two products of an MLP, dense or by experts: silu(x·w1) * (x·w3), then ·w2.

use crate::buf::{View, ViewMut};
use crate::cpu::{Isa, dispatch};
use crate::error::{KernelError, Result, at_least, same};
use crate::exec::{Exec, share};
use crate::expert_groups::ExpertGroups;
use crate::lora::Deltas;
use crate::matmul::{Product, quantize_if_needed};
use crate::pack::PackedExperts;
use crate::workspace::Workspace;

/// `out [rows, I] = silu(x·w1) * (x·w3)` for the sorted rows of `groups`; `x` is `[tokens, H]`. What adapters add
/// to either product is in it before silu.
///
/// # Errors
/// [`KernelError`] when shapes do not agree.
pub fn gated_up(
    exec: &Exec,
    ws: &mut Workspace,
    x: View<'_>,
    w13: &PackedExperts,
    groups: &ExpertGroups,
    mut out: ViewMut<'_>,
    deltas: Option<Deltas<'_>>,
) -> Result<()> {
    const OP: &str = "gated_up";
    same(OP, "number of experts", groups.experts(), w13.len())?;
    same(OP, "columns of x", x.n_cols(), w13.expert(0).k())?;
    at_least(OP, "rows of out", out.n_rows(), groups.rows())?;
    same(OP, "columns of out", out.n_cols(), w13.expert(0).n())?;
    same(OP, "tokens", x.n_rows() * groups.k(), groups.rows())?;
    if !w13.expert(0).is_gated() {
        return Err(KernelError::Unsupported {
            op: OP,
            what: "plain weights, rows",
            value: w13.expert(0).n(),
        });
    }
    grouped(exec, ws, x, w13, groups, groups.tokens(), &mut out, deltas)
}

/// `out [tokens, H] = Σ over a token's ranks of weight * (a·w2)`, summed in the order of ranks.
///
/// `a` is `[rows, I]` in sorted order, `weights` `[tokens * k]` (`None`: dense), `scratch` `[rows, H]` (unused when
/// dense). What adapters add to w2's product is weighted with it.
///
/// # Errors
/// [`KernelError`] when shapes do not agree.
pub fn expert_down(
    exec: &Exec,
    ws: &mut Workspace,
    a: View<'_>,
    w2: &PackedExperts,
    groups: &ExpertGroups,
    weights: Option<&[f32]>,
    mut scratch: ViewMut<'_>,
    mut out: ViewMut<'_>,
    deltas: Option<Deltas<'_>>,
) -> Result<()> {
    const OP: &str = "expert_down";
    same(OP, "number of experts", groups.experts(), w2.len())?;
    same(OP, "columns of a", a.n_cols(), w2.expert(0).k())?;
    at_least(OP, "rows of a", a.n_rows(), groups.rows())?;
    same(OP, "columns of out", out.n_cols(), w2.expert(0).n())?;
    same(OP, "tokens", out.n_rows() * groups.k(), groups.rows())?;
    let a = a.rows(0, groups.rows())?;
    let Some(weights) = weights else {
        same(OP, "experts of a dense MLP", groups.experts(), 1)?;
        return grouped(exec, ws, a, w2, groups, None, &mut out, deltas);
    };
    same(OP, "weights", weights.len(), groups.rows())?;
    at_least(OP, "rows of scratch", scratch.n_rows(), groups.rows())?;
    same(OP, "columns of scratch", scratch.n_cols(), out.n_cols())?;
    grouped(exec, ws, a, w2, groups, None, &mut scratch, deltas)?;
    let (k, position) = (groups.k(), groups.position());
    let results = scratch.as_view();
    let (tokens, width, raw) = (out.n_rows(), out.n_cols(), out.raw());
    let one = |token: usize| {
        let pairs = token * k..(token + 1) * k;
        // SAFETY: token < rows of out, which has `width` columns, and each token belongs to one worker; `align` made
        // `position` a permutation of the rows of `results`.
        unsafe {
            let to = std::slice::from_raw_parts_mut(raw.at(token, 0), width);
            weighted_sum(to, results, &position[pairs.clone()], &weights[pairs]);
        }
    };
    if tokens < 8 {
        (0..tokens).for_each(one);
    } else {
        exec.run(&|worker, workers| share(tokens, 1, worker, workers).for_each(one));
    }
    Ok(())
}

/// One product an expert over its rows, in one parallel region.
fn grouped(
    exec: &Exec,
    ws: &mut Workspace,
    x: View<'_>,
    w: &PackedExperts,
    groups: &ExpertGroups,
    index: Option<&[u32]>,
    out: &mut ViewMut<'_>,
    deltas: Option<Deltas<'_>>,
) -> Result<()> {
    if let Some(deltas) = deltas {
        deltas.check("expert_mlp", groups.rows(), w.expert(0))?;
    }
    let stride = ws.max_k;
    let quantized = quantize_if_needed(exec, ws, x, w.all())?;
    let product = Product { x, quantized, stride, deltas };
    let raw = out.raw();
    if matches!(exec, Exec::Reference) {
        for expert in 0..w.len() {
            product.run(exec, w.expert(expert), groups.range(expert), index, None, raw, false);
        }
        return Ok(());
    }
    let part = |expert: usize| product.part(w.expert(expert), groups.range(expert), index, raw);
    let total = (0..w.len()).map(|expert| part(expert).chunks()).sum();
    exec.each(total, &|task| {
        let mut left = task;
        for expert in 0..w.len() {
            let job = part(expert);
            let chunks = job.chunks();
            if left < chunks {
                return job.chunk(left);
            }
            left -= chunks;
        }
    });
    Ok(())
}

dispatch!(
    /// `out = Σ weight * row`, in the order given.
    ///
    /// # Safety
    /// `rows` has as many entries as `weights`, each a row of `results`.
    unsafe fn weighted_sum(out: &mut [f32], results: View<'_>, rows: &[u32], weights: &[f32]) = weighted_sum_inner
);

#[inline(always)]
unsafe fn weighted_sum_inner<S: Isa>(out: &mut [f32], results: View<'_>, rows: &[u32], weights: &[f32]) {
    out.fill(0.0);
    for (row, weight) in rows.iter().zip(weights) {
        for (sum, value) in out.iter_mut().zip(results.row(*row as usize)) {
            *sum = value.mul_add(*weight, *sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fill;
    use crate::pack::{self, WeightData};

    #[test]
    fn experts_equal_plain_loops_and_do_not_depend_on_the_batch() {
        let (tokens, h, i, e, k) = (19, 24, 20, 4, 2);
        let gate: Vec<Vec<f32>> = (0..e).map(|at| fill(i * h, at as u64)).collect();
        let up: Vec<Vec<f32>> = (0..e).map(|at| fill(i * h, 10 + at as u64)).collect();
        let down: Vec<Vec<f32>> = (0..e).map(|at| fill(h * i, 20 + at as u64)).collect();
        fn data(all: &[Vec<f32>]) -> Vec<WeightData<'_>> {
            all.iter().map(|x| WeightData::F32(x)).collect()
        }
        let w13 = pack::gate_up(&data(&gate), &data(&up), i, h, None).expect("packs");
        let w2 = pack::experts(&data(&down), h, i, None).expect("packs");
        let x = fill(tokens * h, 30);
        let ids: Vec<u32> = (0..tokens * k).map(|pair| ((pair * 7 + pair / 3) % e) as u32).collect();
        let weights = fill(tokens * k, 31);
        let run = |exec: &Exec, from: usize, to: usize| {
            let n = to - from;
            let mut groups = ExpertGroups::new(n, k, e);
            groups.align(&ids[from * k..to * k]).expect("aligns");
            let mut ws = Workspace::new(n * k, 32).expect("workspace");
            let (mut act, mut scratch, mut out) =
                (vec![0.0; n * k * i], vec![0.0; n * k * h], vec![0.0; n * h]);
            let x = View::new(&x[from * h..to * h], n, h).expect("x");
            gated_up(exec, &mut ws, x, &w13, &groups, ViewMut::new(&mut act, n * k, i).expect("act"), None)
                .expect("up");
            expert_down(
                exec,
                &mut ws,
                View::new(&act, n * k, i).expect("act"),
                &w2,
                &groups,
                Some(&weights[from * k..to * k]),
                ViewMut::new(&mut scratch, n * k, h).expect("scratch"),
                ViewMut::new(&mut out, n, h).expect("out"),
                None,
            )
            .expect("down");
            out
        };
        let all = run(&Exec::simd(2), 0, tokens);
        assert_eq!(all, run(&Exec::Reference, 0, tokens));
        for token in 0..tokens {
            assert_eq!(run(&Exec::simd(2), token, token + 1), all[token * h..(token + 1) * h]);
            let row = &x[token * h..(token + 1) * h];
            let dot = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            for col in 0..h {
                let mut expected = 0.0;
                for rank in 0..k {
                    let expert = ids[token * k + rank] as usize;
                    for at in 0..i {
                        let g = dot(row, &gate[expert][at * h..(at + 1) * h]);
                        let u = dot(row, &up[expert][at * h..(at + 1) * h]);
                        let value = g / (1.0 + (-g).exp()) * u;
                        expected += f64::from(weights[token * k + rank])
                            * value
                            * f64::from(down[expert][col * i + at]);
                    }
                }
                assert!((f64::from(all[token * h + col]) - expected).abs() < 1e-4);
            }
        }
    }
}
