//! GGUF's quantised blocks, decoded to one form: `weight = scale * code - min` a group.
//!
//! The bit layouts are those of ggml's `ggml-common.h` and `ggml-quants.c` (`dequantize_row_*`). Every format becomes
//! signed codes of at most 8 bits with an `f32` scale a group, and a minimum where the format has one; `scale * code`
//! and `- min` round as in ggml, so a decoded row is equal to ggml's bit for bit.

use half::f16;

/// A GGUF block type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    Q8_0,
    Q5_0,
    Q4_0,
    Q4_1,
    Q4K,
    Q5K,
    Q6K,
}

/// A row's codes and, a group, its scales and minima (0 where the format has none).
#[derive(Debug, Default)]
pub(crate) struct Codes {
    pub(crate) codes: Vec<i8>,
    pub(crate) scales: Vec<f32>,
    pub(crate) mins: Vec<f32>,
}

impl Codes {
    pub(crate) fn clear(&mut self) {
        self.codes.clear();
        self.scales.clear();
        self.mins.clear();
    }

    fn group(&mut self, scale: f32, min: f32, codes: impl Iterator<Item = i8>) {
        self.codes.extend(codes);
        self.scales.push(scale);
        self.mins.push(min);
    }
}

impl Block {
    /// Weights in a block.
    pub(crate) const fn len(self) -> usize {
        match self {
            Block::Q8_0 | Block::Q5_0 | Block::Q4_0 | Block::Q4_1 => 32,
            Block::Q4K | Block::Q5K | Block::Q6K => 256,
        }
    }

    /// Bytes of a block.
    const fn bytes(self) -> usize {
        match self {
            Block::Q8_0 => 34,
            Block::Q5_0 => 22,
            Block::Q4_0 => 18,
            Block::Q4_1 => 20,
            Block::Q4K => 144,
            Block::Q5K => 176,
            Block::Q6K => 210,
        }
    }

    /// Weights that share a scale.
    pub(crate) const fn group(self) -> usize {
        match self {
            Block::Q6K => 16,
            _ => 32,
        }
    }

    /// Whether groups have a minimum.
    pub(crate) const fn has_min(self) -> bool {
        matches!(self, Block::Q4_1 | Block::Q4K | Block::Q5K)
    }

    /// Whether `code` (plus 8 for `Q4_0`) fits four unsigned bits.
    pub(crate) const fn is_nibbles(self) -> bool {
        matches!(self, Block::Q4_0 | Block::Q4_1 | Block::Q4K)
    }

    /// Whether every scale and minimum is an f16.
    pub(crate) const fn has_half_scales(self) -> bool {
        matches!(self, Block::Q8_0 | Block::Q5_0 | Block::Q4_0 | Block::Q4_1)
    }

    /// Bytes of a row of `k` weights.
    pub(crate) const fn row_bytes(self, k: usize) -> usize {
        k / self.len() * self.bytes()
    }

    /// Appends the codes of a row of whole blocks.
    pub(crate) fn codes(self, row: &[u8], out: &mut Codes) {
        for block in row.chunks_exact(self.bytes()) {
            match self {
                Block::Q8_0 => out.group(half_at(block, 0), 0.0, block[2..].iter().map(|&b| b as i8)),
                Block::Q5_0 => q5_0(block, out),
                Block::Q4_0 => {
                    out.group(half_at(block, 0), 0.0, nibbles(&block[2..]).map(|q| q - 8));
                }
                Block::Q4_1 => out.group(half_at(block, 0), -half_at(block, 2), nibbles(&block[4..])),
                Block::Q4K => q4k(block, out),
                Block::Q5K => q5k(block, out),
                Block::Q6K => q6k(block, out),
            }
        }
    }

    /// Decodes a row of whole blocks.
    pub(crate) fn decode_row(self, row: &[u8], out: &mut [f32]) {
        let mut codes = Codes::default();
        let (len, bytes) = (self.len(), self.bytes());
        for (block, out) in row.chunks_exact(bytes).zip(out.chunks_exact_mut(len)) {
            codes.clear();
            self.codes(block, &mut codes);
            for (i, (out, &code)) in out.iter_mut().zip(&codes.codes).enumerate() {
                let group = i / self.group();
                *out = codes.scales[group] * f32::from(code) - codes.mins[group];
            }
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 codes of 16 bytes: the low nibbles, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = i8> {
    bytes.iter().map(|b| (b & 0xf) as i8).chain(bytes.iter().map(|b| (b >> 4) as i8))
}

fn q5_0(block: &[u8], out: &mut Codes) {
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let codes = nibbles(&block[6..]).enumerate().map(|(i, low)| (low | ((high >> i & 1) << 4) as i8) - 16);
    out.group(half_at(block, 0), 0.0, codes);
}

/// Six-bit scale and minimum of group `j` of a `Q4_K` or `Q5_K` block (`get_scale_min_k4`).
fn scale_min(j: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 0xf | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

fn q4k(block: &[u8], out: &mut Codes) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (j, bytes) in block[16..].chunks_exact(32).enumerate() {
        let (scale, min) = scale_min(2 * j, &block[4..16]);
        out.group(d * scale, dmin * min, bytes.iter().map(|b| (b & 0xf) as i8));
        let (scale, min) = scale_min(2 * j + 1, &block[4..16]);
        out.group(d * scale, dmin * min, bytes.iter().map(|b| (b >> 4) as i8));
    }
}

fn q5k(block: &[u8], out: &mut Codes) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let high = &block[16..48];
    for (j, bytes) in block[48..].chunks_exact(32).enumerate() {
        for (half, shift) in [(0, 0), (1, 4)] {
            let (scale, min) = scale_min(2 * j + half, &block[4..16]);
            let codes = bytes.iter().zip(high).map(|(b, h)| (b >> shift & 0xf | (h >> (2 * j + half) & 1) << 4) as i8);
            out.group(d * scale, dmin * min, codes);
        }
    }
}

fn q6k(block: &[u8], out: &mut Codes) {
    let (scales, d) = (&block[192..208], half_at(block, 208));
    for half in 0..2 {
        let low = &block[half * 64..][..64];
        let high = &block[128 + half * 32..][..32];
        // Quarter q of 32 weights: low nibbles of bytes 0.., 32.., then the high ones; its top bits are bits 2q of `high`.
        for quarter in 0..4 {
            let low = &low[quarter % 2 * 32..][..32];
            for part in 0..2 {
                let scale = d * f32::from(scales[half * 8 + quarter * 2 + part] as i8);
                let codes = (part * 16..part * 16 + 16).map(|l| {
                    let low = low[l] >> (quarter / 2 * 4) & 0xf;
                    let top = high[l] >> (2 * quarter) & 3;
                    (low | top << 4) as i8 - 32
                });
                out.group(scale, 0.0, codes);
            }
        }
    }
}

#[cfg(test)]
mod tests;
