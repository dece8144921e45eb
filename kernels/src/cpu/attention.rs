//! Attention of a few query rows over blocks of 16 keys: online softmax in the order of positions.
//!
//! All rows of a call share the key–value head. For each block: scores = one fused sum over the head's dimensions a
//! key, then the running maximum, sum and weighted values are updated. The order depends only on positions, so a
//! query gives the same bits whether it comes alone, in a chunk or in a batch.

use std::mem::MaybeUninit;

use super::{Isa, LANES, dispatch};
use crate::cpu::math::{exp, sum16};

/// Most query rows of one call.
pub(crate) const MAX_ROWS: usize = 24;
/// Widest head.
pub(crate) const MAX_DIM: usize = 256;

/// Where a block's keys `[head_dim][16]` and values `[16][padded]` are.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub(crate) keys: *const f32,
    pub(crate) values: *const f32,
}

/// One query row.
#[derive(Clone, Copy)]
pub(crate) struct Query {
    pub(crate) q: *const f32,
    pub(crate) out: *mut f32,
    /// It sees keys `from..to` (positions in the sequence).
    pub(crate) from: usize,
    pub(crate) to: usize,
}

/// Rows over a sequence's blocks.
pub(crate) struct AttentionJob<'a> {
    pub(crate) queries: &'a [Query],
    pub(crate) head_dim: usize,
    pub(crate) padded: usize,
    pub(crate) scale: f32,
    /// The block with keys `16 * i ..`.
    pub(crate) block: &'a dyn Fn(usize) -> Block,
}

/// Running state of the rows.
struct State {
    max: [f32; MAX_ROWS],
    sum: [f32; MAX_ROWS],
    /// Weighted values, `[rows, padded]`.
    acc: *mut f32,
}

