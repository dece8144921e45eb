//! The GELU activation, in place.

use crate::buf::ViewMut;
use crate::cpu::{Isa, dispatch, math};
use crate::error::Result;
use crate::exec::{Exec, share};

/// Which form of GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GeluKind {
    /// `x * Φ(x)` by the error function.
    Erf,
    /// The tanh approximation.
    Tanh,
    /// `max(0, x)`, for encoders that were trained with it.
    Relu,
}

/// Applies the activation to every element of `x`.
///
/// # Errors
/// None today; the signature is that of every op.
pub fn gelu(exec: &Exec, mut x: ViewMut<'_>, kind: GeluKind) -> Result<()> {
    let (rows, cols) = (x.n_rows(), x.n_cols());
    let raw = x.raw();
    exec.run(&|worker, workers| {
        for row in share(rows, 1, worker, workers) {
            // SAFETY: row < rows and cols is the width; each row belongs to one worker.
            unsafe {
                let row = std::slice::from_raw_parts_mut(raw.at(row, 0), cols);
                match exec {
                    Exec::Reference => reference(row, kind),
                    Exec::Simd(_) => activate(row, kind),
                }
            };
        }
    });
    Ok(())
}

dispatch!(
    /// # Safety
    /// None.
    unsafe fn activate(row: &mut [f32], kind: GeluKind) = activate_inner
);

#[inline(always)]
unsafe fn activate_inner<S: Isa>(row: &mut [f32], kind: GeluKind) {
    match kind {
        GeluKind::Erf => {
            for x in row {
                *x = 0.5 * *x * (1.0 + math::erf(*x * std::f32::consts::FRAC_1_SQRT_2));
            }
        }
        GeluKind::Tanh => {
            for x in row {
                let inner = 0.797_884_6 * (0.044_715 * *x * *x).mul_add(*x, *x);
                *x = 0.5 * *x * (1.0 + math::tanh(inner));
            }
        }
        GeluKind::Relu => {
            for x in row {
                *x = x.max(0.0);
            }
        }
    }
}

/// The same in f64: the error function from its integral by Simpson's rule, so that nothing is shared with [`math`].
fn reference(row: &mut [f32], kind: GeluKind) {
    for out in row {
        let x = f64::from(*out);
        let y = match kind {
            GeluKind::Erf => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            GeluKind::Tanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
            }
            GeluKind::Relu => x.max(0.0),
        };
        *out = y as f32;
    }
}

/// `2 / sqrt(pi)` times the integral of `exp(-t * t)` from 0 to `x`.
fn erf(x: f64) -> f64 {
    const STEPS: usize = 200;
    if x.abs() > 6.0 {
        return x.signum();
    }
    let step = x / STEPS as f64;
    let sum: f64 = (0..=STEPS)
        .map(|at| {
            let weight = if at == 0 || at == STEPS { 1.0 } else { 2.0 * (1 + at % 2) as f64 };
            weight * (-(at as f64 * step).powi(2)).exp()
        })
        .sum();
    sum * step / 3.0 * std::f64::consts::FRAC_2_SQRT_PI
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simd_is_close_to_the_reference_and_equal_on_every_instruction_set() {
        let x: Vec<f32> = (-600..=600).map(|at| at as f32 * 0.01).collect();
        for kind in [GeluKind::Erf, GeluKind::Tanh, GeluKind::Relu] {
            let run = |exec: &Exec| {
                let mut x = x.clone();
                let len = x.len();
                gelu(exec, ViewMut::new(&mut x, 1, len).expect("view"), kind).expect("gelu");
                x
            };
            let (reference, simd) = (run(&Exec::Reference), run(&Exec::simd(1)));
            assert!(simd.iter().zip(&reference).all(|(a, b)| (a - b).abs() <= 2e-6), "{kind:?}");
            for level in crate::check::levels() {
                assert_eq!(crate::cpu::with_level(level, || run(&Exec::simd(1))), simd, "{level:?}");
            }
        }
    }

    #[test]
    fn both_forms_have_known_values() {
        let mut erf = [1.0_f32, -1.0, 0.0, 3.0];
        gelu(&Exec::simd(1), ViewMut::new(&mut erf, 1, 4).expect("view"), GeluKind::Erf).expect("gelu");
        for (found, expected) in erf.iter().zip([0.841_344_7, -0.158_655_3, 0.0, 2.995_950_3]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
        let mut tanh = [1.0_f32, -1.0];
        gelu(&Exec::simd(1), ViewMut::new(&mut tanh, 1, 2).expect("view"), GeluKind::Tanh).expect("gelu");
        for (found, expected) in tanh.iter().zip([0.841_192, -0.158_808]) {
            assert!((found - expected).abs() < 1e-6, "{found}");
        }
    }
}
