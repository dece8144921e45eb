//! Products with integer weights: exact i32 dots a group, f32 sums over the groups in order.

use super::float::{InputRows, Sink};
use super::{Isa, LANES, dispatch};

/// A product over a range of panels with Int8 or Int4 weights.
#[derive(Clone, Copy)]
pub(crate) struct IntJob {
    /// int8 codes of the activations, `[rows, max_k]`.
    pub(crate) codes: InputRows<i8>,
    /// Scales, one a group of 32, with their own stride.
    pub(crate) scales: InputRows<f32>,
    /// Sums of codes, one a group of 16, with their own stride.
    pub(crate) sums: InputRows<i32>,
    pub(crate) rows: (usize, usize),
    pub(crate) k: usize,
    pub(crate) panels: *const u8,
    pub(crate) panel_bytes: usize,
    pub(crate) range: (usize, usize),
    pub(crate) sink: Sink,
}

dispatch!(
    /// Int8 weights in groups of 32.
    ///
    /// # Safety
    /// The job's pointers cover what its shape says; no other worker writes its panels' columns.
    pub(crate) unsafe fn run_int8_32(job: &IntJob) = int8_32
);
dispatch!(
    /// Int8 weights in groups of 16.
    ///
    /// # Safety
    /// As [`run_int8_32`].
    pub(crate) unsafe fn run_int8_16(job: &IntJob) = int8_16
);
dispatch!(
    /// Int4 weights in groups of 32.
    ///
    /// # Safety
    /// As [`run_int8_32`].
    pub(crate) unsafe fn run_int4(job: &IntJob) = int4
);

#[inline(always)]
unsafe fn int8_32<S: Isa>(job: &IntJob) {
    // SAFETY: forwarded.
    unsafe { panels::<S, Int8<32>>(job) }
}
#[inline(always)]
unsafe fn int8_16<S: Isa>(job: &IntJob) {
    // SAFETY: forwarded.
    unsafe { panels::<S, Int8<16>>(job) }
}
#[inline(always)]
unsafe fn int4<S: Isa>(job: &IntJob) {
    // SAFETY: forwarded.
    unsafe { panels::<S, Int4>(job) }
}

trait Format {
    const GROUP: usize;
    /// Bytes of codes of one group in a panel.
    const CODE_BYTES: usize;
    /// Whether groups have a minimum.
    const MINIMA: bool;
    /// What a row's dots start from, given the sum of its codes in the group.
    fn start(sum: i32) -> i32;
    /// Adds the dots of one group: `w[p]` is where panel p's codes of the group start, `x[r]` row r's codes.
    ///
    /// # Safety
    /// The pointers cover one group.
    unsafe fn dots<S: Isa, const MR: usize, const NP: usize>(
        w: [*const u8; NP],
        x: [*const i32; MR],
        acc: &mut [[S::I; NP]; MR],
    );
}

struct Int8<const G: usize>;

impl<const G: usize> Format for Int8<G> {
    const GROUP: usize = G;
    const CODE_BYTES: usize = G * LANES;
    const MINIMA: bool = false;

    /// Codes are stored plus 128 (unsigned, as `vpdpbusd` wants), which adds 128 times the activations' sum.
    #[inline(always)]
    fn start(sum: i32) -> i32 {
        -128 * sum
    }

    #[inline(always)]
    unsafe fn dots<S: Isa, const MR: usize, const NP: usize>(
        w: [*const u8; NP],
        x: [*const i32; MR],
        acc: &mut [[S::I; NP]; MR],
    ) {
        for step in 0..G / 4 {
            for p in 0..NP {
                // SAFETY: a group has G / 4 steps of 64 bytes of weights and of one i32 of activations.
                unsafe {
                    let weights = S::load_bytes(w[p].add(step * 64));
                    for r in 0..MR {
                        acc[r][p] = S::dot4(acc[r][p], weights, x[r].add(step).read_unaligned());
                    }
                }
            }
        }
    }
}

struct Int4;

impl Format for Int4 {
    const GROUP: usize = 32;
    const CODE_BYTES: usize = 256;
    const MINIMA: bool = true;

    #[inline(always)]
    fn start(_: i32) -> i32 {
        0
    }

