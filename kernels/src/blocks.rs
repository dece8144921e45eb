//! GGUF's block formats: what their bytes mean.
//!
//! Source: ggml's `ggml-common.h` and `dequantize_row_*`. A row is a run of blocks; each decodes to codes with a
//! scale and a minimum per group, `w = scale * code - min`.

use half::f16;

/// A block format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 32 weights: f16 scale, 32 i8.
    Q8_0,
    /// 32 weights: f16 scale, nibbles minus 8.
    Q4_0,
    /// 32 weights: f16 scale, f16 minimum, nibbles.
    Q4_1,
    /// 256 weights: f16 scale and minimum, 6-bit scales and minima of 8 groups, nibbles.
    Q4K,
    /// 256 weights: 6-bit codes, i8 scales of 16 groups, f16 scale.
    Q6K,
}

impl BlockFormat {
    /// Weights of one block.
    #[must_use]
    pub fn weights(self) -> usize {
        match self {
            BlockFormat::Q8_0 | BlockFormat::Q4_0 | BlockFormat::Q4_1 => 32,
            BlockFormat::Q4K | BlockFormat::Q6K => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            BlockFormat::Q8_0 => 34,
            BlockFormat::Q4_0 => 18,
            BlockFormat::Q4_1 => 20,
            BlockFormat::Q4K => 144,
            BlockFormat::Q6K => 210,
        }
    }

    /// Weights that share a scale.
    #[must_use]
    pub fn group(self) -> usize {
        if self == BlockFormat::Q6K { 16 } else { 32 }
    }

    /// Bytes of a row of `k` weights; `None` when `k` is no whole number of blocks.
    #[must_use]
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        k.is_multiple_of(self.weights()).then(|| k / self.weights() * self.bytes())
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The 6-bit scale and minimum of group `j` of a Q4_K block.
fn scale_min_k4(j: usize, q: &[u8]) -> (u8, u8) {
    if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        ((q[j + 4] & 0xf) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4))
    }
}

/// Decodes one block into codes and, per group, `(scale, min)`.
///
/// Codes are -128..=127 for Q8_0, -32..=31 for Q6_K, 0..=15 for the others.
pub(crate) fn decode(format: BlockFormat, block: &[u8], codes: &mut [i8], groups: &mut [(f32, f32)]) {
    match format {
        BlockFormat::Q8_0 => {
            groups[0] = (half_at(block, 0), 0.0);
            for (code, byte) in codes.iter_mut().zip(&block[2..34]) {
                *code = *byte as i8;
            }
        }
        BlockFormat::Q4_0 => {
            let d = half_at(block, 0);
            groups[0] = (d, 8.0 * d);
            split_nibbles(&block[2..18], codes);
        }
        BlockFormat::Q4_1 => {
            groups[0] = (half_at(block, 0), -half_at(block, 2));
            split_nibbles(&block[4..20], codes);
        }
        BlockFormat::Q4K => {
            let (d, dmin) = (half_at(block, 0), half_at(block, 2));
            for j in 0..8 {
                let (scale, min) = scale_min_k4(j, &block[4..16]);
                groups[j] = (d * f32::from(scale), dmin * f32::from(min));
            }
            for pair in 0..4 {
                let bytes = &block[16 + pair * 32..48 + pair * 32];
                split_nibbles(bytes, &mut codes[pair * 64..pair * 64 + 64]);
            }
        }
        BlockFormat::Q6K => {
            let (low, high, scales) = (&block[0..128], &block[128..192], &block[192..208]);
            let d = half_at(block, 208);
            for (group, scale) in groups.iter_mut().zip(scales) {
                *group = (d * f32::from(*scale as i8), 0.0);
            }
            for part in 0..2 {
                let (ql, qh) = (&low[part * 64..], &high[part * 32..]);
                let out = &mut codes[part * 128..part * 128 + 128];
                for l in 0..32 {
                    let code = |nibble: u8, shift: u8| (nibble | (((qh[l] >> shift) & 3) << 4)) as i8 - 32;
                    out[l] = code(ql[l] & 0xf, 0);
                    out[l + 32] = code(ql[l + 32] & 0xf, 2);
                    out[l + 64] = code(ql[l] >> 4, 4);
                    out[l + 96] = code(ql[l + 32] >> 4, 6);
                }
            }
        }
    }
}

/// ggml's order: all low nibbles, then all high ones.
fn split_nibbles(bytes: &[u8], codes: &mut [i8]) {
    for (at, byte) in bytes.iter().enumerate() {
        codes[at] = (byte & 0xf) as i8;
        codes[at + bytes.len()] = (byte >> 4) as i8;
    }
}

/// The weights of a run of whole blocks as f32.
///
/// `out` must hold exactly as many weights as `bytes` has; what is beyond the shorter of the two stays untouched.
pub fn dequantize(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    let mut codes = [0_i8; 256];
    let mut groups = [(0.0_f32, 0.0_f32); 16];
    for (block, out) in bytes.chunks_exact(format.bytes()).zip(out.chunks_exact_mut(format.weights())) {
        decode(format, block, &mut codes, &mut groups);
        for (at, value) in out.iter_mut().enumerate() {
            let (scale, min) = groups[at / format.group()];
            *value = scale * f32::from(codes[at]) - min;
        }
    }
}
