//! Products with float weights: `x [M, K] · panelᵀ`, each output a sequential fused sum over k, and then its row's scale
//! where weights are fp8 codes.

use std::marker::PhantomData;

use super::{FP8_UNITS, Isa, LANES, dispatch};
use crate::buf::RawRows;
use crate::cpu::math::silu;
use crate::lora::RowDeltas;

/// Where the results of a tile go.
#[derive(Clone, Copy)]
pub(crate) struct Sink {
    pub(crate) out: RawRows,
    /// First column of the segment in the output.
    pub(crate) col: usize,
    /// Outputs of the segment.
    pub(crate) n: usize,
    /// Bias for the segment's outputs, or null.
    pub(crate) bias: *const f32,
    /// Add to what is there.
    pub(crate) add: bool,
    /// Panels hold 8 gate rows and their 8 up rows.
    pub(crate) gated: bool,
    /// What adapters add to rows.
    pub(crate) deltas: Option<RowDeltas>,
}

impl Sink {
    /// Writes 16 results of `row` for panel `panel`.
    ///
    /// # Safety
    /// `row` is a row of the output, `panel` a panel of the segment, `bias` null or `n` long; the deltas were checked
    /// against the product.
    #[inline(always)]
    pub(crate) unsafe fn put<S: Isa>(&self, row: usize, panel: usize, mut values: [f32; LANES]) {
        if let Some(deltas) = &self.deltas {
            // SAFETY: forwarded.
            unsafe { deltas.add::<S>(row, panel, &mut values) };
        }
        if self.gated {
            let from = panel * 8;
            let width = (self.n - from).min(8);
            let to = self.out.at(row, self.col + from);
            let mut gated = [0.0_f32; 8];
            for lane in 0..8 {
                gated[lane] = silu(values[lane]) * values[lane + 8];
            }
            // SAFETY: columns col + from .. col + from + width are inside the output by the caller's contract.
            unsafe { std::ptr::copy_nonoverlapping(gated.as_ptr(), to, width) };
            return;
        }
        let from = panel * LANES;
        let width = (self.n - from).min(LANES);
        let to = self.out.at(row, self.col + from);
        for lane in 0..width {
            if !self.bias.is_null() {
                // SAFETY: from + lane < n, and the bias is n long.
                values[lane] += unsafe { *self.bias.add(from + lane) };
            }
            if self.add {
                // SAFETY: the column is inside the output.
                values[lane] += unsafe { *to.add(lane) };
            }
        }
        // SAFETY: width columns from `to` are inside the output.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to, width) };
    }
}

/// Input rows: contiguous by stride, or gathered by index.
#[derive(Clone, Copy)]
pub(crate) struct InputRows<T> {
    pub(crate) start: *const T,
    pub(crate) stride: usize,
    /// Null, or the input row of each output row.
    pub(crate) index: *const u32,
}

impl<T> InputRows<T> {
    /// Where row `row` starts.
    ///
    /// # Safety
    /// `row` is below the number of rows that this was made for.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, row: usize) -> *const T {
        // SAFETY: the index, where there is one, is as long as there are rows.
        let source = if self.index.is_null() { row } else { unsafe { *self.index.add(row) as usize } };
        self.start.wrapping_add(source * self.stride)
    }
}

/// A product over a range of panels.
#[derive(Clone, Copy)]
pub(crate) struct FloatJob {
    pub(crate) x: InputRows<f32>,
    /// Output rows.
    pub(crate) rows: (usize, usize),
    pub(crate) k: usize,
    pub(crate) panels: *const u8,
    pub(crate) panel_bytes: usize,
    pub(crate) range: (usize, usize),
    pub(crate) sink: Sink,
}

pub(crate) trait Element: Copy {
    /// # Safety
    /// As [`Isa::load`].
    unsafe fn load<S: Isa>(p: *const Self) -> S::F;

    /// What sums over `panel`, of `k` columns, stand for.
    ///
    /// # Safety
    /// The panel is one of such weights.
    #[inline(always)]
    unsafe fn finish<S: Isa>(sums: S::F, _panel: *const Self, _k: usize) -> S::F {
        sums
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const f32) -> S::F {
        // SAFETY: forwarded.
        unsafe { S::load(p) }
    }
}
impl Element for half::bf16 {
    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const half::bf16) -> S::F {
        // SAFETY: forwarded.
        unsafe { S::load_bf16(p) }
    }
}
impl Element for half::f16 {
    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const half::f16) -> S::F {
        // SAFETY: forwarded.
        unsafe { S::load_f16(p) }
    }
}

/// An fp8 code. The codes of a panel are followed by the scales of its rows.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Code(u8);

