//! Bidirectional attention over whole sequences, for encoders.

use crate::error::{KernelError, Result, expect_shape};
use crate::view::{Matrix, MatrixMut};
use crate::{Exec, View, ViewMut, Workspace, cpu};

/// What a call of [`encoder_attention`] computes, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderAttention<'a> {
    pub(crate) qkv: Matrix<'a>,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) cu_seqlens: &'a [u32],
    pub(crate) scale: f32,
}

/// `out[t, h] = softmax(scale * q[t, h] K^T) V` over the sequence of `t`.
///
/// `qkv` is `[T, 3 * heads * head_dim]`, `out` `[T, heads * head_dim]`; sequence `i` is the rows
/// `cu_seqlens[i]..cu_seqlens[i + 1]`.
#[allow(clippy::too_many_arguments)]
pub fn encoder_attention(
    exec: &Exec,
    ws: &mut Workspace,
    qkv: View<'_>,
    heads: usize,
    head_dim: usize,
    cu_seqlens: &[u32],
    scale: f32,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "encoder_attention";
    let _ = ws;
    let qkv = qkv.f32(OP, "qkv")?;
    let mut out = out.f32(OP, "out")?;
    expect_shape(OP, "qkv", &[qkv.rows, qkv.cols], &[out.rows, 3 * heads * head_dim])?;
    expect_shape(OP, "out", &[out.cols], &[heads * head_dim])?;
    check_cu_seqlens(OP, cu_seqlens, qkv.rows)?;
    let call = EncoderAttention { qkv, heads, head_dim, cu_seqlens, scale };
    match exec {
        Exec::Simd(team) if cpu::attention::supports(head_dim) => cpu::attention::encoder(team, &call, &mut out),
        _ => call.reference(&mut out),
    }
    Ok(())
}

/// `Ok` when the offsets ascend from 0 to `rows`.
pub(crate) fn check_cu_seqlens(op: &'static str, cu_seqlens: &[u32], rows: usize) -> Result<()> {
    if cu_seqlens.is_empty() || cu_seqlens[0] != 0 || !cu_seqlens.is_sorted() {
        return Err(KernelError::Unsupported { op, reason: "cu_seqlens must ascend from 0".into() });
    }
    expect_shape(op, "the last of cu_seqlens", &[cu_seqlens[cu_seqlens.len() - 1] as usize], &[rows])
}

impl EncoderAttention<'_> {
    pub(crate) fn reference(&self, out: &mut MatrixMut<'_>) {
        let (dim, hidden) = (self.head_dim, self.heads * self.head_dim);
        for bounds in self.cu_seqlens.windows(2) {
            let rows = bounds[0] as usize..bounds[1] as usize;
            for (t, head) in rows.clone().flat_map(|t| (0..self.heads).map(move |head| (t, head))) {
                let part = |t: usize, which: usize| &self.qkv.row(t)[which * hidden + head * dim..][..dim];
                let score = |p: usize| {
                    part(t, 0).iter().zip(part(p, 1)).map(|(q, k)| q * k).sum::<f32>() * self.scale
                };
                let largest = rows.clone().map(score).fold(f32::NEG_INFINITY, f32::max);
                let out = &mut out.row(t)[head * dim..(head + 1) * dim];
                out.fill(0.0);
                let mut total = 0.0;
                for p in rows.clone() {
                    let weight = (score(p) - largest).exp();
                    total += weight;
                    out.iter_mut().zip(part(p, 2)).for_each(|(out, v)| *out += weight * v);
                }
                out.iter_mut().for_each(|out| *out /= total);
            }
        }
    }
}

#[cfg(test)]
mod tests;
