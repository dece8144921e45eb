//! Scalar functions written so that loops over them vectorise, the same on every path.

/// `e^x` to about 1 ulp of f32 in the range that softmax and silu use; 0 below -87.3, inf above 88.7.
///
/// Range reduction by `ln 2` and a degree-6 polynomial (Cephes `expf`); no branches and no tables, so that LLVM
/// turns a loop of it into vectors.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.336_54, 88.722_83);
    // Round to nearest by the 1.5 * 2^23 trick: exact in this range and free of branches.
    let shifted = clamped.mul_add(LOG2E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = n.mul_add(-LN2_HI, clamped);
    let r = n.mul_add(-LN2_LO, r);
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_6e-1);
    p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // n is in -126..=128; two factors keep 2^128 finite until the product.
    let half = (n as i32) >> 1;
    let rest = (n as i32) - half;
    let pow = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    let result = y * pow(half) * pow(rest);
    if x < -87.336_54 { 0.0 } else { result }
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The error function to about 1.5e-7 absolute (Abramowitz and Stegun 7.1.26, in f64 coefficients' f32 form).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / 0.327_591_1_f32.mul_add(a, 1.0);
    let mut p = 1.061_405_4_f32;
    p = p.mul_add(t, -1.453_152);
    p = p.mul_add(t, 1.421_413_7);
    p = p.mul_add(t, -0.284_496_74);
    p = p.mul_add(t, 0.254_829_6);
    let y = 1.0 - p * t * exp(-a * a);
    if x < 0.0 { -y } else { y }
}

/// `tanh(x)` from [`exp`].
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    let y = (1.0 - e) / (1.0 + e);
    if x < 0.0 { -y } else { y }
}

/// The sum of 16 lanes in one fixed tree.
#[inline(always)]
pub(crate) fn sum16(mut v: [f32; 16]) -> f32 {
    for step in [8, 4, 2, 1] {
        for lane in 0..step {
            v[lane] += v[lane + step];
        }
    }
    v[0]
}

/// The dot product of two slices in 16 interleaved partial sums: one fixed order for every caller.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    for (lane, (x, y)) in a16.remainder().iter().zip(b16.remainder()).enumerate() {
        sums[lane] = x * y;
    }
    for (x, y) in a16.zip(b16) {
        for lane in 0..16 {
            sums[lane] = x[lane].mul_add(y[lane], sums[lane]);
        }
    }
    sum16(sums)
}

/// The sum of `f(x)` over a slice, in the order of [`dot`].
#[inline(always)]
pub(crate) fn sum_of(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; 16];
    let chunks = a.chunks_exact(16);
    for (lane, x) in chunks.remainder().iter().enumerate() {
        sums[lane] = f(*x);
    }
    for x in chunks {
        for lane in 0..16 {
            sums[lane] += f(x[lane]);
        }
    }
    sum16(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_and_silent_at_the_ends() {
        let mut worst = 0.0_f64;
        for step in -8700..=8870 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x).exp();
            if exact < 1.2e-38 {
                continue;
            }
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.4e-7, "{worst}");
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn erf_and_tanh_are_close() {
        // Values of erf from its series in f64.
        for (x, expected) in [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (-2.0, -0.995_322_3)] {
            assert!((erf(x) - expected).abs() < 5e-7, "{x}: {}", erf(x));
        }
        for x in [-3.0_f32, -0.1, 0.0, 0.7, 9.0] {
            assert!((tanh(x) - x.tanh()).abs() < 1e-6);
        }
    }
}
