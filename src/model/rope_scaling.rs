//! Frequencies of rotary positions under the scaling variants, as `transformers` computes them
//! (`modeling_rope_utils.py`).

use super::config::{RopeConfig, RopeScaling};

/// `(inv_freq [dim / 2], attention scale)`.
pub(super) fn frequencies(rope: &RopeConfig, dim: usize, max_positions: usize) -> (Vec<f32>, f32) {
    let base = |theta: f64| -> Vec<f64> {
        (0..dim / 2).map(|i| 1.0 / theta.powf(2.0 * i as f64 / dim as f64)).collect()
    };
    let plain = base(rope.theta);
    let to_f32 = |all: Vec<f64>| all.into_iter().map(|f| f as f32).collect::<Vec<f32>>();
    match &rope.scaling {
        RopeScaling::Default => (to_f32(plain), 1.0),
        RopeScaling::Linear { factor } => (to_f32(plain.iter().map(|f| f / factor).collect()), 1.0),
        RopeScaling::Dynamic { factor, original } => {
            let length = max_positions.max(*original) as f64;
            let d = dim as f64;
            let grown = (factor * length / *original as f64) - (factor - 1.0);
            (to_f32(base(rope.theta * grown.powf(d / (d - 2.0)))), 1.0)
        }
        RopeScaling::Llama3 { factor, low, high, original } => {
            let old = *original as f64;
            let scaled = plain.iter().map(|f| {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                if wavelength > old / low {
                    f / factor
                } else if wavelength < old / high {
                    *f
                } else {
                    let smooth = (old / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            });
            (to_f32(scaled.collect()), 1.0)
        }
        RopeScaling::Yarn { factor, original, beta_slow, beta_fast, attention_factor } => {
            let d = dim as f64;
            let correction = |rotations: f64| {
                d * (*original as f64 / (rotations * 2.0 * std::f64::consts::PI)).ln()
                    / (2.0 * rope.theta.ln())
            };
            let low = correction(*beta_fast).floor().max(0.0);
            let high = correction(*beta_slow).ceil().min(d - 1.0);
            let span = if high > low { high - low } else { 0.001 };
            let scaled = plain.iter().enumerate().map(|(i, f)| {
                let interpolated = ((i as f64 - low) / span).clamp(0.0, 1.0);
                f / factor * interpolated + f * (1.0 - interpolated)
            });
            let scale = attention_factor
                .unwrap_or_else(|| if *factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 });
            (to_f32(scaled.collect()), scale as f32)
        }
        RopeScaling::Factors(factors) => {
            let scaled =
                plain.iter().enumerate().map(|(i, f)| f / f64::from(factors.get(i).copied().unwrap_or(1.0)));
            (to_f32(scaled.collect()), 1.0)
        }
    }
}
