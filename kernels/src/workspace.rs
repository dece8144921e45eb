//! Scratch memory of ops, sized once.

use crate::buf::{Buf, DType};
use crate::error::Result;

/// Activations quantised to int8 for integer weights, per group of 32.
#[derive(Debug, Default)]
pub(crate) struct Quantized {
    pub(crate) codes: Vec<i8>,
    /// One a group of 32.
    pub(crate) scales: Vec<f32>,
    /// Sums of codes, one a group of 16.
    pub(crate) sums: Vec<i32>,
}

/// What ops need beside their arguments; an op never allocates.
#[derive(Debug)]
pub struct Workspace {
    pub(crate) max_rows: usize,
    pub(crate) max_k: usize,
    pub(crate) quantized: Quantized,
    /// Keys and values of one sequence's head in block layout, for encoder attention.
    pub(crate) attention: Buf,
}

impl Workspace {
    /// Scratch for products of up to `max_rows` rows of up to `max_k` inputs.
    ///
    /// # Errors
    /// [`crate::KernelError::OutOfMemory`].
    pub fn new(max_rows: usize, max_k: usize) -> Result<Workspace> {
        let k = max_k.next_multiple_of(32);
        Ok(Workspace {
            max_rows,
            max_k: k,
            quantized: Quantized {
                codes: vec![0; max_rows * k],
                scales: vec![0.0; max_rows * k / 32],
                sums: vec![0; max_rows * k / 16],
            },
            attention: Buf::zeros(DType::F32, &[0, 0])?,
        })
    }

    /// Memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let Quantized { codes, scales, sums } = &self.quantized;
        codes.len() + size_of_val(&**scales) + size_of_val(&**sums) + self.attention.bytes().len()
    }

    /// Adds scratch for [`crate::encoder_attention()`] over batches of up to `tokens` of width `hidden`.
    ///
    /// # Errors
    /// [`crate::KernelError::OutOfMemory`].
    pub fn with_encoder_attention(
        mut self,
        tokens: usize,
        sequences: usize,
        hidden: usize,
    ) -> Result<Workspace> {
        let padded = (tokens.div_ceil(16) + sequences + 1) * 16;
        // Heads narrower than 16 are padded, at most to twice the width for 8.
        self.attention = Buf::zeros(DType::F32, &[padded, 4 * hidden])?;
        Ok(self)
    }
}
