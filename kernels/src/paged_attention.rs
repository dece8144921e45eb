//! Causal attention over the paged cache: decode steps and prefill pieces in one call.

use crate::error::{KernelError, Result, expect_below, expect_shape};
use crate::kv_cache::BLOCK;
use crate::view::{Matrix, MatrixMut};
use crate::{Exec, HeadLayout, KvLayer, View, ViewMut, Workspace, cpu};

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeqSpan {
    /// The row of its first query.
    pub query_start: u32,
    /// Its queries in this step: 1 to decode, more to prefill.
    pub query_len: u32,
    /// Positions it attends to, the queries included.
    pub context_len: u32,
    /// Where its blocks start in `block_tables`.
    pub table_start: u32,
}

impl SeqSpan {
    /// The positions that query `i` of the span sees.
    pub(crate) fn visible(&self, i: usize, window: Option<u32>) -> std::ops::Range<usize> {
        let end = (self.context_len - self.query_len) as usize + i + 1;
        let start = window.map_or(0, |window| end.saturating_sub(window as usize));
        start..end
    }
}

/// What a call of [`paged_attention`] computes, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PagedAttention<'a> {
    pub(crate) q: Matrix<'a>,
    pub(crate) heads: HeadLayout,
    pub(crate) kv: KvLayer<'a>,
    pub(crate) seqs: &'a [SeqSpan],
    pub(crate) block_tables: &'a [u32],
    pub(crate) scale: f32,
    pub(crate) window: Option<u32>,
}

/// `out[t, h] = softmax(scale * q[t, h] K^T) V` over the positions up to the query's own, the last `window` of them
/// where one is given.
///
/// `q` is the fused `[T, (Hq + 2 Hkv) * D]` buffer (only its q heads are read), `out` `[T, Hq * D]`. Every query
/// attends in order of the context's blocks of 16: its result does not depend on the step that it is part of.
#[allow(clippy::too_many_arguments)]
pub fn paged_attention(
    exec: &Exec,
    ws: &mut Workspace,
    q: View<'_>,
    heads: HeadLayout,
    kv: KvLayer<'_>,
    seqs: &[SeqSpan],
    block_tables: &[u32],
    scale: f32,
    window: Option<u32>,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "paged_attention";
    let _ = ws;
    let q = q.f32(OP, "q")?;
    let mut out = out.f32(OP, "out")?;
    heads.check(OP)?;
    expect_shape(OP, "q", &[q.rows, q.cols], &[out.rows, heads.width()])?;
    expect_shape(OP, "out", &[out.cols], &[heads.q * heads.dim])?;
    expect_shape(OP, "kv cache", &[kv.shape.kv_heads, kv.shape.head_dim], &[heads.kv, heads.dim])?;
    let call = PagedAttention { q, heads, kv, seqs, block_tables, scale, window };
    call.check_spans(OP)?;
    match exec {
        Exec::Simd(team) if cpu::attention::supports(heads.dim) => cpu::attention::paged(team, &call, &mut out),
        _ => call.reference(&mut out),
    }
    Ok(())
}

impl PagedAttention<'_> {
    fn check_spans(&self, op: &'static str) -> Result<()> {
        let index = |what, index, limit| Err(KernelError::Index { op, what, index, limit });
        let mut next_row = 0;
        for span in self.seqs {
            let end = span.query_start as usize + span.query_len as usize;
            if (span.query_start as usize) < next_row || end > self.q.rows {
                return index("query rows (ascending, within q)", end, self.q.rows + 1);
            }
            next_row = end;
            if span.query_len > span.context_len {
                return index("query_len", span.query_len as usize, span.context_len as usize + 1);
            }
            let blocks = (span.context_len as usize).div_ceil(BLOCK);
            let first = span.visible(0, self.window).start / BLOCK;
            let table = self.block_tables.get(span.table_start as usize..).unwrap_or(&[]);
            if blocks > table.len() {
                return index("blocks of a span", blocks, table.len() + 1);
            }
            // Blocks before the window may have been given back: nobody reads their entries.
            expect_below(op, "block", &table[first.min(blocks)..blocks], self.kv.shape.blocks)?;
        }
        Ok(())
    }

    pub(crate) fn reference(&self, out: &mut MatrixMut<'_>) {
        let (dim, group) = (self.heads.dim, self.heads.q / self.heads.kv);
        for span in self.seqs {
            for i in 0..span.query_len as usize {
                let t = span.query_start as usize + i;
                for head in 0..self.heads.q {
                    let q = &self.q.row(t)[head * dim..(head + 1) * dim];
                    let out = &mut out.row(t)[head * dim..(head + 1) * dim];
                    self.attend(span, i, head / group, q, out);
                }
            }
        }
    }

    fn attend(&self, span: &SeqSpan, i: usize, kv_head: usize, q: &[f32], out: &mut [f32]) {
        let (shape, data) = (&self.kv.shape, &self.kv.data);
        let visible = span.visible(i, self.window);
        let block = |p: usize| self.block_tables[span.table_start as usize + p / BLOCK] as usize;
        let score = |p: usize| {
            let keys = shape.keys(block(p), kv_head) + p % BLOCK;
            q.iter().enumerate().map(|(d, q)| q * data.get(keys + d * BLOCK)).sum::<f32>() * self.scale
        };
        let largest = visible.clone().map(score).fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        out.fill(0.0);
        for p in visible {
            let weight = (score(p) - largest).exp();
            total += weight;
            let values = shape.values(block(p), kv_head) + p % BLOCK * q.len();
            out.iter_mut().enumerate().for_each(|(d, out)| *out += weight * data.get(values + d));
        }
        out.iter_mut().for_each(|out| *out /= total);
    }
}

#[cfg(test)]
mod tests;
