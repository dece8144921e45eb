//! Rows of any source, in the device's element type.
//!
//! What is stored in that type goes up as it is, straight from the mapped file; the rest is converted a chunk at a time, by
//! all threads. Dummies are filled on the device.

use half::{bf16, f16};
use rayon::prelude::*;
use tarn_kernels::device::expert_stream::interleave;
use tarn_kernels::device::fill::{Fill, fill, fill_alternating};
use tarn_kernels::device::{Device, Ptr, Use, Weights};
use tarn_kernels::fp8::{self, Fp8Rows};
use tarn_kernels::{DType, KernelError, WeightData};

use super::decoder::DeviceFormat;
use super::error::Result;
use super::weights::{DummyTensor, Elements};

/// Bytes of a chunk, about: enough for all threads, and still in the processor's cache when it goes up.
const CHUNK: usize = 8 << 20;
/// Rows of gate, then of up, that alternate.
const PANEL: usize = 8;

/// Brings tensors to a device.
pub(super) struct Uploader<'d> {
    device: &'d mut dyn Device,
    dtype: DType,
    projections: DeviceFormat,
    weights: Use,
    /// What was converted last.
    chunk: Vec<u8>,
}

/// Which rows of a projection a tensor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// One after another.
    All,
    /// Eight, then not the next eight, and so on.
    EveryOtherPanel,
}

