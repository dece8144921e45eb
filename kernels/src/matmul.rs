//! `out[m, n] = sum over k of x[m, k] * w[n, k]`, plus a bias, plus what was there.

use crate::error::{Result, expect_shape};
use crate::view::{Matrix, MatrixMut};
use crate::workspace::Quantized;
use crate::{Exec, Packed, View, ViewMut, Workspace, cpu};

/// The product of activations `x` `[M, K]` with packed weights `[N, K]`: `out` `[M, N]` is set, or added to.
///
/// Each output is one chain of fused multiply-adds in order of k, from 0, then `+ bias`, then added to `out` if `add`:
/// the same bits for every M, row and number of threads. For integer formats `x` is quantised first, 32 values a
/// scale; the dot product of a group is exact and the chain runs over groups.
#[allow(clippy::too_many_arguments)]
pub fn matmul(
    exec: &Exec,
    ws: &mut Workspace,
    x: View<'_>,
    w: &Packed,
    bias: Option<&[f32]>,
    mut out: ViewMut<'_>,
    add: bool,
) -> Result<()> {
    const OP: &str = "matmul";
    let x = x.f32(OP, "x")?;
    let mut out = out.f32(OP, "out")?;
    expect_shape(OP, "x", &[x.rows, x.cols], &[out.rows, w.k])?;
    expect_shape(OP, "out", &[out.rows, out.cols], &[x.rows, w.n])?;
    if let Some(bias) = bias {
        expect_shape(OP, "bias", &[bias.len()], &[w.n])?;
    }
    let epilogue = Epilogue { bias, add };
    let input = if w.format.is_integer() {
        ws.check(OP, x.rows, x.cols)?;
        Input::Quantized(ws.quantize(exec, x))
    } else {
        Input::Float(x)
    };
    match exec {
        Exec::Reference => reference(input, w, &epilogue, &mut out),
        Exec::Simd(team) => cpu::gemm::matmul(team, input, w, &epilogue, &mut out),
    }
    Ok(())
}

/// Activations in the form that a weight format multiplies with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Input<'a> {
    Float(Matrix<'a>),
    Quantized(Quantized<'a>),
}

/// What happens to a finished sum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) add: bool,
}

pub(crate) fn reference(input: Input<'_>, w: &Packed, epilogue: &Epilogue<'_>, out: &mut MatrixMut<'_>) {
    for m in 0..out.rows {
        for (n, out) in out.row(m).iter_mut().enumerate() {
            let mut sum = dot(input, m, w, n);
            if let Some(bias) = epilogue.bias {
                sum += bias[n];
            }
            *out = if epilogue.add { *out + sum } else { sum };
        }
    }
}

/// Row `m` of the activations times row `n` of the weights.
pub(crate) fn dot(input: Input<'_>, m: usize, w: &Packed, n: usize) -> f32 {
    match input {
        Input::Float(x) => x.row(m).iter().enumerate().fold(0.0f32, |sum, (k, &x)| x.mul_add(w.weight(n, k), sum)),
        Input::Quantized(x) => dot_quantized(x, m, w, n),
    }
}

fn dot_quantized(x: Quantized<'_>, m: usize, w: &Packed, n: usize) -> f32 {
    let codes = &x.codes[m * x.groups * 32..];
    let mut sum = 0.0f32;
    for group in 0..w.groups() {
        let ks = group * w.group..((group + 1) * w.group).min(w.k);
        let product: i32 = ks.clone().map(|k| w.code(n, k) * i32::from(codes[k])).sum();
        sum = (product as f32).mul_add(w.scale(n, group) * x.scales[m * x.groups + ks.start / 32], sum);
        if w.mins.is_some() {
            let scaled_sum = match w.group {
                16 => x.scaled_sums[m * x.groups * 2 + group],
                _ => x.scaled_group_sums[m * x.groups + group],
            };
            sum = (-w.min(n, group)).mul_add(scaled_sum, sum);
        }
    }
    sum
}

#[cfg(test)]
mod tests;
