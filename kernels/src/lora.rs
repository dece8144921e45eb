//! Low-rank updates of many adapters in one batch: `(x · Aᵀ) · Bᵀ` beside the product that they belong to.
//!
//! [`shrink`] computes `x · Aᵀ` for the rows that have an adapter, grouped by adapter (and expert), into scratch. The
//! way up, `· Bᵀ`, happens where the product writes its 16 results of a row: no second pass over the output, no second
//! fork of the team, and it is in time for what the product itself fuses (silu(gate) * up). Rows of the base model are
//! not touched; rows cost by their own adapter alone.
//!
//! Both sums run over k, then over the rank, in order: a row's bits do not depend on who else is in the batch.

use std::marker::PhantomData;
use std::ops::Range;

use crate::buf::{Buf, DType, View};
use crate::cpu::{Isa, LANES};
use crate::error::{KernelError, Result, at_least, inside, same};
use crate::exec::Exec;
use crate::expert_groups::ExpertGroups;
use crate::matmul::Product;
use crate::pack::{self, Packed, WeightData};

/// Most products that were fused into one (q, k, v).
const PARTS: usize = 3;
/// Rows of one task of [`shrink`]: whole tiles of 6.
const CHUNK: usize = 24;
/// Multiply-adds below which a fork costs more than it saves.
const ALONE: usize = 1 << 15;
/// A row without an adapter.
pub const NO_ADAPTER: u32 = u32::MAX;

/// One low-rank update: `B [n, rank] · A [rank, k]`, the scale already in B.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    /// A, `[rank, k]`.
    pub a: WeightData<'a>,
    /// B, `[n, rank]`.
    pub b: &'a [f32],
    /// The rank.
    pub rank: usize,
}

/// The update of one product by one adapter, packed.
#[derive(Debug)]
pub struct LowRank {
    /// All A below each other.
    a: Packed,
    /// Of each fused part of the product.
    parts: Vec<Option<Up>>,
    gated: bool,
}

/// B in panels, and which columns of `x · Aᵀ` it takes.
#[derive(Debug)]
struct Up {
    b: Packed,
    /// First column for plain or gate rows, and for up rows.
    from: (usize, usize),
}

