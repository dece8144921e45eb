//! The Gaussian error linear unit, in place.

use crate::error::Result;
use crate::{Exec, ViewMut, cpu};

/// Which form of the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeluKind {
    /// `x / 2 * (1 + erf(x / sqrt 2))`: BERT, XLM-R.
    Erf,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    Tanh,
}

/// `x = gelu(x)`, element by element.
pub fn gelu(exec: &Exec, mut x: ViewMut<'_>, kind: GeluKind) -> Result<()> {
    let mut x = x.f32("gelu", "x")?;
    match exec {
        Exec::Simd(team) => cpu::elementwise::gelu(team, &mut x, kind),
        Exec::Reference => {
            let reference = match kind {
                GeluKind::Erf => erf_reference,
                GeluKind::Tanh => tanh_reference,
            };
            (0..x.rows).for_each(|t| x.row(t).iter_mut().for_each(|v| *v = reference(*v)));
        }
    }
    Ok(())
}

pub(crate) fn erf_reference(v: f32) -> f32 {
    let v = f64::from(v);
    (0.5 * v * (1.0 + erf(v / std::f64::consts::SQRT_2))) as f32
}

pub(crate) fn tanh_reference(v: f32) -> f32 {
    let v = f64::from(v);
    (0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v)).tanh())) as f32
}

/// The error function by its Maclaurin series, and by the continued fraction of its complement where that converges
/// faster: slow and accurate to double precision.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a > 6.0 {
        return x.signum();
    }
    if a > 3.0 {
        let fraction = (1..=60).rev().fold(0.0, |tail, n| f64::from(n) / 2.0 / (a + tail));
        return x.signum() * (1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + fraction));
    }
    let mut term = x;
    let mut sum = x;
    for n in 1..100 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_error_function_has_its_tabulated_values() {
        // Abramowitz and Stegun, table 7.1, and erfc(3.5) from table 7.2's neighbourhood.
        for (x, value) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            assert!((erf(x) - value).abs() < 1e-9 && (erf(-x) + value).abs() < 1e-9);
        }
        assert!((1.0 - erf(3.5) - 7.430_983_7e-7).abs() < 1e-12);
    }
}
