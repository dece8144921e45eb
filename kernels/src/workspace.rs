//! Scratch memory for one owner thread: operations never allocate.

use crate::error::{KernelError, Result};
use crate::packed::GROUP;
use crate::quantize::QuantizedRow;
use crate::view::Matrix;
use crate::{Exec, cpu};

/// Scratch for quantised activations, sized once for the largest step.
#[derive(Debug)]
pub struct Workspace {
    max_rows: usize,
    max_k: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    scaled_sums: Vec<f32>,
    scaled_group_sums: Vec<f32>,
}

/// Rows of quantised activations in a workspace; see [`QuantizedRow`] for the parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantized<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [i32],
    pub(crate) scaled_sums: &'a [f32],
    pub(crate) scaled_group_sums: &'a [f32],
    /// Groups of 32 in a row.
    pub(crate) groups: usize,
}

impl Workspace {
    /// Scratch for `max_rows` rows of up to `max_k` values: the rows of the largest step (times the experts a token
    /// where there are experts) and the largest input width of any product.
    pub fn new(max_rows: usize, max_k: usize) -> Workspace {
        let max_k = max_k.next_multiple_of(GROUP);
        let groups = max_rows * (max_k / GROUP);
        Workspace {
            max_rows,
            max_k,
            codes: vec![0; groups * GROUP],
            scales: vec![0.0; groups],
            sums: vec![0; groups * 2],
            scaled_sums: vec![0.0; groups * 2],
            scaled_group_sums: vec![0.0; groups],
        }
    }

    pub(crate) fn check(&self, op: &'static str, rows: usize, k: usize) -> Result<()> {
        if rows * k.next_multiple_of(GROUP) <= self.codes.len() {
            return Ok(());
        }
        Err(KernelError::Workspace { op, rows, k, max_rows: self.max_rows, max_k: self.max_k })
    }

    /// Quantises every row of `x`; `check` has passed for its shape.
    pub(crate) fn quantize(&mut self, exec: &Exec, x: Matrix<'_>) -> Quantized<'_> {
        let groups = x.cols.div_ceil(GROUP);
        match exec {
            Exec::Reference => self.rows_mut(groups).zip(0..x.rows).for_each(|(mut out, row)| out.reference(x.row(row))),
            Exec::Simd(team) => cpu::quantize::rows(team, x, self.rows_mut(groups)),
        }
        Quantized {
            codes: &self.codes,
            scales: &self.scales,
            sums: &self.sums,
            scaled_sums: &self.scaled_sums,
            scaled_group_sums: &self.scaled_group_sums,
            groups,
        }
    }

    fn rows_mut(&mut self, groups: usize) -> impl Iterator<Item = QuantizedRow<'_>> + Send {
        let groups = groups.max(1);
        self.codes
            .chunks_exact_mut(groups * GROUP)
            .zip(self.scales.chunks_exact_mut(groups))
            .zip(self.sums.chunks_exact_mut(groups * 2))
            .zip(self.scaled_sums.chunks_exact_mut(groups * 2))
            .zip(self.scaled_group_sums.chunks_exact_mut(groups))
            .map(|((((codes, scales), sums), scaled_sums), scaled_group_sums)| QuantizedRow {
                codes,
                scales,
                sums,
                scaled_sums,
                scaled_group_sums,
            })
    }
}
