//! Weights as the products want them: panels of 16 rows. This is the only writer of packed weights.
//!
//! The logical layout is `[N, K]`, K contiguous. A panel holds 16 rows (the last one padded with zeros):
//!
//! | format | a panel |
//! |---|---|
//! | F32, F16, BF16 | `[K][16]` |
//! | Fp8 | codes u8 `[K][16]`, then scales f32 `[16]` |
//! | Int8 | codes + 128 as u8 `[K/4][16][4]`, then scales f32 `[K/g][16]`, g = 32 (Q8_0) or 16 (Q6_K) |
//! | Int4 | nibbles `[K/32][4][64]` (byte `j` of step `s`: low = k-step `s`, high = k-step `s + 4`), then scales and minima f32 `[K/32][16]` each |
//!
//! Rows that were fused from several sources (q, k, v) are segments, so that each may keep its own format. In
//! gate-and-up panels 8 gate rows stand before their 8 up rows: one panel yields 8 outputs of silu(gate) * up.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::blocks::{self, BlockFormat};
use crate::buf::{Buf, DType, bytes_of};
use crate::cpu::LANES;
use crate::error::{KernelError, Result, same};
use crate::fp8;

/// Panels that a worker takes at a time: the widest tile. Workers take the next chunk when they are done with one,
/// because cores are shared with other work and a fixed share ends with the slowest of them.
pub(crate) const CHUNK: usize = 8;

/// Rows of weights as a loader finds them, row-major.
#[derive(Debug, Clone, Copy)]
pub enum WeightData<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE halves.
    F16(&'a [f16]),
    /// bfloat16.
    BF16(&'a [bf16]),
    /// GGUF blocks.
    Blocks(BlockFormat, &'a [u8]),
}

/// What packed weights are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// IEEE halves.
    F16,
    /// bfloat16.
    BF16,
    /// Codes of [`fp8`] with a scale a row.
    Fp8,
    /// 8-bit codes with a scale a group.
    Int8,
    /// 4-bit codes with a scale and a minimum a group.
    Int4,
}

impl<'a> WeightData<'a> {
    fn natural(&self) -> (WeightFormat, usize) {
        match self {
            WeightData::F32(_) => (WeightFormat::F32, 1),
            WeightData::F16(_) => (WeightFormat::F16, 1),
            WeightData::BF16(_) => (WeightFormat::BF16, 1),
            WeightData::Blocks(format @ (BlockFormat::Q8_0 | BlockFormat::Q6K), _) => {
                (WeightFormat::Int8, format.group())
            }
            WeightData::Blocks(format, _) => (WeightFormat::Int4, format.group()),
        }
    }

    /// How many whole rows of `k` weights it has; `None` when `k` does not fit its blocks.
    #[must_use]
    pub fn rows(&self, k: usize) -> Option<usize> {
        let exact = |len: usize, row: usize| (row > 0 && len.is_multiple_of(row)).then(|| len / row);
        match self {
            WeightData::F32(data) => exact(data.len(), k),
            WeightData::F16(data) => exact(data.len(), k),
            WeightData::BF16(data) => exact(data.len(), k),
            WeightData::Blocks(format, data) => exact(data.len(), format.row_bytes(k)?),
        }
    }

    /// Its bytes, where its elements are of `dtype`.
    #[must_use]
    pub fn bytes(&self, dtype: DType) -> Option<&'a [u8]> {
        match (self, dtype) {
            (WeightData::F32(data), DType::F32) => bytes_of(data),
            (WeightData::F16(data), DType::F16) => bytes_of(data),
            (WeightData::BF16(data), DType::BF16) => bytes_of(data),
            _ => None,
        }
    }

    /// Row `row` as f32; `out` has `k` elements and the row exists.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let k = out.len();
        match self {
            WeightData::F32(data) => out.copy_from_slice(&data[row * k..][..k]),
            WeightData::F16(data) => {
                out.iter_mut().zip(&data[row * k..][..k]).for_each(|(to, from)| *to = from.to_f32());
            }
            WeightData::BF16(data) => {
                out.iter_mut().zip(&data[row * k..][..k]).for_each(|(to, from)| *to = from.to_f32());
            }
            WeightData::Blocks(format, data) => {
                let bytes = k / format.weights() * format.bytes();
                blocks::dequantize(*format, &data[row * bytes..][..bytes], out);
            }
        }
    }
}

/// Rows of one format that end up in adjacent columns of the product.
pub(crate) struct Segment {
    pub(crate) format: WeightFormat,
    pub(crate) group: usize,
    /// Outputs (columns of the product).
    pub(crate) n: usize,
    /// First column in the product.
    pub(crate) col: usize,
    pub(crate) panel_bytes: usize,
    pub(crate) data: Buf,
}

