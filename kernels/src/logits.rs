//! What sampling asks of a row of logits: the likeliest token, and the sums of a softmax.
//!
//! A row is one thread's work: rows are shared out by [`Exec::each_with`](crate::Exec::each_with). Every result is
//! made in one fixed order, so that a seed gives the same token on every instruction set.

use crate::cpu::{Isa, LANES, dispatch, math};
use crate::error::{Result, same};
use crate::exec::Exec;

/// Logits that one sum of [`softmax_stats`] covers.
pub const SOFTMAX_BLOCK: usize = 1024;

/// The maximum of a row and the sum of `exp((x - max) * inverse)` over it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftmaxStats {
    /// The largest logit; NaN when any is.
    pub max: f32,
    /// The sum; NaN when `max` is not finite.
    pub sum: f64,
}

/// The index of the largest of `x` and its value, the lowest index on ties; `None` when `x` is empty or has a NaN.
#[must_use]
pub fn argmax(exec: &Exec, x: &[f32]) -> Option<(u32, f32)> {
    let max = largest(exec, x);
    if max.is_nan() || x.is_empty() {
        return None;
    }
    let at = match exec {
        Exec::Reference => x.iter().position(|x| *x == max),
        // SAFETY: no contract beyond the slice.
        Exec::Simd(_) => unsafe { position(x, max) },
    };
    at.map(|at| (at as u32, max))
}

/// The softmax of `x` at temperature `1 / inverse`: maximum, sum, and the sum of each block of [`SOFTMAX_BLOCK`].
///
/// `blocks` is `[x.len() / SOFTMAX_BLOCK]`, rounded up; it is left alone when the maximum is not finite.
///
/// # Errors
/// [`crate::KernelError::Shape`].
pub fn softmax_stats(exec: &Exec, x: &[f32], inverse: f32, blocks: &mut [f32]) -> Result<SoftmaxStats> {
    same("softmax_stats", "blocks", blocks.len(), x.len().div_ceil(SOFTMAX_BLOCK))?;
    let max = largest(exec, x);
    if !max.is_finite() {
        return Ok(SoftmaxStats { max, sum: f64::NAN });
    }
    for (sum, part) in blocks.iter_mut().zip(x.chunks(SOFTMAX_BLOCK)) {
        *sum = match exec {
            Exec::Reference => reference::block_sum(part, max, inverse),
            // SAFETY: no contract beyond the slice.
            Exec::Simd(_) => unsafe { block_sum(part, max, inverse) },
        };
    }
    Ok(SoftmaxStats { max, sum: blocks.iter().map(|sum| f64::from(*sum)).sum() })
}

/// `exp((x - max) * inverse)`: the term of [`softmax_stats`], to the bit.
#[must_use]
pub fn softmax_weight(x: f32, max: f32, inverse: f32) -> f32 {
    math::exp((x - max) * inverse)
}

/// The largest of `x`, NaN when any is, minus infinity when there are none.
fn largest(exec: &Exec, x: &[f32]) -> f32 {
    match exec {
        Exec::Reference => reference::largest(x),
        // SAFETY: no contract beyond the slice.
        Exec::Simd(_) => unsafe { largest_of(x) },
    }
}

dispatch!(
    /// # Safety
    /// None.
    unsafe fn largest_of(x: &[f32]) -> f32 = largest_inner
);
dispatch!(
    /// # Safety
    /// None.
    unsafe fn position(x: &[f32], value: f32) -> Option<usize> = position_inner
);
dispatch!(
    /// # Safety
    /// None.
    unsafe fn block_sum(x: &[f32], max: f32, inverse: f32) -> f32 = block_sum_inner
);

