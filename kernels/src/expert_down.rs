//! The second half of an MLP: each expert's down projection, and the weighted sum of a token's experts.

use crate::error::{Result, expect_shape};
use crate::matmul::{Input, dot};
use crate::view::MatrixMut;
use crate::{Exec, ExpertGroups, PackedExperts, View, ViewMut, Workspace, cpu};

/// `out[t] = sum over ranks r of weights[t, r] * (a[row(t, r)] W2[e]^T)`.
///
/// `a` `[T * k, I]` is in the sorted order of `groups`, `weights` `[T * k]` in token and rank order (`None` is 1),
/// `scratch` `[T * k, H]` holds the experts' products, `out` is `[T, H]`. The sum runs in rank order, whatever else is
/// in the batch.
#[allow(clippy::too_many_arguments)]
pub fn expert_down(
    exec: &Exec,
    ws: &mut Workspace,
    a: View<'_>,
    w2: &PackedExperts,
    groups: &ExpertGroups,
    weights: Option<&[f32]>,
    mut scratch: ViewMut<'_>,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "expert_down";
    let a = a.f32(OP, "a")?;
    let mut scratch = scratch.f32(OP, "scratch")?;
    let mut out = out.f32(OP, "out")?;
    expect_shape(OP, "a", &[a.rows], &[groups.rows()])?;
    expect_shape(OP, "scratch", &[scratch.rows, scratch.cols], &[groups.rows(), w2.width])?;
    expect_shape(OP, "out", &[out.rows * groups.k(), out.cols], &[groups.rows(), w2.width])?;
    expect_shape(OP, "experts", &[w2.len()], &[groups.experts()])?;
    if let Some(weights) = weights {
        expect_shape(OP, "weights", &[weights.len()], &[groups.rows()])?;
    }
    let Some(first) = w2.experts.first() else { return Ok(()) };
    crate::pack::expect_k(OP, first, a.cols)?;
    let input = if first.format.is_integer() {
        ws.check(OP, a.rows, a.cols)?;
        Input::Quantized(ws.quantize(exec, a))
    } else {
        Input::Float(a)
    };
    // One expert a token and no weights: the product is the result.
    let direct = groups.k() == 1 && weights.is_none() && groups.experts() == 1;
    let products = if direct { &mut out } else { &mut scratch };
    match exec {
        Exec::Reference => reference(input, w2, groups, products),
        Exec::Simd(team) => cpu::gemm::grouped(team, input, w2, groups, products),
    }
    if !direct {
        for t in 0..out.rows {
            combine(groups.positions(t), weights.map(|w| &w[t * groups.k()..]), &mut scratch, out.row(t));
        }
    }
    Ok(())
}

pub(crate) fn reference(input: Input<'_>, w2: &PackedExperts, groups: &ExpertGroups, out: &mut MatrixMut<'_>) {
    for (e, w) in w2.experts.iter().enumerate() {
        for row in groups.of(e) {
            out.row(row).iter_mut().enumerate().for_each(|(n, out)| *out = dot(input, row, w, n));
        }
    }
}

/// The weighted sum of a token's rows, in rank order.
fn combine(rows: &[u32], weights: Option<&[f32]>, products: &mut MatrixMut<'_>, out: &mut [f32]) {
    out.fill(0.0);
    for (rank, &row) in rows.iter().enumerate() {
        let weight = weights.map_or(1.0, |weights| weights[rank]);
        out.iter_mut().zip(products.row(row as usize).iter()).for_each(|(out, product)| *out += weight * product);
    }
}

#[cfg(test)]
mod tests;