/// Packed weights `[N, K]`.
pub struct Packed {
    n: usize,
    k: usize,
    /// Each panel yields 8 gated outputs instead of 16 plain ones.
    gated: bool,
    segments: Vec<Segment>,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let formats: Vec<_> = self.segments.iter().map(|segment| segment.format).collect();
        write!(f, "Packed([{}, {}] {formats:?})", self.n, self.k)
    }
}

impl Packed {
    /// Outputs.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Memory of the packed weights in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.data.byte_len()).sum()
    }

    /// The format of each fused part.
    pub fn formats(&self) -> impl Iterator<Item = WeightFormat> + '_ {
        self.segments.iter().map(|segment| segment.format)
    }

    pub(crate) fn is_gated(&self) -> bool {
        self.gated
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Chunks of panels.
    pub(crate) fn chunks(&self) -> usize {
        self.segments.iter().map(|segment| segment.data.shape()[0].div_ceil(CHUNK)).sum()
    }
}

/// Packed weights of all experts of a layer, one shape; a dense MLP is one expert.
#[derive(Debug)]
pub struct PackedExperts {
    experts: Vec<Packed>,
}

impl PackedExperts {
    /// Number of experts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.experts.len()
    }

    /// The first expert alone.
    pub(crate) fn into_first(self) -> Option<Packed> {
        self.experts.into_iter().next()
    }

    /// Whether there are none (never, for packed weights).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.experts.is_empty()
    }

    /// Expert `at`.
    ///
    /// # Panics
    /// When there is no such expert.
    #[must_use]
    pub fn expert(&self, at: usize) -> &Packed {
        &self.experts[at]
    }

    pub(crate) fn all(&self) -> &[Packed] {
        &self.experts
    }

    /// Memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.experts.iter().map(Packed::bytes).sum()
    }
}

/// Where packed row `r` of a segment comes from; `None` is padding.
type RowOf<'a> = dyn Fn(usize) -> Option<(WeightData<'a>, usize)> + Sync + 'a;

/// Packs `data` `[n, k]`; `target` converts floats (and dequantises blocks), `None` keeps what is there. As fp8, a row
/// with a weight that is not finite yields no number.
///
/// # Errors
/// [`KernelError::Shape`] when `data` is not `[n, k]`, [`KernelError::OutOfMemory`].
pub fn dense(data: WeightData<'_>, n: usize, k: usize, target: Option<WeightFormat>) -> Result<Packed> {
    dense_rows(&[(data, n)], k, target)
}

