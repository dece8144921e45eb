//! Bidirectional attention of an encoder over sequences packed one after another.

use crate::buf::{RawRows, View, ViewMut};
use crate::cpu::attention::{AttentionJob, Block, MAX_DIM, MAX_ROWS, Query, attend, attend_reference};
use crate::error::{KernelError, Result, at_least, inside, same};
use crate::exec::Exec;
use crate::workspace::Workspace;

/// `out [T, heads * D]` from `qkv [T, 3 * heads * D]`; sequence `i` is rows `cu_seqlens[i]..cu_seqlens[i + 1]`.
///
/// # Errors
/// [`KernelError`] when shapes do not agree or the workspace is too small.
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
    let hidden = heads * head_dim;
    same(OP, "columns of qkv", qkv.n_cols(), 3 * hidden)?;
    same(OP, "columns of out", out.n_cols(), hidden)?;
    same(OP, "rows of out", out.n_rows(), qkv.n_rows())?;
    if head_dim > MAX_DIM || head_dim == 0 {
        return Err(KernelError::Unsupported { op: OP, what: "a head dimension", value: head_dim });
    }
    let mut last = 0;
    for end in cu_seqlens {
        inside(OP, "sequence end", *end as usize, qkv.n_rows() + 1)?;
        at_least(OP, "sequence end", *end as usize, last)?;
        last = *end as usize;
    }
    let sequences = cu_seqlens.len().saturating_sub(1);
    let padded = head_dim.next_multiple_of(16);
    // A sequence's blocks start at its first row rounded up, plus one block for each sequence before it.
    let start = |seq: usize| (cu_seqlens[seq] as usize).div_ceil(16) + seq;
    let blocks = if sequences == 0 { 0 } else { start(sequences) + 1 };
    let per_block = heads * (head_dim + padded) * 16;
    at_least(OP, "attention workspace", ws.attention.byte_len() / 4, blocks * per_block)?;
    let scratch = Scratch(ws.attention.as_f32_mut()?.as_mut_ptr());
    let raw = out.raw();
    exec.each(sequences * heads, &|task| {
        let (seq, head) = (task / heads, task % heads);
        let rows = cu_seqlens[seq] as usize..cu_seqlens[seq + 1] as usize;
        let at = |index: usize| (start(seq) + index) * per_block + head * (head_dim + padded) * 16;
        // SAFETY: the workspace holds `blocks` blocks (checked), blocks of different sequences do not overlap
        // (`start` leaves a block between them), heads lie apart, and a task is one sequence and head.
        unsafe {
            let base = scratch.get();
            for (offset, row) in rows.clone().enumerate() {
                let to = base.add(at(offset / 16));
                let source = qkv.row(row);
                let key = &source[hidden + head * head_dim..][..head_dim];
                let value = &source[2 * hidden + head * head_dim..][..head_dim];
                for (d, x) in key.iter().enumerate() {
                    *to.add(d * 16 + offset % 16) = *x;
                }
                let to = to.add(head_dim * 16 + offset % 16 * padded);
                std::ptr::copy_nonoverlapping(value.as_ptr(), to, head_dim);
                std::ptr::write_bytes(to.add(head_dim), 0, padded - head_dim);
            }
            let block = |index: usize| {
                let keys = base.add(at(index)).cast_const();
                Block { keys, values: keys.add(head_dim * 16) }
            };
            attend_rows(exec, qkv, raw, rows, head * head_dim, head_dim, scale, &block);
        }
    });
    Ok(())
}

