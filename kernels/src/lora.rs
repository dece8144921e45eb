//! Low-rank updates of many adapters in one batch: `(x · Aᵀ) · Bᵀ` beside the product that they belong to.
//!
//! [`shrink`] computes `x · Aᵀ` for the rows that have an adapter, grouped by adapter (and expert), into scratch. The
//! way up, `· Bᵀ`, happens where the product writes its 16 results of a row: no second pass over the output, no second
//! fork of the team, and it is in time for what the product itself fuses (silu(gate) * up). Rows of the base model are
//! not touched; rows cost by their own adapter alone.
//!
//! Both sums run over k, then over the rank, in order: a row's bits do not depend on who else is in the batch.

mod adapter_rows;
mod low_rank;

use std::marker::PhantomData;

pub use adapter_rows::AdapterRows;
pub use low_rank::{Factors, LowRank};

use crate::buf::View;
use crate::cpu::{Isa, LANES};
use crate::error::{Result, at_least, inside, same};
use crate::exec::Exec;
use crate::matmul::Product;
use crate::pack::Packed;
use adapter_rows::Place;
use low_rank::Entry;

/// Rows of one task of [`shrink`]: whole tiles of 6.
const CHUNK: usize = 24;
/// Multiply-adds below which a fork costs more than it saves.
const ALONE: usize = 1 << 15;
/// A row without an adapter.
pub const NO_ADAPTER: u32 = u32::MAX;

/// What the rows of `x` are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsOf {
    /// The rows of the product's output.
    Output,
    /// Tokens, of which the output's rows were sorted by expert.
    Tokens,
}

/// `x · Aᵀ` of the rows with an adapter, for a product to add `· Bᵀ` to.
#[derive(Debug, Clone, Copy)]
pub struct Deltas<'a> {
    rows: &'a AdapterRows,
    updates: PhantomData<&'a LowRank>,
}

/// Computes `x · Aᵀ` for every row with an adapter; `update(adapter, expert)` is what it does to the product.
///
/// `None` when no adapter of the batch updates this product.
///
/// # Errors
/// [`crate::KernelError`] when shapes do not agree or the scratch is too small.
pub fn shrink<'a>(
    exec: &Exec,
    x: View<'_>,
    of: RowsOf,
    rows: &'a mut AdapterRows,
    update: &(dyn Fn(usize, usize) -> Option<&'a LowRank> + Sync),
) -> Result<Option<Deltas<'a>>> {
    const OP: &str = "shrink";
    let index = match of {
        RowsOf::Output => &rows.outputs[..rows.positions],
        RowsOf::Tokens => &rows.tokens[..rows.positions],
    };
    for row in index {
        inside(OP, "row of x", *row as usize, x.n_rows())?;
    }
    let width = rows.shrunk.shape()[1];
    rows.entries.clear();
    rows.tasks.clear();
    let (mut tasks, mut work) = (0, 0);
    for group in &rows.groups {
        rows.tasks.push(tasks as u32);
        let Some(update) = update(group.adapter as usize, group.expert as usize) else {
            rows.entries.push(Entry::NONE);
            continue;
        };
        same(OP, "columns of x", x.n_cols(), update.a.k())?;
        at_least(OP, "width of the scratch", width, update.width())?;
        rows.entries.push(update.entry());
        let count = (group.end - group.start) as usize;
        tasks += count.div_ceil(CHUNK) * update.a.chunks();
        work += count * update.width() * update.a.k();
    }
    if tasks == 0 {
        return Ok(None);
    }
    inside(OP, "task", tasks, u32::MAX as usize)?;
    let raw = rows.shrunk.view_mut()?.raw();
    let product = Product { x, quantized: None, stride: 0, deltas: None };
    let (groups, entries, firsts) = (&rows.groups, &rows.entries, &rows.tasks);
    let one = |task: usize| {
        // The last group that starts here or before: one without tasks has the number of the next.
        let at = firsts.partition_point(|first| *first as usize <= task) - 1;
        let group = groups[at];
        // SAFETY: `update` lent it for 'a, and this entry was checked against `x` and the scratch.
        let Some(update) = (unsafe { entries[at].update() }) else { return };
        let (chunks, task) = (update.a.chunks(), task - firsts[at] as usize);
        let start = group.start as usize + task / chunks * CHUNK;
        let range = start..(start + CHUNK).min(group.end as usize);
        product.part(&update.a, range, Some(index), raw).chunk_of(exec, task % chunks);
    };
    if work < ALONE {
        (0..tasks).for_each(one);
    } else {
        exec.each(tasks, &one);
    }
    Ok(Some(Deltas { rows, updates: PhantomData }))
}