    #[inline(always)]
    unsafe fn dots<S: Isa, const MR: usize, const NP: usize>(
        w: [*const u8; NP],
        x: [*const i32; MR],
        acc: &mut [[S::I; NP]; MR],
    ) {
        for step in 0..4 {
            for p in 0..NP {
                // SAFETY: a group has four steps of 64 bytes of weights and eight i32 of activations.
                unsafe {
                    let (low, high) = S::nibbles(S::load_bytes(w[p].add(step * 64)));
                    for r in 0..MR {
                        acc[r][p] = S::dot4(acc[r][p], low, x[r].add(step).read_unaligned());
                        acc[r][p] = S::dot4(acc[r][p], high, x[r].add(step + 4).read_unaligned());
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn panels<S: Isa, T: Format>(job: &IntJob) {
    let (mut panel, end) = job.range;
    let single = job.rows.1 - job.rows.0 == 1;
    // SAFETY: every tile stays inside the job's panels and rows.
    unsafe {
        while panel < end {
            if single && end - panel >= 8 {
                tile::<S, T, 1, 8>(job, job.rows.0, panel);
                panel += 8;
            } else if end - panel >= 2 {
                rows::<S, T, 2>(job, panel);
                panel += 2;
            } else {
                rows::<S, T, 1>(job, panel);
                panel += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn rows<S: Isa, T: Format, const NP: usize>(job: &IntJob, panel: usize) {
    let (mut row, end) = job.rows;
    // SAFETY: forwarded.
    unsafe {
        while end - row >= 6 {
            tile::<S, T, 6, NP>(job, row, panel);
            row += 6;
        }
        if end - row >= 4 {
            tile::<S, T, 4, NP>(job, row, panel);
            row += 4;
        }
        if end - row >= 2 {
            tile::<S, T, 2, NP>(job, row, panel);
            row += 2;
        }
        if end - row == 1 {
            tile::<S, T, 1, NP>(job, row, panel);
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Isa, T: Format, const MR: usize, const NP: usize>(job: &IntJob, row: usize, panel: usize) {
    let groups = job.k / T::GROUP;
    // SAFETY: rows row..row+MR and panels panel..panel+NP exist with the layout of `pack`.
    unsafe {
        let mut codes = [std::ptr::null::<i32>(); MR];
        let mut scales = [std::ptr::null::<f32>(); MR];
        let mut sums = [std::ptr::null::<i32>(); MR];
        for r in 0..MR {
            codes[r] = job.codes.row(row + r).cast();
            scales[r] = job.scales.row(row + r);
            sums[r] = job.sums.row(row + r);
        }
        let mut start = [std::ptr::null::<u8>(); NP];
        for (p, start) in start.iter_mut().enumerate() {
            *start = job.panels.add((panel + p) * job.panel_bytes);
        }
        let mut acc = [[S::zero(); NP]; MR];
        for group in 0..groups {
            let mut dots = [[S::izero(); NP]; MR];
            let mut sum = [0_i32; MR];
            for r in 0..MR {
                sum[r] = if T::GROUP == 32 {
                    *sums[r].add(group * 2) + *sums[r].add(group * 2 + 1)
                } else {
                    *sums[r].add(group)
                };
                dots[r] = [S::iset1(T::start(sum[r])); NP];
            }
            let mut w = start;
            for w in &mut w {
                *w = w.add(group * T::CODE_BYTES);
            }
            let mut x = codes;
            for x in &mut x {
                *x = x.add(group * T::GROUP / 4);
            }
            T::dots::<S, MR, NP>(w, x, &mut dots);
            for p in 0..NP {
                let scale_at: *const f32 =
                    start[p].add(groups * T::CODE_BYTES).cast::<f32>().add(group * LANES);
                let weight_scale = S::load(scale_at);
                for r in 0..MR {
                    let scale = *scales[r].add(group * T::GROUP / 32);
                    let both = S::mul(S::set1(scale), weight_scale);
                    acc[r][p] = S::fma(S::to_f32(dots[r][p]), both, acc[r][p]);
                    if T::MINIMA {
                        let min = S::load(scale_at.add(groups * LANES));
                        acc[r][p] = S::fma(S::set1(-scale * sum[r] as f32), min, acc[r][p]);
                    }
                }
            }
        }
        for r in 0..MR {
            for p in 0..NP {
                let mut values = [0.0_f32; LANES];
                S::store(values.as_mut_ptr(), acc[r][p]);
                job.sink.put::<S>(row + r, panel + p, values);
            }
        }
    }
}

dispatch!(
    /// Quantises rows of `k` f32 to int8 in groups of 32: scale = largest magnitude / 127, round to nearest even.
    ///
    /// # Safety
    /// `x` is readable for `k`, the outputs writable for `k`, `k / 32` and `k / 16`.
    pub(crate) unsafe fn quantize_row(x: *const f32, k: usize, codes: *mut i8, scales: *mut f32, sums: *mut i32) = quantize_row_inner
);

#[inline(always)]
unsafe fn quantize_row_inner<S: Isa>(
    x: *const f32,
    k: usize,
    codes: *mut i8,
    scales: *mut f32,
    sums: *mut i32,
) {
    for group in 0..k / 32 {
        // SAFETY: the caller's contract.
        unsafe {
            let values = x.add(group * 32).cast::<[f32; 32]>().read_unaligned();
            let (scale, quantized) = quantize_group(&values);
            *scales.add(group) = scale;
            codes.add(group * 32).cast::<[i8; 32]>().write_unaligned(quantized);
            for half in 0..2 {
                *sums.add(group * 2 + half) =
                    quantized[half * 16..half * 16 + 16].iter().map(|q| i32::from(*q)).sum();
            }
        }
    }
}

/// Scale and codes of 32 values.
#[inline(always)]
pub(crate) fn quantize_group(values: &[f32; 32]) -> (f32, [i8; 32]) {
    // By their bits magnitudes order as numbers do, and what is no number is above all: it makes the scale none either.
    let largest = f32::from_bits(values.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff)));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut codes = [0_i8; 32];
    for (code, x) in codes.iter_mut().zip(values) {
        // Rounds to nearest even without a branch: |x * inverse| <= 127.
        *code = ((x * inverse + 12_582_912.0) - 12_582_912.0) as i8;
    }
    (largest / 127.0, codes)
}