/// # Safety
/// `block` covers all rows; columns `column..column + head_dim` of these rows of `out` are the caller's alone.
unsafe fn attend_rows(
    exec: &Exec,
    qkv: View<'_>,
    out: RawRows,
    rows: std::ops::Range<usize>,
    column: usize,
    head_dim: usize,
    scale: f32,
    block: &dyn Fn(usize) -> Block,
) {
    let len = rows.len();
    let mut at = rows.start;
    while at < rows.end {
        let end = (at + MAX_ROWS).min(rows.end);
        let mut queries =
            [Query { q: std::ptr::null(), out: std::ptr::null_mut(), from: 0, to: len }; MAX_ROWS];
        for (query, row) in queries.iter_mut().zip(at..end) {
            query.q = qkv.row(row)[column..].as_ptr();
            query.out = out.at(row, column);
        }
        let job = AttentionJob {
            queries: &queries[..end - at],
            head_dim,
            padded: head_dim.next_multiple_of(16),
            scale,
            block,
        };
        // SAFETY: the caller's contract.
        unsafe {
            match exec {
                Exec::Reference => attend_reference(&job),
                Exec::Simd(_) => attend(&job),
            }
        };
        at = end;
    }
}

struct Scratch(*mut f32);
// SAFETY: every task writes blocks of its own sequence and head only.
unsafe impl Sync for Scratch {}
impl Scratch {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fill;

    fn run(qkv: &[f32], heads: usize, dim: usize, cu: &[u32]) -> Vec<f32> {
        run_with(&Exec::simd(2), qkv, heads, dim, cu)
    }

    fn run_with(exec: &Exec, qkv: &[f32], heads: usize, dim: usize, cu: &[u32]) -> Vec<f32> {
        let rows = *cu.last().expect("some") as usize;
        let mut ws = Workspace::new(1, 32)
            .and_then(|ws| ws.with_encoder_attention(rows, cu.len(), heads * dim))
            .expect("workspace");
        let mut out = vec![0.0; rows * heads * dim];
        encoder_attention(
            exec,
            &mut ws,
            View::new(qkv, rows, 3 * heads * dim).expect("qkv"),
            heads,
            dim,
            cu,
            0.3,
            ViewMut::new(&mut out, rows, heads * dim).expect("out"),
        )
        .expect("attends");
        out
    }

    #[test]
    fn a_batch_equals_each_alone_and_plain_attention() {
        for (heads, dim) in [(2, 32), (3, 8), (2, 20)] {
            let width = 3 * heads * dim;
            let cu = [0_u32, 1, 40, 40, 57];
            let qkv = fill(57 * width, 1);
            let all = run(&qkv, heads, dim, &cu);
            for pair in cu.windows(2) {
                let (from, to) = (pair[0] as usize, pair[1] as usize);
                if from < to {
                    let alone = run(&qkv[from * width..to * width], heads, dim, &[0, (to - from) as u32]);
                    assert_eq!(alone, all[from * heads * dim..to * heads * dim]);
                }
            }
            let (row, head) = (20, 1);
            let at = |row: usize, part: usize, d: usize| {
                f64::from(qkv[row * width + part * heads * dim + head * dim + d])
            };
            let scores: Vec<f64> = (1..40)
                .map(|key| (0.3 * (0..dim).map(|d| at(row, 0, d) * at(key, 1, d)).sum::<f64>()).exp())
                .collect();
            let total: f64 = scores.iter().sum();
            for d in 0..dim {
                let expected: f64 = (1..40).zip(&scores).map(|(key, s)| s / total * at(key, 2, d)).sum();
                assert!((f64::from(all[(row * heads + head) * dim + d]) - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn simd_is_close_to_the_reference_and_equal_on_every_instruction_set() {
        let (heads, dim, cu) = (3, 24, [0_u32, 7, 50]);
        let qkv = fill(50 * 3 * heads * dim, 2);
        let reference = run_with(&Exec::Reference, &qkv, heads, dim, &cu);
        let simd = run_with(&Exec::simd(1), &qkv, heads, dim, &cu);
        assert!(simd.iter().zip(&reference).all(|(a, b)| (a - b).abs() < 2e-6));
        for level in crate::check::levels() {
            let found = crate::cpu::with_level(level, || run_with(&Exec::simd(1), &qkv, heads, dim, &cu));
            assert_eq!(found, simd, "{level:?}");
        }
    }
}
