//! `out = (x + residual - mean) / std * weight + bias`.

use crate::buf::{View, ViewMut};
use crate::cpu::{Isa, dispatch, math};
use crate::error::{Result, same};
use crate::exec::{Exec, share};

/// Layer norm of each row (Ba et al. 2016), optionally of the sum with a residual.
///
/// `x`, `residual` and `out` are `[T, H]`, `weight` and `bias` are `[H]`.
///
/// # Errors
/// [`crate::KernelError::Shape`].
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
    same(OP, "weight", weight.len(), x.n_cols())?;
    same(OP, "bias", bias.len(), x.n_cols())?;
    same(OP, "rows of out", out.n_rows(), x.n_rows())?;
    same(OP, "columns of out", out.n_cols(), x.n_cols())?;
    if let Some(residual) = &residual {
        same(OP, "rows of residual", residual.n_rows(), x.n_rows())?;
        same(OP, "columns of residual", residual.n_cols(), x.n_cols())?;
    }
    let (rows, h) = (x.n_rows(), x.n_cols());
    let out = out.raw();
    let one = |row: usize| {
        // SAFETY: row < rows of out, which has h columns; each row belongs to one worker.
        unsafe {
            let out = std::slice::from_raw_parts_mut(out.at(row, 0), h);
            let residual = residual.map(|residual| residual.row(row));
            match exec {
                Exec::Reference => reference_row(x.row(row), residual, weight, bias, eps, out),
                Exec::Simd(_) => norm_row(x.row(row), residual, weight, bias, eps, out),
            }
        }
    };
    if rows < 16 {
        (0..rows).for_each(one);
    } else {
        exec.run(&|worker, workers| share(rows, 1, worker, workers).for_each(one));
    }
    Ok(())
}

dispatch!(
    /// # Safety
    /// None beyond the slices being of one length.
    unsafe fn norm_row(x: &[f32], residual: Option<&[f32]>, weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = norm_row_inner
);

#[inline(always)]
unsafe fn norm_row_inner<S: Isa>(
    x: &[f32],
    residual: Option<&[f32]>,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    match residual {
        Some(residual) => out.iter_mut().zip(x).zip(residual).for_each(|((out, x), r)| *out = x + r),
        None => out.copy_from_slice(x),
    }
    let h = out.len() as f32;
    let mean = math::sum_of(out, |x| x) / h;
    let variance = math::sum_of(out, |x| (x - mean) * (x - mean)) / h;
    let scale = 1.0 / (variance + eps).sqrt();
    for ((out, weight), bias) in out.iter_mut().zip(weight).zip(bias) {
        *out = ((*out - mean) * scale).mul_add(*weight, *bias);
    }
}

/// The same by plain loops, summed in f64.
fn reference_row(
    x: &[f32],
    residual: Option<&[f32]>,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    for (at, out) in out.iter_mut().enumerate() {
        *out = x[at] + residual.map_or(0.0, |residual| residual[at]);
    }
    let h = out.len() as f64;
    let mean = out.iter().map(|x| f64::from(*x)).sum::<f64>() / h;
    let variance = out.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / h;
    let deviation = (variance + f64::from(eps)).sqrt();
    for ((out, weight), bias) in out.iter_mut().zip(weight).zip(bias) {
        *out = ((f64::from(*out) - mean) / deviation * f64::from(*weight) + f64::from(*bias)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fill;

    #[test]
    fn it_normalises_the_sum() {
        for (rows, h) in [(1, 1), (2, 17), (20, 384)] {
            let (x, r, w, b) = (fill(rows * h, 1), fill(rows * h, 2), fill(h, 3), fill(h, 4));
            let mut out = vec![0.0; rows * h];
            layer_norm(
                &Exec::simd(2),
                View::new(&x, rows, h).expect("x"),
                Some(View::new(&r, rows, h).expect("r")),
                &w,
                &b,
                1e-5,
                ViewMut::new(&mut out, rows, h).expect("out"),
            )
            .expect("norm");
            for row in 0..rows {
                let s: Vec<f64> = (0..h).map(|c| f64::from(x[row * h + c] + r[row * h + c])).collect();
                let mean = s.iter().sum::<f64>() / h as f64;
                let var = s.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / h as f64;
                for c in 0..h {
                    let expected = (s[c] - mean) / (var + 1e-5).sqrt() * f64::from(w[c]) + f64::from(b[c]);
                    assert!((f64::from(out[row * h + c]) - expected).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn simd_is_close_to_the_reference_and_equal_on_every_instruction_set() {
        let (rows, h) = (5, 83);
        let (x, r, w, b) = (fill(rows * h, 4), fill(rows * h, 5), fill(h, 6), fill(h, 7));
        let run = |exec: &Exec| {
            let mut out = vec![0.0; rows * h];
            let (x, r) = (View::new(&x, rows, h).expect("x"), View::new(&r, rows, h).expect("r"));
            let to = ViewMut::new(&mut out, rows, h).expect("out");
            layer_norm(exec, x, Some(r), &w, &b, 1e-5, to).expect("norm");
            out
        };
        let (reference, simd) = (run(&Exec::Reference), run(&Exec::simd(1)));
        assert!(simd.iter().zip(&reference).all(|(a, b)| (a - b).abs() <= 5e-6 * b.abs().max(1.0)));
        for level in crate::check::levels() {
            assert_eq!(crate::cpu::with_level(level, || run(&Exec::simd(1))), simd, "{level:?}");
        }
    }
}
