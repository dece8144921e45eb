//! Root-mean-square normalisation, with the residual addition before it.

use crate::error::{Result, expect_shape};
use crate::{Exec, View, ViewMut, cpu};

/// `out = v / sqrt(mean(v^2) + eps) * weight` a row, where `v` is `x`, or `residual` after `residual += x`.
///
/// `x`, `residual` and `out` are `[T, H]`, `weight` is `[H]`.
pub fn rms_norm(
    exec: &Exec,
    x: View<'_>,
    residual: Option<ViewMut<'_>>,
    weight: &[f32],
    eps: f32,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let x = x.f32(OP, "x")?;
    let mut out = out.f32(OP, "out")?;
    expect_shape(OP, "out", &[out.rows, out.cols], &[x.rows, x.cols])?;
    expect_shape(OP, "weight", &[weight.len()], &[x.cols])?;
    let mut residual = residual;
    let mut residual = residual.as_mut().map(|residual| residual.f32(OP, "residual")).transpose()?;
    if let Some(residual) = &residual {
        expect_shape(OP, "residual", &[residual.rows, residual.cols], &[x.rows, x.cols])?;
    }
    if let Exec::Simd(team) = exec {
        cpu::norms::rms_norm(team, x, residual.as_mut(), weight, eps, &mut out);
        return Ok(());
    }
    for t in 0..x.rows {
        match &mut residual {
            None => reference(x.row(t), weight, eps, out.row(t)),
            Some(residual) => {
                residual.row(t).iter_mut().zip(x.row(t)).for_each(|(r, x)| *r += x);
                reference(residual.row(t), weight, eps, out.row(t));
            }
        }
    }
    Ok(())
}

pub(crate) fn reference(v: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let squares: f64 = v.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let scale = 1.0 / (squares / v.len() as f64 + f64::from(eps)).sqrt();
    for ((out, v), weight) in out.iter_mut().zip(v).zip(weight) {
        *out = (f64::from(*v) * scale) as f32 * weight;
    }
}
