//! Seeded inputs. A counter hash and not a generator crate: the same numbers can be made on any device.

use half::f16;

use crate::gguf::Block;

/// A seeded stream of numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 for a limit of 0.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.bits() % limit as u64) as usize }
    }

    /// A value in `[-1, 1)`.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `len` values in `[-1, 1)`.
    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.unit()).collect()
    }

    /// Rows of GGUF blocks with random codes and small positive scales.
    pub(crate) fn gguf_rows(&mut self, block: Block, rows: usize, k: usize) -> Vec<u8> {
        let size = block.row_bytes(block.len());
        let mut bytes: Vec<u8> = (0..rows * block.row_bytes(k)).map(|_| self.bits() as u8).collect();
        for block_bytes in bytes.chunks_exact_mut(size) {
            let mut half = |at: usize, value: f32| {
                block_bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
            };
            match block {
                Block::Q6K => half(208, 0.001 + 0.001 * self.unit().abs()),
                Block::Q4_1 | Block::Q4K | Block::Q5K => {
                    half(0, 0.01 + 0.01 * self.unit().abs());
                    half(2, 0.02 * self.unit());
                }
                _ => half(0, 0.01 + 0.01 * self.unit().abs()),
            }
        }
        bytes
    }
}