#[inline(always)]
unsafe fn largest_inner<S: Isa>(x: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; 4 * LANES];
    let mut unordered = [0_u32; 4 * LANES];
    let chunks = x.chunks_exact(4 * LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..4 * LANES {
            let value = chunk[lane];
            unordered[lane] |= u32::from(value.is_nan());
            best[lane] = if value > best[lane] { value } else { best[lane] };
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        unordered[lane] |= u32::from(value.is_nan());
        best[lane] = if *value > best[lane] { *value } else { best[lane] };
    }
    if unordered.iter().any(|lane| *lane != 0) {
        return f32::NAN;
    }
    best.iter().fold(f32::NEG_INFINITY, |best, value| if *value > best { *value } else { best })
}

#[inline(always)]
unsafe fn position_inner<S: Isa>(x: &[f32], value: f32) -> Option<usize> {
    for (at, chunk) in x.chunks(4 * LANES).enumerate() {
        let found = chunk.iter().fold(false, |found, x| found | (*x == value));
        if found {
            return chunk.iter().position(|x| *x == value).map(|lane| at * 4 * LANES + lane);
        }
    }
    None
}

#[inline(always)]
unsafe fn block_sum_inner<S: Isa>(x: &[f32], max: f32, inverse: f32) -> f32 {
    math::sum_of(x, |x| math::exp((x - max) * inverse))
}

/// The same by plain loops.
mod reference {
    pub(super) fn largest(x: &[f32]) -> f32 {
        let mut best = f32::NEG_INFINITY;
        for value in x {
            if value.is_nan() {
                return f32::NAN;
            }
            best = best.max(*value);
        }
        best
    }

    pub(super) fn block_sum(x: &[f32], max: f32, inverse: f32) -> f32 {
        x.iter().map(|x| f64::from((x - max) * inverse).exp()).sum::<f64>() as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{fill, levels};
    use crate::cpu::with_level;

    #[test]
    fn argmax_is_the_lowest_index_of_the_largest_on_every_instruction_set() {
        for len in [1, 15, 16, 63, 64, 65, 1000] {
            let mut x = fill(len, 7);
            let at = len * 2 / 3;
            x[at] = 2.0;
            x[len - 1] = 2.0;
            let expected = argmax(&Exec::Reference, &x);
            assert_eq!(expected, Some((at.min(len - 1) as u32, 2.0)));
            for level in levels() {
                assert_eq!(with_level(level, || argmax(&Exec::simd(1), &x)), expected, "{level:?} {len}");
            }
            x[len / 2] = f32::NAN;
            for level in levels() {
                assert_eq!(with_level(level, || argmax(&Exec::simd(1), &x)), None, "{level:?} {len}");
            }
            assert_eq!(argmax(&Exec::Reference, &x), None);
        }
        assert_eq!(argmax(&Exec::simd(1), &[]), None);
        assert_eq!(argmax(&Exec::simd(1), &[f32::NEG_INFINITY; 3]), Some((0, f32::NEG_INFINITY)));
    }

    #[test]
    fn sums_are_close_to_the_reference_and_equal_on_every_instruction_set() {
        for len in [1, 17, 1024, 1025, 5000] {
            let x: Vec<f32> = fill(len, 3).iter().map(|x| x * 12.0).collect();
            let stats = |exec: &Exec| {
                let mut blocks = vec![0.0; len.div_ceil(SOFTMAX_BLOCK)];
                (softmax_stats(exec, &x, 1.25, &mut blocks).expect("stats"), blocks)
            };
            let (reference, _) = stats(&Exec::Reference);
            let simd = stats(&Exec::simd(1));
            assert_eq!(simd.0.max, reference.max);
            assert!((simd.0.sum - reference.sum).abs() < 1e-5 * reference.sum, "{simd:?} {reference:?}");
            for level in levels() {
                assert_eq!(with_level(level, || stats(&Exec::simd(1))), simd, "{level:?}");
            }
        }
        let broken = softmax_stats(&Exec::simd(1), &[0.0, f32::NAN], 1.0, &mut [0.0]).expect("stats");
        assert!(broken.max.is_nan() && broken.sum.is_nan());
        assert!(softmax_stats(&Exec::simd(1), &[0.0], 1.0, &mut []).is_err());
    }
}