impl Element for Code {
    #[inline(always)]
    unsafe fn load<S: Isa>(p: *const Code) -> S::F {
        // SAFETY: forwarded.
        unsafe { S::load_fp8(p.cast()) }
    }

    #[inline(always)]
    unsafe fn finish<S: Isa>(sums: S::F, panel: *const Code, k: usize) -> S::F {
        // SAFETY: 16 scales lie behind the panel's codes.
        unsafe {
            let scales = S::load(panel.add(k * LANES).cast());
            S::mul(sums, S::mul(scales, S::set1(FP8_UNITS)))
        }
    }
}

dispatch!(
    /// # Safety
    /// The job's pointers cover what its shape says; no other worker writes its panels' columns.
    pub(crate) unsafe fn run_f32(job: &FloatJob) = run_inner_f32
);
dispatch!(
    /// # Safety
    /// As [`run_f32`].
    pub(crate) unsafe fn run_bf16(job: &FloatJob) = run_inner_bf16
);
dispatch!(
    /// # Safety
    /// As [`run_f32`].
    pub(crate) unsafe fn run_f16(job: &FloatJob) = run_inner_f16
);
dispatch!(
    /// # Safety
    /// As [`run_f32`].
    pub(crate) unsafe fn run_fp8(job: &FloatJob) = run_inner_fp8
);

#[inline(always)]
unsafe fn run_inner_f32<S: Isa>(job: &FloatJob) {
    // SAFETY: forwarded.
    unsafe { panels::<S, f32>(job, PhantomData) }
}
#[inline(always)]
unsafe fn run_inner_bf16<S: Isa>(job: &FloatJob) {
    // SAFETY: forwarded.
    unsafe { panels::<S, half::bf16>(job, PhantomData) }
}
#[inline(always)]
unsafe fn run_inner_f16<S: Isa>(job: &FloatJob) {
    // SAFETY: forwarded.
    unsafe { panels::<S, half::f16>(job, PhantomData) }
}
#[inline(always)]
unsafe fn run_inner_fp8<S: Isa>(job: &FloatJob) {
    // SAFETY: forwarded.
    unsafe { panels::<S, Code>(job, PhantomData) }
}

#[inline(always)]
unsafe fn panels<S: Isa, W: Element>(job: &FloatJob, _: PhantomData<W>) {
    let (mut panel, end) = job.range;
    let single = job.rows.1 - job.rows.0 == 1;
    // SAFETY: every tile stays inside the job's panels and rows.
    unsafe {
        while panel < end {
            if single && end - panel >= 8 {
                tile::<S, W, 1, 8>(job, job.rows.0, panel);
                panel += 8;
            } else if end - panel >= 4 {
                rows::<S, W, 4>(job, panel);
                panel += 4;
            } else {
                rows::<S, W, 1>(job, panel);
                panel += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn rows<S: Isa, W: Element, const NP: usize>(job: &FloatJob, panel: usize) {
    let (mut row, end) = job.rows;
    // SAFETY: forwarded.
    unsafe {
        while end - row >= 6 {
            tile::<S, W, 6, NP>(job, row, panel);
            row += 6;
        }
        if end - row >= 4 {
            tile::<S, W, 4, NP>(job, row, panel);
            row += 4;
        }
        if end - row >= 2 {
            tile::<S, W, 2, NP>(job, row, panel);
            row += 2;
        }
        if end - row == 1 {
            tile::<S, W, 1, NP>(job, row, panel);
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Isa, W: Element, const MR: usize, const NP: usize>(
    job: &FloatJob,
    row: usize,
    panel: usize,
) {
    // SAFETY: rows row..row+MR and panels panel..panel+NP exist; a panel has k * 16 elements.
    unsafe {
        let mut x = [std::ptr::null::<f32>(); MR];
        for (r, x) in x.iter_mut().enumerate() {
            *x = job.x.row(row + r);
        }
        let mut w = [std::ptr::null::<W>(); NP];
        for (p, w) in w.iter_mut().enumerate() {
            *w = job.panels.add((panel + p) * job.panel_bytes).cast();
        }
        let mut acc = [[S::zero(); NP]; MR];
        for k in 0..job.k {
            let mut weights = [S::zero(); NP];
            for p in 0..NP {
                weights[p] = W::load::<S>(w[p].add(k * LANES));
            }
            for r in 0..MR {
                let value = S::set1(*x[r].add(k));
                for p in 0..NP {
                    acc[r][p] = S::fma(value, weights[p], acc[r][p]);
                }
            }
        }
        for r in 0..MR {
            for p in 0..NP {
                let mut values = [0.0_f32; LANES];
                S::store(values.as_mut_ptr(), W::finish::<S>(acc[r][p], w[p], job.k));
                job.sink.put::<S>(row + r, panel + p, values);
            }
        }
    }
}