impl<'d> Uploader<'d> {
    /// Tables become `dtype`, bf16 or f16; projections that, or fp8. `weights` is what both are to kernels.
    pub(super) fn new(
        device: &'d mut dyn Device,
        dtype: DType,
        projections: DeviceFormat,
        weights: Use,
    ) -> Uploader<'d> {
        Uploader { device, dtype, projections, weights, chunk: Vec::new() }
    }

    /// `data [rows, k]` in the element type.
    pub(super) fn table(&mut self, name: &str, data: &Elements<'_>, k: usize) -> Result<Ptr> {
        let bytes = row_count(data, k)? * k * self.dtype.size();
        let to = self.device.alloc(name, bytes, self.weights)?;
        self.rows(Weights::Plain(to), 0, data, k)?;
        Ok(to)
    }

    /// Room for a projection of `rows` rows of `k` weights.
    pub(super) fn projection(&mut self, name: &str, rows: usize, k: usize) -> Result<Weights> {
        let mut alloc = |name: &str, bytes: usize, r#use: Use| self.device.alloc(name, bytes, r#use);
        Ok(match self.projections {
            DeviceFormat::Plain => Weights::Plain(alloc(name, rows * k * self.dtype.size(), self.weights)?),
            DeviceFormat::Fp8 => Weights::Fp8 {
                codes: alloc(name, rows * k, self.weights)?,
                scales: alloc(&format!("scales of {name}"), rows * 4, Use::Read)?,
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
    pub(super) fn rows(&mut self, to: Weights, first: usize, data: &Elements<'_>, k: usize) -> Result<()> {
        let rows = row_count(data, k)?;
        match (data, to) {
            (Elements::Dummy(tensor), _) => {
                self.fill(to, first, tensor, k, Rows::All)?;
                self.dummy_scales(to, first, rows)
            }
            (data, Weights::Plain(to)) => self.plain(to, first, data.data(), k, rows),
            (data, Weights::Fp8 { codes, scales }) => {
                let rows = Fp8Rows::quantize(data.data(), k)?;
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
        gate: &Elements<'_>,
        up: &Elements<'_>,
        k: usize,
    ) -> Result<()> {
        const OP: &str = "device::upload";
        let (rows, ups) = (row_count(gate, k)?, row_count(up, k)?);
        if ups != rows {
            return Err(KernelError::Shape { op: OP, what: "rows of up", found: ups, expected: rows }.into());
        }
        if !rows.is_multiple_of(PANEL) {
            return Err(KernelError::Unsupported { op: OP, what: "an inner width", value: rows }.into());
        }
        if let (Elements::Dummy(gate), Elements::Dummy(up)) = (gate, up) {
            self.fill(to, first, gate, k, Rows::EveryOtherPanel)?;
            self.fill(to, first + PANEL, up, k, Rows::EveryOtherPanel)?;
            return self.dummy_scales(to, first, 2 * rows);
        }
        let (gate, up) = (gate.data(), up.data());
        match to {
            Weights::Plain(to) => self.plain_gated(to, first, gate, up, k, rows),
            Weights::Fp8 { codes, scales } => {
                let (gate, up) = (Fp8Rows::quantize(gate, k)?, Fp8Rows::quantize(up, k)?);
                self.device.upload(codes, first * k, &interleave(&gate.codes, &up.codes, rows, k)?)?;
                self.floats(scales, first, &interleave(&gate.scales, &up.scales, rows, 1)?)
            }
        }
    }

    /// Writes `data [rows, k]` in the element type to the rows from `first` on.
    fn plain(&mut self, to: Ptr, first: usize, data: WeightData<'_>, k: usize, rows: usize) -> Result<()> {
        let (dtype, row_bytes) = (self.dtype, k * self.dtype.size());
        if let Some(bytes) = data.bytes(dtype) {
            return Ok(self.device.upload(to, first * row_bytes, bytes)?);
        }
        let each = (CHUNK / row_bytes).max(1);
        for from in (0..rows).step_by(each) {
            self.chunk.resize(each.min(rows - from) * row_bytes, 0);
            let chunk = self.chunk.par_chunks_exact_mut(row_bytes).enumerate();
            chunk.for_each_init(Vec::new, |row, (at, to)| convert(dtype, data, from + at, k, row, to));
            self.device.upload(to, (first + from) * row_bytes, &self.chunk)?;
        }
        Ok(())
    }

    /// As [`Uploader::gated`], in the element type.
    fn plain_gated(
        &mut self,
        to: Ptr,
        first: usize,
        gate: WeightData<'_>,
        up: WeightData<'_>,
        k: usize,
        rows: usize,
    ) -> Result<()> {
        let (dtype, row_bytes) = (self.dtype, k * self.dtype.size());
        let each = (CHUNK / (2 * row_bytes)).next_multiple_of(PANEL).max(PANEL);
        for from in (0..rows).step_by(each) {
            self.chunk.resize(2 * each.min(rows - from) * row_bytes, 0);
            let panels = self.chunk.par_chunks_exact_mut(PANEL * row_bytes).enumerate();
            panels.for_each_init(Vec::new, |row, (at, to)| {
                let data = if at.is_multiple_of(2) { gate } else { up };
                convert(dtype, data, from + at / 2 * PANEL, k, row, to);
            });
            self.device.upload(to, (first + 2 * from) * row_bytes, &self.chunk)?;
        }
        Ok(())
    }

    /// Has the device fill rows from `first` on.
    fn fill(&mut self, to: Weights, first: usize, tensor: &DummyTensor, k: usize, rows: Rows) -> Result<()> {
        let (to, dtype, scale) = match to {
            Weights::Plain(to) => (to, self.dtype, DummyTensor::BOUND),
            Weights::Fp8 { codes, .. } => (codes, DType::U8, fp8::MAX),
        };
        let out = to.offset(first * k * dtype.size());
        let op = Fill { out, dtype, len: tensor.len, seed: tensor.seed, scale };
        let launch = match rows {
            Rows::All => fill(&op)?,
            Rows::EveryOtherPanel => fill_alternating(&op, PANEL * k)?,
        };
        Ok(self.device.launch(&launch)?)
    }

    /// The scales of `rows` rows of dummies, where they have some: that of the largest value.
    fn dummy_scales(&mut self, to: Weights, first: usize, rows: usize) -> Result<()> {
        match to {
            Weights::Plain(_) => Ok(()),
            Weights::Fp8 { scales, .. } => {
                self.floats(scales, first, &vec![DummyTensor::BOUND / fp8::MAX; rows])
            }
        }
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
}

/// Writes the rows of `k` weights from `first` on that fill `to`; `row` is scratch.
fn convert(dtype: DType, data: WeightData<'_>, first: usize, k: usize, row: &mut Vec<f32>, to: &mut [u8]) {
    let row_bytes = k * dtype.size();
    if let Some(bytes) = data.bytes(dtype) {
        return to.copy_from_slice(&bytes[first * row_bytes..][..to.len()]);
    }
    row.resize(k, 0.0);
    for (at, to) in to.chunks_exact_mut(row_bytes).enumerate() {
        data.row(first + at, row);
        narrow(dtype, row, to);
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

/// How many rows of `k` weights `data` has: `k` is not 0.
fn row_count(data: &Elements<'_>, k: usize) -> Result<usize> {
    let op = "device::upload";
    Ok(data.rows(k).ok_or(KernelError::Unsupported { op, what: "a row length", value: k })?)
}
