//! Layer normalisation, with the residual addition before it (BERT and XLM-R encoders).

use crate::error::{Result, expect_shape};
use crate::{Exec, View, ViewMut, cpu};

/// `out = (v - mean(v)) / sqrt(var(v) + eps) * weight + bias` a row, where `v = x + residual`.
///
/// `x`, `residual` and `out` are `[T, H]`; `weight` and `bias` are `[H]`.
pub fn layer_norm(
    exec: &Exec,
    x: View<'_>,
    residual: Option<View<'_>>,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "layer_norm";
    let x = x.f32(OP, "x")?;
    let residual = residual.map(|residual| residual.f32(OP, "residual")).transpose()?;
    let mut out = out.f32(OP, "out")?;
    expect_shape(OP, "out", &[out.rows, out.cols], &[x.rows, x.cols])?;
    expect_shape(OP, "weight", &[weight.len()], &[x.cols])?;
    expect_shape(OP, "bias", &[bias.len()], &[x.cols])?;
    if let Some(residual) = &residual {
        expect_shape(OP, "residual", &[residual.rows, residual.cols], &[x.rows, x.cols])?;
    }
    if let Exec::Simd(team) = exec {
        cpu::norms::layer_norm(team, x, residual, weight, bias, eps, &mut out);
        return Ok(());
    }
    for t in 0..x.rows {
        let out = out.row(t);
        out.copy_from_slice(x.row(t));
        if let Some(residual) = &residual {
            out.iter_mut().zip(residual.row(t)).for_each(|(o, r)| *o += r);
        }
        reference(weight, bias, eps, out);
    }
    Ok(())
}

pub(crate) fn reference(weight: &[f32], bias: &[f32], eps: f32, v: &mut [f32]) {
    let len = v.len() as f64;
    let mean = v.iter().map(|&v| f64::from(v)).sum::<f64>() / len;
    let variance = v.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / len;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    for ((v, weight), bias) in v.iter_mut().zip(weight).zip(bias) {
        *v = ((f64::from(*v) - mean) * scale) as f32 * weight + bias;
    }
}