impl LowRank {
    /// Packs the update of a product with `parts` fused below each other, `(n, factors)` each.
    ///
    /// # Errors
    /// [`KernelError`] when an extent does not agree with the data, or there is nothing to pack.
    pub fn plain(parts: &[(usize, Option<Factors<'_>>)], k: usize) -> Result<LowRank> {
        const OP: &str = "lora::plain";
        if parts.len() > PARTS {
            return Err(KernelError::Unsupported { op: OP, what: "fused products", value: parts.len() });
        }
        let (mut down, mut ups, mut from) = (Vec::new(), Vec::new(), 0);
        for (n, factors) in parts {
            let Some(factors) = factors else {
                ups.push(None);
                continue;
            };
            let b = pack::dense(WeightData::F32(factors.b), *n, factors.rank, None)?;
            ups.push(Some(Up { b, from: (from, from) }));
            down.push((factors.a, factors.rank));
            from += factors.rank;
        }
        Ok(LowRank { a: pack_down(OP, &down, k)?, parts: ups, gated: false })
    }

    /// Packs the updates of gate and up, `n` rows each, of a product with gated panels.
    ///
    /// # Errors
    /// As [`LowRank::plain`].
    pub fn gated(gate: Option<Factors<'_>>, up: Option<Factors<'_>>, n: usize, k: usize) -> Result<LowRank> {
        const OP: &str = "lora::gated";
        // The panels have one rank: the shorter B gets columns of zeros, read against a row of A that exists.
        let rank = gate.map_or(0, |gate| gate.rank).max(up.map_or(0, |up| up.rank));
        let (mut down, mut from) = (Vec::new(), 0);
        let mut place = |factors: Option<Factors<'_>>| -> Result<(Vec<f32>, usize)> {
            let mut wide = vec![0.0; n * rank];
            let Some(factors) = factors else { return Ok((wide, 0)) };
            same(OP, "elements of B", factors.b.len(), n * factors.rank)?;
            if factors.rank > 0 {
                for (to, row) in wide.chunks_exact_mut(rank).zip(factors.b.chunks_exact(factors.rank)) {
                    to[..factors.rank].copy_from_slice(row);
                }
            }
            let at = from;
            from += factors.rank;
            Ok((wide, at))
        };
        let ((gate_b, gate_from), (up_b, up_from)) = (place(gate)?, place(up)?);
        down.extend(gate.iter().chain(&up).map(|factors| (factors.a, factors.rank)));
        // The last B's zeros reach past the last A: one more block of zero rows is there for them.
        let total: usize = down.iter().map(|(_, rank)| rank).sum();
        let missing = (gate_from.max(up_from) + rank).saturating_sub(total);
        let zeros = vec![0.0; missing * k];
        if missing > 0 {
            down.push((WeightData::F32(&zeros), missing));
        }
        Self::with_gated_panels(OP, &down, (&gate_b, gate_from), (&up_b, up_from), (n, rank, k))
    }

    /// Packs one update of gate and up together: `B [2 n, rank]`, the gate's rows first, and one A for both.
    ///
    /// # Errors
    /// As [`LowRank::plain`].
    pub fn gated_shared(factors: Factors<'_>, n: usize, k: usize) -> Result<LowRank> {
        const OP: &str = "lora::gated_shared";
        same(OP, "elements of B", factors.b.len(), 2 * n * factors.rank)?;
        let (gate, up) = factors.b.split_at(n * factors.rank);
        let down = [(factors.a, factors.rank)];
        Self::with_gated_panels(OP, &down, (gate, 0), (up, 0), (n, factors.rank, k))
    }

    fn with_gated_panels(
        op: &'static str,
        down: &[(WeightData<'_>, usize)],
        gate: (&[f32], usize),
        up: (&[f32], usize),
        (n, rank, k): (usize, usize, usize),
    ) -> Result<LowRank> {
        let a = pack_down(op, down, k)?;
        let b = pack::gate_up(&[WeightData::F32(gate.0)], &[WeightData::F32(up.0)], n, rank, None)?;
        let b = b.into_first().ok_or(KernelError::Unsupported { op, what: "experts", value: 0 })?;
        Ok(LowRank { a, parts: vec![Some(Up { b, from: (gate.1, up.1) })], gated: true })
    }

    /// Columns of scratch that a row needs.
    #[must_use]
    pub fn width(&self) -> usize {
        self.a.n()
    }

    fn entry(&self) -> Entry {
        let mut parts = [NOTHING; PARTS];
        for (part, up) in parts.iter_mut().zip(&self.parts) {
            if let Some(Up { b, from }) = up {
                let panels = b.segments()[0].data.bytes().as_ptr().cast();
                *part = Panels { b: panels, n: b.n(), rank: b.k(), from: *from };
            }
        }
        Entry { parts, gated: self.gated }
    }

    /// Memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.a.bytes() + self.parts.iter().flatten().map(|up| up.b.bytes()).sum::<usize>()
    }
}

/// A of all parts below each other in panels; one run of panels where all have one type.
fn pack_down(op: &'static str, down: &[(WeightData<'_>, usize)], k: usize) -> Result<Packed> {
    if down.is_empty() || down.iter().any(|(_, rank)| *rank == 0) {
        return Err(KernelError::Unsupported { op, what: "a rank", value: 0 });
    }
    pack::dense_rows(down, k, None)
}

/// Rows that share a low-rank update.
#[derive(Debug, Clone, Copy)]
struct Group {
    adapter: u32,
    expert: u32,
    /// Its positions: rows of the scratch.
    start: u32,
    end: u32,
}

/// What the product reads of a group's update.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Of each fused part; rank 0 where there is no update.
    parts: [Panels; PARTS],
    gated: bool,
}

/// B of one part in panels of 16 columns, `[rank][16]` f32.
#[derive(Debug, Clone, Copy)]
struct Panels {
    b: *const f32,
    n: usize,
    rank: usize,
    from: (usize, usize),
}

const NOTHING: Panels = Panels { b: std::ptr::null(), n: 0, rank: 0, from: (0, 0) };

/// Where a row's `x · Aᵀ` is.
#[derive(Debug, Clone, Copy)]
struct Place {
    group: u32,
    position: u32,
}

const NOWHERE: Place = Place { group: NO_ADAPTER, position: 0 };

/// Which rows of a batch have which adapter, and scratch for their `x · Aᵀ`; sized once.
#[derive(Debug)]
pub struct AdapterRows {
    max_rows: usize,
    rows: usize,
    positions: usize,
    groups: Vec<Group>,
    entries: Vec<Entry>,
    /// Of each row of the output.
    places: Vec<Place>,
    /// The output row of each position.
    outputs: Vec<u32>,
    /// The token of each position.
    tokens: Vec<u32>,
    /// Rows of each adapter of one expert; then where its next row goes.
    counts: Vec<u32>,
    /// First task of each group.
    tasks: Vec<u32>,
    shrunk: Buf,
}

