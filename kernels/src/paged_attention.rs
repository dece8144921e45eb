//! Causal attention over the paged KV cache: prefill chunks and decode tokens alike.

use crate::buf::{View, ViewMut};
use crate::cpu::attention::{AttentionJob, Block, MAX_DIM, MAX_ROWS, Query, attend, attend_reference};
use crate::error::{KernelError, Result, inside, same};
use crate::exec::Exec;
use crate::kv::{BLOCK, KvLayer};
use crate::rope::HeadLayout;

/// The part of a batch that belongs to one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeqSpan {
    /// First row of its queries.
    pub query_start: u32,
    /// Number of its queries; they are the last tokens of the context.
    pub query_len: u32,
    /// Tokens in the cache, the queries included.
    pub context_len: u32,
    /// Where its block table starts in `block_tables`.
    pub table_start: u32,
}

/// `out [T, Hq * D]` = attention of the queries in `qkv [T, (Hq + 2 Hkv) * D]` over each sequence's cached keys.
///
/// Query `i` of a sequence is at position `context_len - query_len + i` and sees all earlier positions and its own,
/// or the last `window` of them.
///
/// # Errors
/// [`KernelError`] when shapes do not agree or a span or a table points outside.
pub fn paged_attention(
    exec: &Exec,
    qkv: View<'_>,
    heads: HeadLayout,
    kv: KvLayer<'_>,
    seqs: &[SeqSpan],
    block_tables: &[u32],
    scale: f32,
    window: Option<u32>,
    mut out: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "paged_attention";
    same(OP, "columns of qkv", qkv.n_cols(), heads.width())?;
    same(OP, "columns of out", out.n_cols(), heads.q * heads.dim)?;
    same(OP, "rows of out", out.n_rows(), qkv.n_rows())?;
    same(OP, "kv heads of the cache", kv.shape.kv_heads, heads.kv)?;
    same(OP, "head dimension of the cache", kv.shape.head_dim, heads.dim)?;
    if heads.dim > MAX_DIM
        || heads.kv == 0
        || !heads.q.is_multiple_of(heads.kv)
        || heads.q / heads.kv > MAX_ROWS
    {
        return Err(KernelError::Unsupported {
            op: OP,
            what: "a head layout with a dimension",
            value: heads.dim,
        });
    }
    let mut covered = 0;
    for seq in seqs {
        // Spans that lie one after another cannot overlap: tasks of two sequences never write one row.
        same(OP, "first query row", seq.query_start as usize, covered)?;
        covered += seq.query_len as usize;
        inside(OP, "query row", covered, qkv.n_rows() + 1)?;
        inside(OP, "query length", seq.query_len as usize, seq.context_len as usize + 1)?;
        let table_start = seq.table_start as usize;
        let table_end = table_start.checked_add((seq.context_len as usize).div_ceil(BLOCK));
        let table =
            table_end.and_then(|end| block_tables.get(table_start..end)).ok_or(KernelError::Index {
                op: OP,
                what: "block table start",
                index: table_start,
                bound: block_tables.len(),
            })?;
        for block in table {
            inside(OP, "block", *block as usize, kv.shape.blocks)?;
        }
    }
    let group = heads.q / heads.kv;
    let tile = (MAX_ROWS / group).max(1);
    let raw = out.raw();
    let one = |seq: &SeqSpan, tile_at: usize, head: usize| {
        let table = &block_tables[seq.table_start as usize..];
        let from = tile_at * tile;
        let to = (from + tile).min(seq.query_len as usize);
        let mut queries =
            [Query { q: std::ptr::null(), out: std::ptr::null_mut(), from: 0, to: 0 }; MAX_ROWS];
        let mut count = 0;
        for at in from..to {
            let row = seq.query_start as usize + at;
            let position = (seq.context_len - seq.query_len) as usize + at;
            for inner in 0..group {
                let column = (head * group + inner) * heads.dim;
                queries[count] = Query {
                    q: qkv.row(row)[column..].as_ptr(),
                    out: raw.at(row, column),
                    from: window.map_or(0, |window| (position + 1).saturating_sub(window as usize)),
                    to: position + 1,
                };
                count += 1;
            }
        }
        let block = |index: usize| {
            let block = table[index] as usize;
            Block {
                keys: kv.data[kv.shape.key_at(block, head)..].as_ptr(),
                values: kv.data[kv.shape.value_at(block, head)..].as_ptr(),
            }
        };
        let job = AttentionJob {
            queries: &queries[..count],
            head_dim: heads.dim,
            padded: kv.shape.padded(),
            scale,
            block: &block,
        };
        // SAFETY: spans, tables and shapes were checked above; each (row, head) of `out` belongs to one task.
        unsafe {
            match exec {
                Exec::Reference => attend_reference(&job),
                Exec::Simd(_) => attend(&job),
            }
        };
    };
    let tiles = |seq: &SeqSpan| (seq.query_len as usize).div_ceil(tile) * heads.kv;
    let total: usize = seqs.iter().map(tiles).sum();
    exec.each(total, &|task| {
        // The longest contexts of a tile come last in a sequence; taking them first evens out the end.
        let mut left = total - 1 - task;
        for seq in seqs {
            if left < tiles(seq) {
                return one(seq, left / heads.kv, left % heads.kv);
            }
            left -= tiles(seq);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests;
