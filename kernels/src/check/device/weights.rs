//! Weights of the cases, plain and as fp8 codes.

use super::CheckDevice;
use super::compare::{read_only, tensor};
use crate::check::hash;
use crate::device::Weights;
use crate::device::expert_stream::interleave;
use crate::pack::WeightData;
use crate::{DType, Fp8Rows};

/// How a case's weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// In the activations' element type.
    Plain,
    /// As codes with a scale a row.
    Fp8,
}

impl Stored {
    /// Both.
    pub(super) const ALL: [Stored; 2] = [Stored::Plain, Stored::Fp8];

    /// A width of plain weights with as many 16-byte parts of these.
    pub(super) fn width(self, plain: usize) -> usize {
        if self == Stored::Fp8 { 2 * plain } else { plain }
    }
}

/// Weight rows as they are in device memory, and what they are there.
#[derive(Debug)]
pub(super) struct Rows {
    bytes: Vec<u8>,
    scales: Vec<f32>,
    /// `[n, k]`.
    pub(super) values: Vec<f32>,
}

impl Rows {
    /// `values` in rows of `k`. Those that get scales are made smaller, each by another factor, so that the scales of
    /// neighbours differ.
    pub(super) fn new(stored: Stored, dtype: DType, mut values: Vec<f32>, k: usize) -> Rows {
        if stored == Stored::Plain {
            let rows = tensor(dtype, &values);
            return Rows { bytes: rows.bytes, scales: Vec::new(), values: rows.values };
        }
        for (row, values) in values.chunks_exact_mut(k).enumerate() {
            let by = (1 + hash(row as u64, values[0].to_bits().into()) % 8) as f32 / 8.0;
            values.iter_mut().for_each(|value| *value *= by);
        }
        Rows::of_codes(Fp8Rows::quantize(WeightData::F32(&values), k).expect("finite values in whole rows"))
    }

    /// These codes.
    pub(super) fn of_codes(rows: Fp8Rows) -> Rows {
        Rows { values: rows.dequantize(), bytes: rows.codes, scales: rows.scales }
    }

    /// The rows of a product with gates and ups, as the device has them.
    pub(super) fn interleaved(gate: &Rows, up: &Rows, inner: usize) -> Rows {
        let both = "gate and up have the same whole panels";
        let row = |len: usize| len / inner;
        Rows {
            bytes: interleave(&gate.bytes, &up.bytes, inner, row(gate.bytes.len())).expect(both),
            scales: interleave(&gate.scales, &up.scales, inner, row(gate.scales.len())).expect(both),
            values: interleave(&gate.values, &up.values, inner, row(gate.values.len())).expect(both),
        }
    }

    /// Matrices one after another in device memory.
    pub(super) fn upload(all: &[Rows], device: &mut dyn CheckDevice, name: &str) -> Result<Weights, String> {
        let bytes: Vec<u8> = all.iter().flat_map(|rows| rows.bytes.iter().copied()).collect();
        let scales: Vec<f32> = all.iter().flat_map(|rows| rows.scales.iter().copied()).collect();
        let rows = read_only(device, name, &bytes)?;
        if scales.is_empty() {
            return Ok(Weights::Plain(rows));
        }
        let scales = read_only(device, &format!("{name} scales"), &tensor(DType::F32, &scales).bytes)?;
        Ok(Weights::Fp8 { codes: rows, scales })
    }
}
