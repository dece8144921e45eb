//! Packed weights: panels of 16 output rows, the one layout that products read.
//!
//! | format | panel | beside it |
//! |---|---|---|
//! | `F32`, `F16`, `BF16` | `[k][16]` | |
//! | `Int8` | `[k / 4][16][4]` bytes `code + 128` | a scale `[groups][16]`, minima where a source has them; groups of 32, or 16 with `Q6_K` |
//! | `Int4` | a group of 32: `[4][16][4]` bytes, quad `j` in the low and quad `j + 4` in the high nibbles | a scale and a minimum `[groups][16]`; groups of 32 |
//!
//! Sixteen rows are the lanes of one vector, so a product never adds across lanes and every output is one chain of
//! additions in order of k. The byte order within a quad is that of `vpdpbusd`, whose unsigned side is the weight:
//! stored as `code + 128` it needs one correction an activation group (`128 * sum of activations`) instead of one a
//! weight group. Scales are f16 where the source's are, else f32, so that every weight is the source's, bit for bit.

use half::{bf16, f16};

use crate::{Buf, DType};

/// Output rows in a panel: the lanes of a vector.
pub(crate) const LANES: usize = 16;
/// Activations that share a scale.
pub(crate) const GROUP: usize = 32;

/// How packed weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Brain floats.
    BF16,
    /// Signed bytes with a scale a group: `Q8_0`, `Q5_0`, `Q5_K` and `Q6_K` exactly, floats quantised as `Q8_0`.
    Int8,
    /// Nibbles with a scale and a minimum a group: `Q4_0`, `Q4_1` and `Q4_K` exactly, others quantised as `Q4_1`.
    Int4,
}

impl WeightFormat {
    /// Whether activations are quantised before a product with this format.
    pub const fn is_integer(self) -> bool {
        matches!(self, WeightFormat::Int8 | WeightFormat::Int4)
    }

    /// Bytes that 32 weights take, scales left out.
    pub(crate) const fn bytes_of_group(self) -> usize {
        match self {
            WeightFormat::F32 => 128,
            WeightFormat::F16 | WeightFormat::BF16 => 64,
            WeightFormat::Int8 => 32,
            WeightFormat::Int4 => 16,
        }
    }
}

/// A packed `[n, k]` weight matrix. [`pack`](crate::pack) is the only writer.
#[derive(Debug)]
pub struct Packed {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) format: WeightFormat,
    /// Weights that share a scale: 32, or 16 for `Int8` from `Q6_K`.
    pub(crate) group: usize,
    pub(crate) weights: Buf,
    /// `[panels, groups, 16]`, f16 or f32; for integer formats.
    pub(crate) scales: Option<Buf>,
    /// As `scales`, where a source has minima.
    pub(crate) mins: Option<Buf>,
}

impl Packed {
    /// Output features: rows of the logical matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features: columns of the logical matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// How the weights are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Memory that the weights take, scales included.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
            + self.scales.as_ref().map_or(0, Buf::bytes)
            + self.mins.as_ref().map_or(0, Buf::bytes)
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// k, padded to whole activation groups for integer formats.
    pub(crate) fn k_padded(&self) -> usize {
        if self.format.is_integer() { self.k.next_multiple_of(GROUP) } else { self.k }
    }

    /// Scale groups of a row.
    pub(crate) fn groups(&self) -> usize {
        self.k_padded() / self.group
    }

    /// The integer code of a weight: signed for `Int8`, 0 to 15 for `Int4`.
    pub(crate) fn code(&self, row: usize, k: usize) -> i32 {
        let bytes = self.weights.as_bytes();
        let at = code_at(self.format, self.k_padded(), row, k);
        match self.format {
            WeightFormat::Int4 if k % GROUP >= GROUP / 2 => i32::from(bytes[at] >> 4),
            WeightFormat::Int4 => i32::from(bytes[at] & 0xf),
            _ => i32::from(bytes[at]) - 128,
        }
    }

    fn of_group(&self, buf: &Option<Buf>, row: usize, group: usize) -> f32 {
        let at = (row / LANES * self.groups() + group) * LANES + row % LANES;
        buf.as_ref().map_or(0.0, |buf| float_at(buf, at))
    }

    /// The scale of a row's group.
    pub(crate) fn scale(&self, row: usize, group: usize) -> f32 {
        self.of_group(&self.scales, row, group)
    }

    /// The minimum of a row's group; 0 where there is none.
    pub(crate) fn min(&self, row: usize, group: usize) -> f32 {
        self.of_group(&self.mins, row, group)
    }

    /// One weight.
    pub(crate) fn weight(&self, row: usize, k: usize) -> f32 {
        if self.format.is_integer() {
            let group = k / self.group;
            return self.scale(row, group) * self.code(row, k) as f32 - self.min(row, group);
        }
        float_at(&self.weights, (row / LANES * self.k + k) * LANES + row % LANES)
    }
}

fn float_at(buf: &Buf, at: usize) -> f32 {
    let bytes = buf.as_bytes();
    let half = |at: usize| [bytes[2 * at], bytes[2 * at + 1]];
    match buf.dtype() {
        DType::F16 => f16::from_ne_bytes(half(at)).to_f32(),
        DType::BF16 => bf16::from_ne_bytes(half(at)).to_f32(),
        _ => f32::from_ne_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]]),
    }
}

/// The byte that holds an integer code.
pub(crate) fn code_at(format: WeightFormat, k_padded: usize, row: usize, k: usize) -> usize {
    let (panel, lane) = (row / LANES, row % LANES);
    match format {
        WeightFormat::Int4 => {
            let quad = k % GROUP / 4 % 4;
            panel * k_padded * LANES / 2 + k / GROUP * 256 + quad * 64 + lane * 4 + k % 4
        }
        _ => panel * k_padded * LANES + k / 4 * 64 + lane * 4 + k % 4,
    }
}

/// One packed matrix an expert, all of one shape. A dense MLP is one expert.
#[derive(Debug)]
pub struct PackedExperts {
    pub(crate) experts: Vec<Packed>,
    /// Rows of one expert's result: `i` for gate and up, `n` for down.
    pub(crate) width: usize,
}

impl PackedExperts {
    /// The number of experts.
    pub fn len(&self) -> usize {
        self.experts.len()
    }

    /// Whether there are no experts.
    pub fn is_empty(&self) -> bool {
        self.experts.is_empty()
    }

    /// The packed matrix of expert `e`.
    ///
    /// # Panics
    /// When there is no such expert.
    pub fn expert(&self, e: usize) -> &Packed {
        &self.experts[e]
    }

    /// Output features of an expert: `i` for gate and up (which alternate within), `n` for down.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Memory that the weights take.
    pub fn bytes(&self) -> usize {
        self.experts.iter().map(Packed::bytes).sum()
    }
}
