//! Weights as 8-bit floats: OCP e4m3 codes ("E4M3FN") with an f32 scale a row, `w = scale * code`.
//!
//! A code is a sign, four bits of exponent with a bias of 7 and three of mantissa; 0x7f and 0xff are NaN, there are no
//! infinities. Source: OCP 8-bit Floating Point Specification, revision 1.0. A scale a row (an output of the product)
//! leaves the sum over k free of scales; the largest weight of a row gets the largest code.

use rayon::prelude::*;

use crate::error::{KernelError, Result};
use crate::pack::WeightData;

/// The largest value of a code.
pub const MAX: f32 = 448.0;

/// Weight rows as codes.
#[derive(Debug, Clone, PartialEq)]
pub struct Fp8Rows {
    /// `[n, k]`, k contiguous.
    pub codes: Vec<u8>,
    /// `[n]`.
    pub scales: Vec<f32>,
}

impl Fp8Rows {
    /// The nearest codes of `weights`, rows of `k`.
    ///
    /// # Errors
    /// [`KernelError::Unsupported`] when they are no whole rows.
    pub fn quantize(weights: WeightData<'_>, k: usize) -> Result<Fp8Rows> {
        const OP: &str = "fp8::quantize";
        let n = weights.rows(k).ok_or(KernelError::Unsupported { op: OP, what: "a row length", value: k })?;
        let (mut codes, mut scales) = (vec![0; n * k], vec![0.0; n]);
        codes.par_chunks_exact_mut(k).zip(&mut scales).enumerate().for_each_init(
            || vec![0.0_f32; k],
            |values, (row, (codes, scale))| {
                weights.row(row, values);
                *scale = scale_of(values);
                codes.iter_mut().zip(values).for_each(|(code, value)| *code = encode(*value / *scale));
            },
        );
        Ok(Fp8Rows { codes, scales })
    }

    /// The weights that the codes stand for, `[n, k]`.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        let k = self.codes.len() / self.scales.len().max(1);
        let rows = self.codes.chunks_exact(k.max(1)).zip(&self.scales);
        rows.flat_map(|(codes, scale)| codes.iter().map(move |code| scale * decode(*code))).collect()
    }
}

/// The scale that gives a row's largest weight the largest code: NaN where a weight is not finite, so that what the row
/// yields is none. Of weights so small that it would lack precision, all codes are 0.
pub(crate) fn scale_of(row: &[f32]) -> f32 {
    if !row.iter().all(|value| value.is_finite()) {
        return f32::NAN;
    }
    let scale = row.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / MAX;
    if scale.is_normal() { scale } else { 1.0 }
}

/// The code nearest to `value`, the even one of two; what is beyond the largest has the largest, a NaN is one.
#[must_use]
pub fn encode(value: f32) -> u8 {
    const SMALLEST_NORMAL: f32 = 0.015_625;
    const SUBNORMALS: f32 = 512.0;
    let (sign, magnitude) = (u8::from(value.is_sign_negative()) << 7, value.abs());
    let code = if value.is_nan() {
        0x7f
    } else if magnitude >= MAX {
        0x7e
    } else if magnitude < SMALLEST_NORMAL {
        // Rounded up to 8 it is the smallest normal code.
        (magnitude * SUBNORMALS).round_ties_even() as u8
    } else {
        let bits = magnitude.to_bits();
        let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
        ((rounded >> 20) - ((127 - 7) << 3)) as u8
    };
    sign | code
}