impl Deltas<'_> {
    /// Checks that these belong to `rows` rows of a product with `w`.
    pub(crate) fn check(&self, op: &'static str, rows: usize, w: &Packed) -> Result<()> {
        same(op, "rows with adapters", self.rows.rows, rows)?;
        for entry in &self.rows.entries {
            for (at, part) in entry.parts.iter().enumerate().filter(|(_, part)| part.rank > 0) {
                inside(op, "fused part of an adapter", at, w.segments().len())?;
                same(op, "rows of an adapter's B", part.n, w.segments()[at].n)?;
                same(op, "gated panels of an adapter", usize::from(entry.gated), usize::from(w.is_gated()))?;
            }
        }
        Ok(())
    }

    /// For the results of part `part` of the product.
    pub(crate) fn of_part(&self, part: usize) -> RowDeltas {
        let shrunk = self.rows.shrunk.bytes().as_ptr().cast();
        RowDeltas {
            places: self.rows.places.as_ptr(),
            entries: self.rows.entries.as_ptr(),
            shrunk,
            stride: self.rows.shrunk.shape()[1],
            part,
        }
    }
}

/// [`Deltas`] as a product's tiles read them.
#[derive(Clone, Copy)]
pub(crate) struct RowDeltas {
    places: *const Place,
    entries: *const Entry,
    shrunk: *const f32,
    stride: usize,
    part: usize,
}

impl RowDeltas {
    /// Adds the update of 16 results of `row` for panel `panel`.
    ///
    /// # Safety
    /// The [`Deltas`] that this came from is alive and was checked against the product; `row` is a row of its output
    /// and `panel` a panel of the part.
    #[inline(always)]
    pub(crate) unsafe fn add<S: Isa>(&self, row: usize, panel: usize, values: &mut [f32; LANES]) {
        // SAFETY: there is a place for every row, an entry for every place's group, and a row of scratch for every
        // position; `check` compared B's panels with the part's, and `shrink` the columns with the scratch.
        unsafe {
            let place = *self.places.add(row);
            if place.group == NO_ADAPTER {
                return;
            }
            let entry = &*self.entries.add(place.group as usize);
            let part = entry.parts[self.part];
            if part.rank == 0 {
                return;
            }
            let b = part.b.add(panel * part.rank * LANES);
            let x = self.shrunk.add(place.position as usize * self.stride);
            let mut sums = [0.0_f32; LANES];
            S::store(sums.as_mut_ptr(), up::<S>(x.add(part.from.0), b, part.rank));
            if entry.gated {
                let mut of_up = [0.0_f32; LANES];
                S::store(of_up.as_mut_ptr(), up::<S>(x.add(part.from.1), b, part.rank));
                sums[LANES / 2..].copy_from_slice(&of_up[LANES / 2..]);
            }
            for lane in 0..LANES {
                values[lane] += sums[lane];
            }
        }
    }
}

/// One panel of `x · Bᵀ`.
///
/// # Safety
/// `x` is `rank` long, `b` a panel of that rank.
#[inline(always)]
unsafe fn up<S: Isa>(x: *const f32, b: *const f32, rank: usize) -> S::F {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sum = S::zero();
        for k in 0..rank {
            sum = S::fma(S::set1(*x.add(k)), S::load(b.add(k * LANES)), sum);
        }
        sum
    }
}

#[cfg(test)]
mod tests;
