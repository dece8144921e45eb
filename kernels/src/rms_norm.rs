//! `residual += x; out = residual / rms(residual) * weight` (or of `x` alone).

use crate::buf::{View, ViewMut};
use crate::cpu::{Isa, dispatch, math};
use crate::error::{Result, same};
use crate::exec::{Exec, share};

/// RMS norm of each row, fused with the addition to the residual stream (Zhang and Sennrich 2019).
///
/// `x`, `residual` and `out` are `[T, H]`, `weight` is `[H]`.
///
/// # Errors
/// [`crate::KernelError::Shape`].
pub fn rms_norm(
    exec: &Exec,
    x: View<'_>,
    residual: Option<ViewMut<'_>>,
    weight: &[f32],
    eps: f32,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "rms_norm";
    same(OP, "weight", weight.len(), x.n_cols())?;
    same(OP, "rows of out", out.n_rows(), x.n_rows())?;
    same(OP, "columns of out", out.n_cols(), x.n_cols())?;
    let mut residual = residual;
    if let Some(residual) = &residual {
        same(OP, "rows of residual", residual.n_rows(), x.n_rows())?;
        same(OP, "columns of residual", residual.n_cols(), x.n_cols())?;
    }
    let (rows, h) = (x.n_rows(), x.n_cols());
    let (out, residual) = (out.raw(), residual.as_mut().map(ViewMut::raw));
    let one = |row: usize| {
        // SAFETY: row < rows of all operands, which have h columns; each row belongs to one worker.
        unsafe {
            let out = std::slice::from_raw_parts_mut(out.at(row, 0), h);
            let residual = residual.map(|residual| std::slice::from_raw_parts_mut(residual.at(row, 0), h));
            match exec {
                Exec::Reference => reference_row(x.row(row), residual, weight, eps, out),
                Exec::Simd(_) => norm_row(x.row(row), residual, weight, eps, out),
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
    unsafe fn norm_row(x: &[f32], residual: Option<&mut [f32]>, weight: &[f32], eps: f32, out: &mut [f32]) = norm_row_inner
);

#[inline(always)]
unsafe fn norm_row_inner<S: Isa>(
    x: &[f32],
    residual: Option<&mut [f32]>,
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    match residual {
        Some(residual) => {
            for (sum, x) in residual.iter_mut().zip(x) {
                *sum += x;
            }
            scale_row(residual, weight, eps, out);
        }
        None => scale_row(x, weight, eps, out),
    }
}

#[inline(always)]
fn scale_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = math::dot(x, x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// The same by plain loops, summed in f64.
fn reference_row(x: &[f32], residual: Option<&mut [f32]>, weight: &[f32], eps: f32, out: &mut [f32]) {
    match residual {
        Some(residual) => {
            for (at, x) in x.iter().enumerate() {
                residual[at] += x;
                out[at] = residual[at];
            }
        }
        None => out.copy_from_slice(x),
    }
    let squares: f64 = out.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let rms = (squares / out.len() as f64 + f64::from(eps)).sqrt();
    for (out, weight) in out.iter_mut().zip(weight) {
        *out = (f64::from(*out) / rms * f64::from(*weight)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fill;

    #[test]
    fn it_adds_the_residual_and_normalises() {
        for (rows, h) in [(1, 1), (3, 19), (40, 576)] {
            let (x, before, weight) = (fill(rows * h, 1), fill(rows * h, 2), fill(h, 3));
            let mut residual = before.clone();
            let mut out = vec![0.0; rows * h];
            rms_norm(
                &Exec::simd(2),
                View::new(&x, rows, h).expect("x"),
                Some(ViewMut::new(&mut residual, rows, h).expect("residual")),
                &weight,
                1e-5,
                ViewMut::new(&mut out, rows, h).expect("out"),
            )
            .expect("norm");
            for row in 0..rows {
                let sums: Vec<f64> =
                    (0..h).map(|c| f64::from(x[row * h + c] + before[row * h + c])).collect();
                let rms = (sums.iter().map(|s| s * s).sum::<f64>() / h as f64 + 1e-5).sqrt();
                for (c, sum) in sums.iter().enumerate() {
                    assert!((f64::from(out[row * h + c]) - sum / rms * f64::from(weight[c])).abs() < 1e-5);
                    assert_eq!(f64::from(residual[row * h + c]), *sum);
                }
            }
        }
    }

    #[test]
    fn simd_is_close_to_the_reference_and_equal_on_every_instruction_set() {
        let (rows, h) = (5, 83);
        let (x, before, weight) = (fill(rows * h, 4), fill(rows * h, 5), fill(h, 6));
        let run = |exec: &Exec| {
            let (mut residual, mut out) = (before.clone(), vec![0.0; rows * h]);
            let sum = Some(ViewMut::new(&mut residual, rows, h).expect("residual"));
            let to = ViewMut::new(&mut out, rows, h).expect("out");
            rms_norm(exec, View::new(&x, rows, h).expect("x"), sum, &weight, 1e-5, to).expect("norm");
            (residual, out)
        };
        let (reference, simd) = (run(&Exec::Reference), run(&Exec::simd(1)));
        assert_eq!(simd.0, reference.0);
        assert!(simd.1.iter().zip(&reference.1).all(|(a, b)| (a - b).abs() <= 2e-6 * b.abs().max(1.0)));
        for level in crate::check::levels() {
            assert_eq!(crate::cpu::with_level(level, || run(&Exec::simd(1))), simd, "{level:?}");
        }
    }
}
