//! Weights as a checkpoint stores them: row-major floats or GGUF blocks.

use half::{bf16, f16};

use crate::error::{Result, expect_shape};
use crate::gguf::Block;

/// What the loader hands to [`pack`](crate::pack): a row-major `[rows, k]` matrix.
#[derive(Debug, Clone, Copy)]
pub enum WeightData<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// Brain floats.
    BF16(&'a [bf16]),
    /// GGUF `Q8_0` blocks: 32 signed bytes and an f16 scale.
    Q8_0(&'a [u8]),
    /// GGUF `Q5_0` blocks: 32 five-bit codes and an f16 scale. What `Q4_K` falls back to for rows that are no multiple of 256.
    Q5_0(&'a [u8]),
    /// GGUF `Q4_0` blocks: 32 nibbles and an f16 scale.
    Q4_0(&'a [u8]),
    /// GGUF `Q4_1` blocks: 32 nibbles, an f16 scale and an f16 minimum.
    Q4_1(&'a [u8]),
    /// GGUF `Q4_K` super-blocks: 8 groups of 32 nibbles with six-bit scales and minima.
    Q4K(&'a [u8]),
    /// GGUF `Q5_K` super-blocks: 8 groups of 32 five-bit codes with six-bit scales and minima.
    Q5K(&'a [u8]),
    /// GGUF `Q6_K` super-blocks: 16 groups of 16 six-bit codes with signed byte scales.
    Q6K(&'a [u8]),
}

impl<'a> WeightData<'a> {
    /// The GGUF block type and the bytes; `None` for floats.
    pub(crate) fn blocks(&self) -> Option<(Block, &'a [u8])> {
        match *self {
            WeightData::F32(_) | WeightData::F16(_) | WeightData::BF16(_) => None,
            WeightData::Q8_0(bytes) => Some((Block::Q8_0, bytes)),
            WeightData::Q5_0(bytes) => Some((Block::Q5_0, bytes)),
            WeightData::Q4_0(bytes) => Some((Block::Q4_0, bytes)),
            WeightData::Q4_1(bytes) => Some((Block::Q4_1, bytes)),
            WeightData::Q4K(bytes) => Some((Block::Q4K, bytes)),
            WeightData::Q5K(bytes) => Some((Block::Q5K, bytes)),
            WeightData::Q6K(bytes) => Some((Block::Q6K, bytes)),
        }
    }

    /// Checks that the data is a `[rows, k]` matrix of whole blocks.
    pub(crate) fn expect(&self, op: &'static str, rows: usize, k: usize) -> Result<()> {
        let (found, expected) = match self.blocks() {
            Some((block, bytes)) => {
                expect_shape(op, "k modulo the block size", &[k % block.len()], &[0])?;
                (bytes.len(), rows * block.row_bytes(k))
            }
            None => {
                let len = match self {
                    WeightData::F32(values) => values.len(),
                    WeightData::F16(values) => values.len(),
                    WeightData::BF16(values) => values.len(),
                    _ => 0,
                };
                (len, rows * k)
            }
        };
        expect_shape(op, "weight data length", &[found], &[expected])
    }

    /// Decodes row `row` of a matrix of rows of `out.len()` elements; `expect` has passed.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let k = out.len();
        let range = row * k..(row + 1) * k;
        match self {
            WeightData::F32(values) => out.copy_from_slice(&values[range]),
            WeightData::F16(values) => out.iter_mut().zip(&values[range]).for_each(|(o, v)| *o = v.to_f32()),
            WeightData::BF16(values) => out.iter_mut().zip(&values[range]).for_each(|(o, v)| *o = v.to_f32()),
            _ => {
                if let Some((block, bytes)) = self.blocks() {
                    let size = block.row_bytes(k);
                    block.decode_row(&bytes[row * size..(row + 1) * size], out);
                }
            }
        }
    }
}