/// Packs the rows of several sources below each other (q, k and v into one product).
///
/// # Errors
/// As [`dense`].
pub fn dense_rows(
    parts: &[(WeightData<'_>, usize)],
    k: usize,
    target: Option<WeightFormat>,
) -> Result<Packed> {
    let mut segments = Vec::with_capacity(parts.len());
    let mut col = 0;
    for (data, n) in parts {
        check_rows(*data, *n, k)?;
        let (format, group) = resolve(&[*data], target)?;
        segments.push(segment(format, group, *n, n.div_ceil(LANES), col, k, &|row| {
            (row < *n).then_some((*data, row))
        })?);
        col += n;
    }
    Ok(Packed { n: col, k, gated: false, segments })
}

/// Packs gate (w1) and up (w3) of each expert, `[i, h]` each, into gated panels.
///
/// # Errors
/// As [`dense`].
pub fn gate_up(
    gate: &[WeightData<'_>],
    up: &[WeightData<'_>],
    i: usize,
    h: usize,
    target: Option<WeightFormat>,
) -> Result<PackedExperts> {
    same("pack::gate_up", "number of up projections", up.len(), gate.len())?;
    let mut experts = Vec::with_capacity(gate.len());
    for (gate, up) in gate.iter().zip(up) {
        check_rows(*gate, i, h)?;
        check_rows(*up, i, h)?;
        let (format, group) = resolve(&[*gate, *up], target)?;
        let half = LANES / 2;
        let row_of = |packed: usize| {
            let (panel, lane) = (packed / LANES, packed % LANES);
            let row = panel * half + lane % half;
            (row < i).then_some((if lane < half { *gate } else { *up }, row))
        };
        let segments = vec![segment(format, group, i, i.div_ceil(half), 0, h, &row_of)?];
        experts.push(Packed { n: i, k: h, gated: true, segments });
    }
    Ok(PackedExperts { experts })
}

/// Packs one `[n, k]` matrix an expert (w2).
///
/// # Errors
/// As [`dense`].
pub fn experts(
    data: &[WeightData<'_>],
    n: usize,
    k: usize,
    target: Option<WeightFormat>,
) -> Result<PackedExperts> {
    let experts = data.iter().map(|data| dense(*data, n, k, target)).collect::<Result<Vec<_>>>()?;
    Ok(PackedExperts { experts })
}

/// The weights as f32 `[N, K]`; gated panels come back as all gate rows, then all up rows. For references and tests.
#[must_use]
pub fn unpack(packed: &Packed) -> Vec<f32> {
    let k = packed.k;
    let mut out = vec![0.0; packed.n * k * if packed.gated { 2 } else { 1 }];
    for segment in &packed.segments {
        for row in 0..segment.data.byte_len() / segment.panel_bytes * LANES {
            let (panel, lane) = (row / LANES, row % LANES);
            let to = if packed.gated {
                let logical = panel * 8 + lane % 8;
                if logical >= segment.n { continue } else { logical + if lane < 8 { 0 } else { packed.n } }
            } else if row >= segment.n {
                continue;
            } else {
                segment.col + row
            };
            unpack_row(segment, row, &mut out[to * k..(to + 1) * k]);
        }
    }
    out
}

/// Row `row` of a segment (panel order) as f32.
pub(crate) fn unpack_row(segment: &Segment, row: usize, out: &mut [f32]) {
    let (panel, lane) = (row / LANES, row % LANES);
    let bytes = &segment.data.bytes()[panel * segment.panel_bytes..][..segment.panel_bytes];
    let k = out.len();
    let f32_at = |bytes: &[u8], at: usize| {
        f32::from_le_bytes(bytes[at * 4..at * 4 + 4].try_into().unwrap_or_default())
    };
    for (at, value) in out.iter_mut().enumerate() {
        let flat = at * LANES + lane;
        *value = match segment.format {
            WeightFormat::F32 => f32_at(bytes, flat),
            WeightFormat::F16 => f16::from_le_bytes([bytes[flat * 2], bytes[flat * 2 + 1]]).to_f32(),
            WeightFormat::BF16 => bf16::from_le_bytes([bytes[flat * 2], bytes[flat * 2 + 1]]).to_f32(),
            WeightFormat::Fp8 => f32_at(&bytes[k * LANES..], lane) * fp8::decode(bytes[flat]),
            WeightFormat::Int8 => {
                let code = i32::from(bytes[(at / 4 * LANES + lane) * 4 + at % 4]) - 128;
                code as f32 * f32_at(&bytes[k * LANES..], at / segment.group * LANES + lane)
            }
            WeightFormat::Int4 => {
                let group = at / 32;
                let code = int4_code(bytes, at, lane);
                let scales = &bytes[k * LANES / 2..];
                let mins = &scales[k / 32 * LANES * 4..];
                (code as f32)
                    .mul_add(f32_at(scales, group * LANES + lane), -f32_at(mins, group * LANES + lane))
            }
        };
    }
}

/// The code of weight `at` of lane `lane` in an Int4 panel.
pub(crate) fn int4_code(panel: &[u8], at: usize, lane: usize) -> i32 {
    let (group, step, byte) = (at / 32, at % 32 / 4, at % 4);
    let pair = panel[group * 256 + step % 4 * 64 + lane * 4 + byte];
    i32::from(if step < 4 { pair & 0xf } else { pair >> 4 })
}

fn check_rows(data: WeightData<'_>, n: usize, k: usize) -> Result<()> {
    let rows = data.rows(k).ok_or(KernelError::Unsupported { op: "pack", what: "a row length", value: k })?;
    same("pack", "number of rows", rows, n)
}

/// The format for one set of panels: the target, or what all sources share, or f16 where they differ.
fn resolve(sources: &[WeightData<'_>], target: Option<WeightFormat>) -> Result<(WeightFormat, usize)> {
    let first = sources[0].natural();
    match target {
        Some(WeightFormat::Int8 | WeightFormat::Int4) if Some(first.0) != target => {
            Err(KernelError::Unsupported { op: "pack", what: "quantising floats: bits", value: 8 })
        }
        Some(format @ (WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 | WeightFormat::Fp8)) => {
            Ok((format, 1))
        }
        _ if sources.iter().all(|source| source.natural() == first) => Ok(first),
        _ => Ok((WeightFormat::F16, 1)),
    }
}

fn segment<'a>(
    format: WeightFormat,
    group: usize,
    n: usize,
    panels: usize,
    col: usize,
    k: usize,
    row_of: &RowOf<'a>,
) -> Result<Segment> {
    let groups = k / group;
    let panel_bytes = match format {
        WeightFormat::F32 => k * LANES * 4,
        WeightFormat::F16 | WeightFormat::BF16 => k * LANES * 2,
        WeightFormat::Fp8 => k * LANES + LANES * 4,
        WeightFormat::Int8 => k * LANES + groups * LANES * 4,
        WeightFormat::Int4 => k * LANES / 2 + groups * LANES * 8,
    };
    let mut data = Buf::zeros(DType::U8, &[panels, panel_bytes])?;
    data.bytes_mut().par_chunks_exact_mut(panel_bytes.max(1)).enumerate().for_each(|(panel, bytes)| {
        match format {
            WeightFormat::Int8 | WeightFormat::Int4 => int_panel(format, group, panel, k, row_of, bytes),
            WeightFormat::Fp8 => fp8_panel(panel, k, row_of, bytes),
            _ => float_panel(format, panel, k, row_of, bytes),
        }
    });
    Ok(Segment { format, group, n, col, panel_bytes, data })
}

fn float_panel(format: WeightFormat, panel: usize, k: usize, row_of: &RowOf<'_>, bytes: &mut [u8]) {
    let mut row = vec![0.0_f32; k];
    for lane in 0..LANES {
        let Some((data, from)) = row_of(panel * LANES + lane) else { continue };
        data.row(from, &mut row);
        for (at, value) in row.iter().enumerate() {
            let flat = at * LANES + lane;
            match format {
                WeightFormat::F16 => {
                    bytes[flat * 2..flat * 2 + 2].copy_from_slice(&f16::from_f32(*value).to_le_bytes())
                }
                WeightFormat::BF16 => {
                    bytes[flat * 2..flat * 2 + 2].copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
                }
                _ => bytes[flat * 4..flat * 4 + 4].copy_from_slice(&value.to_le_bytes()),
            }
        }
    }
}

fn fp8_panel(panel: usize, k: usize, row_of: &RowOf<'_>, bytes: &mut [u8]) {
    let mut row = vec![0.0_f32; k];
    let (codes, scales) = bytes.split_at_mut(k * LANES);
    for lane in 0..LANES {
        let Some((data, from)) = row_of(panel * LANES + lane) else { continue };
        data.row(from, &mut row);
        let scale = fp8::scale_of(&row);
        scales[lane * 4..][..4].copy_from_slice(&scale.to_le_bytes());
        for (at, value) in row.iter().enumerate() {
            codes[at * LANES + lane] = fp8::encode(value / scale);
        }
    }
}

fn int_panel(
    format: WeightFormat,
    group: usize,
    panel: usize,
    k: usize,
    row_of: &RowOf<'_>,
    bytes: &mut [u8],
) {
    let int8 = format == WeightFormat::Int8;
    let (codes_end, groups) = (if int8 { k * LANES } else { k * LANES / 2 }, k / group);
    if int8 {
        bytes[..codes_end].fill(128);
    }
    let mut codes = [0_i8; 256];
    let mut pairs = [(0.0_f32, 0.0_f32); 16];
    for lane in 0..LANES {
        let Some((WeightData::Blocks(block_format, data), from)) = row_of(panel * LANES + lane) else {
            continue;
        };
        let row_bytes = k / block_format.weights() * block_format.bytes();
        let row = &data[from * row_bytes..][..row_bytes];
        for (index, block) in row.chunks_exact(block_format.bytes()).enumerate() {
            blocks::decode(block_format, block, &mut codes, &mut pairs);
            let weights = block_format.weights();
            for (inner, code) in codes[..weights].iter().enumerate() {
                let at = index * weights + inner;
                if int8 {
                    bytes[(at / 4 * LANES + lane) * 4 + at % 4] = (i32::from(*code) + 128) as u8;
                } else {
                    let (in_group, step, byte) = (at / 32, at % 32 / 4, at % 4);
                    let to = in_group * 256 + step % 4 * 64 + lane * 4 + byte;
                    bytes[to] |= (*code as u8) << if step < 4 { 0 } else { 4 };
                }
            }
            for (inner, (scale, min)) in pairs[..weights / group].iter().enumerate() {
                let at = ((index * weights / group + inner) * LANES + lane) * 4 + codes_end;
                bytes[at..at + 4].copy_from_slice(&scale.to_le_bytes());
                if !int8 {
                    let at = at + groups * LANES * 4;
                    bytes[at..at + 4].copy_from_slice(&min.to_le_bytes());
                }
            }
        }
    }
}
