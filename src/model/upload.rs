//! Rows of any source, in the device's element type, a chunk at a time.

use half::{bf16, f16};
use rayon::prelude::*;
use tarn_kernels::device::expert_stream::interleave;
use tarn_kernels::device::{Device, Ptr, Use, Weights};
use tarn_kernels::fp8::Fp8Rows;
use tarn_kernels::{DType, KernelError, WeightData};

use super::decoder::DeviceFormat;
use super::error::Result;

/// Bytes of a chunk, about.
const CHUNK: usize = 16 << 20;
/// Rows of gate, then of up, that alternate.
const PANEL: usize = 8;

/// Brings tensors to a device.
pub(super) struct Uploader<'d> {
    device: &'d mut dyn Device,
    dtype: DType,
    projections: DeviceFormat,
}

impl<'d> Uploader<'d> {
    /// Tables become `dtype`, bf16 or f16; projections that, or fp8.
    pub(super) fn new(device: &'d mut dyn Device, dtype: DType, projections: DeviceFormat) -> Uploader<'d> {
        Uploader { device, dtype, projections }
    }

    /// `data [rows, k]` in the element type.
    pub(super) fn table(&mut self, name: &str, data: WeightData<'_>, k: usize) -> Result<Ptr> {
        let to = self.device.alloc(name, row_count(data, k)? * k * self.dtype.size(), Use::Read)?;
        self.plain(to, 0, data, k)?;
        Ok(to)
    }

    /// Room for a projection of `rows` rows of `k` weights.
    pub(super) fn projection(&mut self, name: &str, rows: usize, k: usize) -> Result<Weights> {
        let mut alloc = |name: &str, bytes: usize| self.device.alloc(name, bytes, Use::Read);
        Ok(match self.projections {
            DeviceFormat::Plain => Weights::Plain(alloc(name, rows * k * self.dtype.size())?),
            DeviceFormat::Fp8 => Weights::Fp8 {
                codes: alloc(name, rows * k)?,
                scales: alloc(&format!("scales of {name}"), rows * 4)?,
            },
        })
    }

    /// A buffer with `values`, f32.
    pub(super) fn vector(&mut self, name: &str, values: &[f32]) -> Result<Ptr> {
        let to = self.device.alloc(name, values.len() * 4, Use::Read)?;
        self.floats(to, 0, values)?;
        Ok(to)
    }

    /// Writes `data [rows, k]` to a projection's rows from `first` on.
    pub(super) fn rows(&mut self, to: Weights, first: usize, data: WeightData<'_>, k: usize) -> Result<()> {
        match to {
            Weights::Plain(to) => self.plain(to, first, data, k),
            Weights::Fp8 { codes, scales } => {
                let rows = Fp8Rows::quantize(data, k)?;
                self.device.upload(codes, first * k, &rows.codes)?;
                self.floats(scales, first, &rows.scales)
            }
        }
    }

    /// Writes `gate` and `up`, `[rows, k]` each, to a projection's rows from `first` on: eight of one, then eight of the other.
    pub(super) fn gated(
        &mut self,
        to: Weights,
        first: usize,
        gate: WeightData<'_>,
        up: WeightData<'_>,
        k: usize,
    ) -> Result<()> {
        let rows = row_count(gate, k)?;
        let to = match to {
            Weights::Plain(to) => to,
            Weights::Fp8 { codes, scales } => {
                let (gate, up) = (Fp8Rows::quantize(gate, k)?, Fp8Rows::quantize(up, k)?);
                self.device.upload(codes, first * k, &interleave(&gate.codes, &up.codes, rows, k)?)?;
                return self.floats(scales, first, &interleave(&gate.scales, &up.scales, rows, 1)?);
            }
        };
        let row_bytes = k * self.dtype.size();
        let each = (CHUNK / (2 * row_bytes).max(1)).next_multiple_of(PANEL).max(PANEL);
        for from in (0..rows).step_by(each) {
            let count = each.min(rows - from);
            let [gate, up] = [gate, up].map(|data| self.converted(data, from, count, k));
            let bytes = interleave(&gate, &up, count, row_bytes)?;
            self.device.upload(to, (first + 2 * from) * row_bytes, &bytes)?;
        }
        Ok(())
    }

    /// Writes `data [rows, k]` in the element type to the rows from `first` on.
    fn plain(&mut self, to: Ptr, first: usize, data: WeightData<'_>, k: usize) -> Result<()> {
        let (rows, row_bytes) = (row_count(data, k)?, k * self.dtype.size());
        let each = (CHUNK / row_bytes.max(1)).max(1);
        for from in (0..rows).step_by(each) {
            let bytes = self.converted(data, from, each.min(rows - from), k);
            self.device.upload(to, (first + from) * row_bytes, &bytes)?;
        }
        Ok(())
    }

    /// Writes f32 from element `first` on.
    fn floats(&mut self, to: Ptr, first: usize, values: &[f32]) -> Result<()> {
        let each = CHUNK / 4;
        for (at, part) in values.chunks(each).enumerate() {
            let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.device.upload(to, (first + at * each) * 4, &bytes)?;
        }
        Ok(())
    }

    /// Rows `from..from + count` as bytes.
    fn converted(&self, data: WeightData<'_>, from: usize, count: usize, k: usize) -> Vec<u8> {
        let dtype = self.dtype;
        let row_bytes = k * dtype.size();
        let mut bytes = vec![0; count * row_bytes];
        bytes.par_chunks_exact_mut(row_bytes.max(1)).enumerate().for_each_init(
            || vec![0.0; k],
            |row, (at, to)| {
                data.row(from + at, row);
                narrow(dtype, row, to);
            },
        );
        bytes
    }
}

/// `values` in `dtype`, as device memory has them.
pub(super) fn narrow(dtype: DType, values: &[f32], to: &mut [u8]) {
    let pairs = to.as_chunks_mut::<2>().0.iter_mut().zip(values);
    match dtype {
        DType::F16 => pairs.for_each(|(to, value)| *to = f16::from_f32(*value).to_le_bytes()),
        _ => pairs.for_each(|(to, value)| *to = bf16::from_f32(*value).to_le_bytes()),
    }
}

fn row_count(data: WeightData<'_>, k: usize) -> Result<usize> {
    let op = "device::upload";
    Ok(data.rows(k).ok_or(KernelError::Unsupported { op, what: "a row length", value: k })?)
}
