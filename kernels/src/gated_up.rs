//! The first half of a gated MLP: `act(x Wg^T) * (x Wu^T)`, over the experts of each token.

use crate::error::{Result, expect_shape};
use crate::matmul::{Input, dot};
use crate::packed::LANES;
use crate::view::MatrixMut;
use crate::{Exec, ExpertGroups, PackedExperts, View, ViewMut, Workspace, cpu};

/// The nonlinearity of a gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `v * sigmoid(v)`: Llama, Mistral, Mixtral.
    Silu,
    /// `gelu` by its tanh approximation: Gemma.
    GeluTanh,
    /// `gelu` by the error function.
    Gelu,
}

impl Activation {
    /// Plain; the vector code agrees to a few units in the last place.
    pub(crate) fn reference(self, v: f32) -> f32 {
        match self {
            Activation::Silu => v / (1.0 + (-v).exp()),
            Activation::GeluTanh => crate::gelu::tanh_reference(v),
            Activation::Gelu => crate::gelu::erf_reference(v),
        }
    }
}

/// `out[r] = act(x[token(r)] Wg[e]^T) * (x[token(r)] Wu[e]^T)` for every sorted row `r` of `groups`.
///
/// `x` is `[T, H]`, `w13` comes from [`pack::gate_up`](crate::pack::gate_up), `out` is `[T * k, I]` in sorted order.
pub fn gated_up(
    exec: &Exec,
    ws: &mut Workspace,
    x: View<'_>,
    w13: &PackedExperts,
    groups: &ExpertGroups,
    act: Activation,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "gated_up";
    let x = x.f32(OP, "x")?;
    let mut out = out.f32(OP, "out")?;
    expect_shape(OP, "x", &[x.rows * groups.k()], &[groups.rows()])?;
    expect_shape(OP, "out", &[out.rows, out.cols], &[groups.rows(), w13.width])?;
    expect_shape(OP, "experts", &[w13.len()], &[groups.experts()])?;
    let Some(first) = w13.experts.first() else { return Ok(()) };
    crate::pack::expect_k(OP, first, x.cols)?;
    let input = if first.format.is_integer() {
        ws.check(OP, x.rows, x.cols)?;
        Input::Quantized(ws.quantize(exec, x))
    } else {
        Input::Float(x)
    };
    match exec {
        Exec::Reference => reference(input, w13, groups, act, &mut out),
        Exec::Simd(team) => cpu::gemm::gated_up(team, input, w13, groups, act, &mut out),
    }
    Ok(())
}

pub(crate) fn reference(input: Input<'_>, w13: &PackedExperts, groups: &ExpertGroups, act: Activation, out: &mut MatrixMut<'_>) {
    for (e, w) in w13.experts.iter().enumerate() {
        for row in groups.of(e) {
            let token = groups.tokens()[row] as usize;
            for (i, out) in out.row(row).iter_mut().enumerate() {
                let gate_row = i / 8 * LANES + i % 8;
                *out = act.reference(dot(input, token, w, gate_row)) * dot(input, token, w, gate_row + 8);
            }
        }
    }
}

#[cfg(test)]
mod tests;
