//! From logits to tokens, `kernels/cuda/sample.cu`.
//!
//! The semantics are those of the engine's sampler: mask, bias (a ban is a bias of minus infinity), penalties, then
//! greedy or temperature, top-k, min-p, top-p and a draw with Philox keyed by seed and position.

use super::{Launch, Ptr, extent, int};
use crate::error::Result;

const THREADS: usize = 512;

/// How one row is sampled, as the kernels read it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Below 1e-5: greedy.
    pub temperature: f32,
    /// Share of the weight that is kept; 1: all.
    pub top_p: f32,
    /// Least weight relative to the likeliest; 0: all.
    pub min_p: f32,
    /// Tokens that are kept; 0: all.
    pub top_k: u32,
    /// The request's seed.
    pub seed: u64,
    /// The position of the token.
    pub position: u64,
    /// Divides (or multiplies, below zero) the logits of tokens seen; 1: off.
    pub repetition: f32,
    /// Taken from the logit for each time that a token was generated.
    pub frequency: f32,
    /// Taken from the logit of a token that was generated.
    pub presence: f32,
    /// Which row of the masks; `u32::MAX`: everything is allowed.
    pub mask: u32,
}

impl Sampling {
    /// Bytes of one row.
    pub const BYTES: usize = 48;

    /// The row as the kernels read it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Sampling::BYTES] {
        let words = [
            self.temperature.to_bits(),
            self.top_p.to_bits(),
            self.min_p.to_bits(),
            self.top_k,
            self.seed as u32,
            (self.seed >> 32) as u32,
            self.position as u32,
            (self.position >> 32) as u32,
            self.repetition.to_bits(),
            self.frequency.to_bits(),
            self.presence.to_bits(),
            self.mask,
        ];
        let mut bytes = [0; Sampling::BYTES];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Lists of every row, one after another.
#[derive(Debug, Clone, Copy)]
pub struct Adjustments {
    /// `[.., words]` u32, a bit a token, set: allowed.
    pub masks: Ptr,
    /// Words of a mask; tokens past them are not allowed.
    pub mask_words: usize,
    /// `[rows + 1]` u32: where the biases of each row start.
    pub bias_offsets: Ptr,
    /// Token ids u32, distinct in a row.
    pub bias_ids: Ptr,
    /// What is added, f32.
    pub biases: Ptr,
    /// `[rows + 1]` u32: where the tokens seen of each row start.
    pub seen_offsets: Ptr,
    /// Token ids u32, distinct in a row.
    pub seen_ids: Ptr,
    /// How often each was generated, u32.
    pub seen_counts: Ptr,
}

/// Rows of logits and how they are sampled.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// `[rows, vocab]` f32.
    pub logits: Ptr,
    /// `[rows]` of [`Sampling`].
    pub how: Ptr,
    /// `[rows]` u32; `u32::MAX` where no token can be drawn.
    pub ids: Ptr,
    /// The number of rows, u32.
    pub rows: Ptr,
    /// Upper bound of the rows.
    pub max_rows: usize,
    /// Tokens of a row.
    pub vocab: usize,
}

/// Masks, biases and penalties, in place.
///
/// # Errors
/// [`crate::KernelError::Unsupported`] when a number is too large.
pub fn adjust_logits(op: &Sample, by: &Adjustments) -> Result<Launch> {
    const OP: &str = "device::adjust_logits";
    let grid = [extent(OP, "rows", op.max_rows)?, 1, 1];
    Ok(Launch::new("adjust_logits", grid, THREADS, 0)
        .ptrs(&[op.logits, op.how, by.masks, by.bias_offsets, by.bias_ids, by.biases])
        .ptrs(&[by.seen_offsets, by.seen_ids, by.seen_counts, op.rows])
        .ints(&[int(OP, "tokens", op.vocab)?, int(OP, "words of a mask", by.mask_words)?]))
}

/// The token of each row.
///
/// # Errors
/// [`crate::KernelError::Unsupported`] when a number is too large.
pub fn sample(op: &Sample) -> Result<Launch> {
    const OP: &str = "device::sample";
    let grid = [extent(OP, "rows", op.max_rows)?, 1, 1];
    Ok(Launch::new("sample", grid, THREADS, 0)
        .ptrs(&[op.logits, op.how, op.ids, op.rows])
        .int(int(OP, "tokens", op.vocab)?))
}