// SAFETY: the pointers in `entries` are written and read inside `shrink` and the ops that take its result, which
// borrow the updates that they point into; between ops nobody follows them.
unsafe impl Send for AdapterRows {}
// SAFETY: as for Send; a shared AdapterRows gives no access to the entries.
unsafe impl Sync for AdapterRows {}

impl AdapterRows {
    /// Scratch for `max_rows` rows whose updates have up to `width` ranks together.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub fn new(max_rows: usize, width: usize) -> Result<AdapterRows> {
        Ok(AdapterRows {
            max_rows,
            rows: 0,
            positions: 0,
            groups: Vec::with_capacity(max_rows),
            entries: Vec::with_capacity(max_rows),
            places: vec![NOWHERE; max_rows],
            outputs: vec![0; max_rows],
            tokens: vec![0; max_rows],
            counts: vec![0; max_rows],
            tasks: Vec::with_capacity(max_rows),
            shrunk: Buf::zeros(DType::F32, &[max_rows, width])?,
        })
    }

    /// Groups the rows of a batch by the adapter of each, `of`, below `adapters` or [`NO_ADAPTER`].
    ///
    /// # Errors
    /// [`KernelError`] when there are too many, or one does not exist.
    pub fn group(&mut self, of: &[u32], adapters: usize) -> Result<()> {
        self.begin(of.len(), of, adapters)?;
        self.section(0, 0..of.len(), of, |row| row, adapters);
        Ok(())
    }

    /// Groups the sorted rows of `groups` by expert and by the adapter of their token.
    ///
    /// # Errors
    /// As [`AdapterRows::group`].
    pub fn group_experts(&mut self, of: &[u32], adapters: usize, groups: &ExpertGroups) -> Result<()> {
        same("lora", "tokens", of.len() * groups.k(), groups.rows())?;
        self.begin(groups.rows(), of, adapters)?;
        for expert in 0..groups.experts() {
            let token = |row: usize| groups.tokens().map_or(row, |tokens| tokens[row] as usize);
            self.section(expert, groups.range(expert), of, token, adapters);
        }
        Ok(())
    }

    fn begin(&mut self, rows: usize, of: &[u32], adapters: usize) -> Result<()> {
        at_least("lora", "room for rows", self.max_rows, rows)?;
        at_least("lora", "room for adapters", self.max_rows, adapters)?;
        for adapter in of.iter().filter(|adapter| **adapter != NO_ADAPTER) {
            inside("lora", "adapter", *adapter as usize, adapters)?;
        }
        (self.rows, self.positions) = (rows, 0);
        self.groups.clear();
        self.places[..rows].fill(NOWHERE);
        Ok(())
    }

    /// Appends the groups of `rows`, which one expert has.
    fn section(
        &mut self,
        expert: usize,
        rows: Range<usize>,
        of: &[u32],
        token: impl Fn(usize) -> usize,
        adapters: usize,
    ) {
        let counts = &mut self.counts[..adapters];
        counts.fill(0);
        for row in rows.clone() {
            if let Some(count) = counts.get_mut(of[token(row)] as usize) {
                *count += 1;
            }
        }
        for (adapter, count) in counts.iter_mut().enumerate() {
            if *count == 0 {
                continue;
            }
            let start = self.positions as u32;
            self.positions += *count as usize;
            // From here on the count is the group.
            *count = self.groups.len() as u32;
            self.groups.push(Group { adapter: adapter as u32, expert: expert as u32, start, end: start });
        }
        for row in rows {
            let token = token(row);
            let Some(group) = counts.get(of[token] as usize) else { continue };
            let at = self.groups[*group as usize].end;
            self.groups[*group as usize].end += 1;
            self.places[row] = Place { group: *group, position: at };
            self.outputs[at as usize] = row as u32;
            self.tokens[at as usize] = token as u32;
        }
    }
}

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
/// [`KernelError`] when shapes do not agree or the scratch is too small.
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
            rows.entries.push(Entry { parts: [NOTHING; PARTS], gated: false });
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
    let (groups, firsts) = (&rows.groups, &rows.tasks);
    let one = |task: usize| {
        // The last group that starts here or before: one without tasks has the number of the next.
        let at = firsts.partition_point(|first| *first as usize <= task) - 1;
        let group = groups[at];
        let Some(update) = update(group.adapter as usize, group.expert as usize) else { return };
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