/// What a code stands for.
#[must_use]
pub fn decode(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        15 if code & 7 == 7 => f32::NAN,
        0 => mantissa * 2.0_f32.powi(-9),
        _ => (8.0 + mantissa) * 2.0_f32.powi(exponent - 10),
    };
    if code >> 7 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::check::fill;

    /// All codes but those of NaN, by growing value.
    fn ascending() -> Vec<u8> {
        (0x80..=0xfe).rev().chain(0..=0x7e).collect()
    }

    #[test]
    fn codes_stand_for_the_values_of_the_specification() {
        // Table 4: the largest, the smallest normal, the largest and smallest subnormal, zero, NaN.
        for (code, value) in [
            (0x7e, 448.0),
            (0x08, 2.0_f32.powi(-6)),
            (0x07, 0.875 * 2.0_f32.powi(-6)),
            (0x01, 2.0_f32.powi(-9)),
            (0x38, 1.0),
            (0x39, 1.125),
        ] {
            assert_eq!(decode(code), value, "{code:#x}");
            assert_eq!(decode(code | 0x80), -value, "{code:#x}");
        }
        assert_eq!(decode(0x00).to_bits(), 0);
        assert_eq!(decode(0x80).to_bits(), (-0.0_f32).to_bits());
        assert!(decode(0x7f).is_nan() && decode(0xff).is_nan());
        let values: Vec<f32> = ascending().into_iter().map(decode).collect();
        assert!(values.windows(2).all(|pair| pair[0] < pair[1] || pair == [0.0, 0.0]), "codes are ordered");
    }

    #[test]
    fn every_code_is_that_of_its_value_and_exact_in_16_bits() {
        for code in 0..=u8::MAX {
            let value = decode(code);
            if !value.is_nan() {
                assert_eq!(encode(value), code, "{value}");
                assert_eq!(bf16::from_f32(value).to_f32(), value);
                assert_eq!(f16::from_f32(value).to_f32(), value);
            }
        }
        assert_eq!(encode(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn values_between_two_codes_go_to_the_nearer_and_from_the_middle_to_the_even() {
        for pair in ascending().windows(2) {
            let (below, above) = (decode(pair[0]), decode(pair[1]));
            let middle = f32::midpoint(below, above);
            let even = if pair[0] & 1 == 0 { below } else { above };
            assert_eq!(decode(encode(middle)), even, "{middle}");
            assert_eq!(decode(encode(middle.next_down())), below, "under {middle}");
            assert_eq!(decode(encode(middle.next_up())), above, "over {middle}");
        }
        for beyond in [449.0, 464.0, 1e30, f32::INFINITY] {
            assert_eq!((encode(beyond), encode(-beyond)), (0x7e, 0xfe));
        }
        assert_eq!((encode(1e-30), encode(-1e-30)), (0, 0x80));
    }

    #[test]
    fn rows_have_scales_of_their_own_and_errors_of_half_a_step() {
        let (n, k) = (5, 37);
        let mut weights = fill(n * k, 7);
        for (row, weights) in weights.chunks_exact_mut(k).enumerate() {
            weights.iter_mut().for_each(|weight| *weight *= 10.0_f32.powi(row as i32 * 4 - 8));
        }
        let rows = Fp8Rows::quantize(WeightData::F32(&weights), k).expect("whole rows");
        assert_eq!((rows.codes.len(), rows.scales.len()), (n * k, n));
        let back = rows.dequantize();
        for (at, (found, weight)) in back.iter().zip(&weights).enumerate() {
            let scale = rows.scales[at / k];
            // Half a step of three bits of mantissa, or of the smallest codes.
            let bound = (weight.abs() / 16.0).max(scale * 2.0_f32.powi(-10)) * 1.000_001;
            assert!((found - weight).abs() <= bound, "{at}: {found} for {weight}");
        }
        for row in rows.codes.chunks_exact(k) {
            assert_eq!(row.iter().map(|code| code & 0x7f).max(), Some(0x7e), "the largest weight");
        }
    }

    #[test]
    fn all_sources_give_the_codes_of_their_values() {
        let halves: Vec<f16> = fill(64, 3).into_iter().map(f16::from_f32).collect();
        let brains: Vec<bf16> = fill(64, 4).into_iter().map(bf16::from_f32).collect();
        let wide = |values: Vec<f32>| Fp8Rows::quantize(WeightData::F32(&values), 16).expect("whole rows");
        assert_eq!(
            Fp8Rows::quantize(WeightData::F16(&halves), 16).expect("whole rows"),
            wide(halves.iter().map(|x| x.to_f32()).collect())
        );
        assert_eq!(
            Fp8Rows::quantize(WeightData::BF16(&brains), 16).expect("whole rows"),
            wide(brains.iter().map(|x| x.to_f32()).collect())
        );
    }

    #[test]
    fn rows_of_nothing_are_zeros_and_with_what_is_not_finite_no_numbers() {
        for nothing in [0.0, 1e-40] {
            let rows = Fp8Rows::quantize(WeightData::F32(&[nothing; 8]), 4).expect("whole rows");
            assert_eq!(rows.dequantize(), [0.0; 8]);
        }
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let rows = Fp8Rows::quantize(WeightData::F32(&[1.0, 2.0, 3.0, wrong]), 2).expect("whole rows");
            let back = rows.dequantize();
            assert!(back[..2] == [1.0, 2.0] && back[2..].iter().all(|value| value.is_nan()), "{back:?}");
        }
        assert!(Fp8Rows::quantize(WeightData::F32(&[1.0; 5]), 2).is_err());
    }
}