dispatch!(
    /// # Safety
    /// Queries are readable and outputs writable for `head_dim`; `block` is valid for every block that a query
    /// sees; at most [`MAX_ROWS`] queries, `head_dim <= MAX_DIM`, `padded` is `head_dim` rounded up to 16.
    pub(crate) unsafe fn attend(job: &AttentionJob<'_>) = attend_inner
);

#[inline(always)]
unsafe fn attend_inner<S: Isa>(job: &AttentionJob<'_>) {
    let rows = job.queries.len();
    // Only what the rows use is cleared: the whole is 24 KB, more than a short context costs.
    let mut memory = MaybeUninit::<[f32; MAX_ROWS * MAX_DIM]>::uninit();
    let acc = memory.as_mut_ptr().cast::<f32>();
    // SAFETY: rows <= MAX_ROWS and padded <= MAX_DIM by contract.
    unsafe { acc.write_bytes(0, rows * job.padded) };
    let mut state = State { max: [f32::NEG_INFINITY; MAX_ROWS], sum: [0.0; MAX_ROWS], acc };
    let first = job.queries.iter().map(|query| query.from).min().unwrap_or(0) / LANES;
    let end = job.queries.iter().map(|query| query.to).max().unwrap_or(0).div_ceil(LANES);
    // SAFETY: the caller's contract; rows are handed out in groups that exist.
    unsafe {
        for index in first..end {
            let block = (job.block)(index);
            let mut row = 0;
            while row < rows {
                let step = match rows - row {
                    6.. => 6,
                    3..=5 => 3,
                    left => left,
                };
                match step {
                    6 => block_rows::<S, 6>(job, &mut state, row, index, block),
                    3 => block_rows::<S, 3>(job, &mut state, row, index, block),
                    2 => block_rows::<S, 2>(job, &mut state, row, index, block),
                    _ => block_rows::<S, 1>(job, &mut state, row, index, block),
                }
                row += step;
            }
        }
        for (row, query) in job.queries.iter().enumerate() {
            let inverse = if state.sum[row] > 0.0 { 1.0 / state.sum[row] } else { 0.0 };
            for d in 0..job.head_dim {
                *query.out.add(d) = *state.acc.add(row * job.padded + d) * inverse;
            }
        }
    }
}

/// The same by plain loops: all scores of a row first, then their softmax, then the values, in f64.
///
/// # Safety
/// As [`attend`].
pub(crate) unsafe fn attend_reference(job: &AttentionJob<'_>) {
    for query in job.queries {
        // SAFETY: the caller's contract: `from..to` are keys of blocks that exist, `head_dim` elements of each row.
        unsafe {
            let key = |at: usize, d: usize| *(job.block)(at / LANES).keys.add(d * LANES + at % LANES);
            let value =
                |at: usize, d: usize| *(job.block)(at / LANES).values.add(at % LANES * job.padded + d);
            let scores: Vec<f64> = (query.from..query.to)
                .map(|at| (0..job.head_dim).map(|d| f64::from(*query.q.add(d)) * f64::from(key(at, d))).sum())
                .map(|dot: f64| dot * f64::from(job.scale))
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..job.head_dim {
                let keys = (query.from..query.to).zip(&weights);
                let sum: f64 = keys.map(|(at, weight)| weight * f64::from(value(at, d))).sum();
                *query.out.add(d) = if total > 0.0 { (sum / total) as f32 } else { 0.0 };
            }
        }
    }
}

#[inline(always)]
unsafe fn block_rows<S: Isa, const R: usize>(
    job: &AttentionJob<'_>,
    state: &mut State,
    row: usize,
    index: usize,
    block: Block,
) {
    // SAFETY: forwarded; each load stays inside the block's keys, values and the rows' queries.
    unsafe {
        let mut scores = [S::zero(); R];
        let mut q = [std::ptr::null::<f32>(); R];
        for r in 0..R {
            q[r] = job.queries[row + r].q;
        }
        for d in 0..job.head_dim {
            let keys = S::load(block.keys.add(d * LANES));
            for r in 0..R {
                scores[r] = S::fma(S::set1(*q[r].add(d)), keys, scores[r]);
            }
        }
        let mut weights = [[0.0_f32; LANES]; R];
        let mut spans = [(0, 0); R];
        let mut corrections = [1.0_f32; R];
        for r in 0..R {
            let query = &job.queries[row + r];
            let from = query.from.clamp(index * LANES, (index + 1) * LANES) - index * LANES;
            let to = query.to.clamp(index * LANES, (index + 1) * LANES) - index * LANES;
            spans[r] = (from, to);
            if from >= to {
                continue;
            }
            let mut s = [0.0_f32; LANES];
            S::store(s.as_mut_ptr(), scores[r]);
            let mut largest = state.max[row + r];
            for lane in 0..LANES {
                let visible = lane >= from && lane < to;
                s[lane] = if visible { s[lane] * job.scale } else { f32::NEG_INFINITY };
                largest = largest.max(s[lane]);
            }
            corrections[r] = exp(state.max[row + r] - largest);
            for lane in 0..LANES {
                weights[r][lane] = exp(s[lane] - largest);
            }
            state.max[row + r] = largest;
            state.sum[row + r] = state.sum[row + r].mul_add(corrections[r], sum16(weights[r]));
        }
        if spans.iter().all(|span| *span == (0, LANES)) {
            let mut d = 0;
            while d < job.padded {
                let mut acc = [S::zero(); R];
                for r in 0..R {
                    acc[r] =
                        S::mul(S::load(state.acc.add((row + r) * job.padded + d)), S::set1(corrections[r]));
                }
                for lane in 0..LANES {
                    let value = S::load(block.values.add(lane * job.padded + d));
                    for r in 0..R {
                        acc[r] = S::fma(S::set1(weights[r][lane]), value, acc[r]);
                    }
                }
                for r in 0..R {
                    S::store(state.acc.add((row + r) * job.padded + d), acc[r]);
                }
                d += LANES;
            }
            return;
        }
        // Keys that a row does not see are left out, not weighted by zero: a stale slot may hold anything.
        for r in 0..R {
            let (from, to) = spans[r];
            if from >= to {
                continue;
            }
            let mut d = 0;
            while d < job.padded {
                let at = state.acc.add((row + r) * job.padded + d);
                let mut acc = S::mul(S::load(at), S::set1(corrections[r]));
                for lane in from..to {
                    acc = S::fma(
                        S::set1(weights[r][lane]),
                        S::load(block.values.add(lane * job.padded + d)),
                        acc,
                    );
                }
                S::store(at, acc);
                d += LANES;
            }
        }
    }
}
