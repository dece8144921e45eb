//! Quantising: activations before an integer product, weights when a target format asks for it.

use half::f16;

use crate::gguf::Codes;
use crate::packed::GROUP;

/// A row of activations as signed bytes: `value = scale * code`, a scale for 32 values.
///
/// `row` is padded with zeros to whole groups. Returns through the slices: `codes` (padded), `scales` (one a group),
/// `sums` (of codes, one for 16), `scaled_sums` (`scale * sum` for each 16) and `scaled_group_sums` (for each 32).
pub(crate) struct QuantizedRow<'a> {
    pub(crate) codes: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    pub(crate) sums: &'a mut [i32],
    pub(crate) scaled_sums: &'a mut [f32],
    pub(crate) scaled_group_sums: &'a mut [f32],
}

impl QuantizedRow<'_> {
    /// Plain loops; the vector code in `cpu` gives the same bits.
    pub(crate) fn reference(&mut self, row: &[f32]) {
        for (group, values) in row.chunks(GROUP).enumerate() {
            let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            self.scales[group] = largest / 127.0;
            let codes = &mut self.codes[group * GROUP..(group + 1) * GROUP];
            codes.fill(0);
            for (code, value) in codes.iter_mut().zip(values) {
                *code = (value * inverse).round_ties_even() as i8;
            }
            self.finish_group(group);
        }
    }

    /// Fills the sums of a group from its codes and scale.
    #[inline(always)]
    pub(crate) fn finish_group(&mut self, group: usize) {
        let codes = &self.codes[group * GROUP..(group + 1) * GROUP];
        let sum = |codes: &[i8]| codes.iter().map(|&c| i32::from(c)).sum::<i32>();
        let (first, second) = (sum(&codes[..16]), sum(&codes[16..]));
        let scale = self.scales[group];
        self.sums[2 * group] = first;
        self.sums[2 * group + 1] = second;
        self.scaled_sums[2 * group] = scale * first as f32;
        self.scaled_sums[2 * group + 1] = scale * second as f32;
        self.scaled_group_sums[group] = scale * (first + second) as f32;
    }
}

/// Weights as ggml's `quantize_row_q8_0` makes them: an f16 scale of largest / 127 for 32.
pub(crate) fn weights_int8(row: &[f32], out: &mut Codes) {
    for values in row.chunks(GROUP) {
        let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = largest / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        out.codes.extend(values.iter().map(|v| (v * inverse).round() as i8));
        finish(out, f16::from_f32(scale).to_f32(), 0.0);
    }
}

/// Weights as ggml's `quantize_row_q4_1` makes them: an f16 scale of (max - min) / 15 and an f16 minimum for 32.
pub(crate) fn weights_int4(row: &[f32], out: &mut Codes) {
    for values in row.chunks(GROUP) {
        let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        let scale = (high - low) / 15.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        out.codes.extend(values.iter().map(|v| (((v - low) * inverse + 0.5) as i8).min(15)));
        finish(out, f16::from_f32(scale).to_f32(), -f16::from_f32(low).to_f32());
    }
}

fn finish(out: &mut Codes, scale: f32, min: f32) {
    out.codes.resize(out.codes.len().next_multiple_of(GROUP), 0);
    out.scales.push(scale);
    out.mins.push(min);
}
