//! `expert_stream.cu` against [`crate::gated_up()`] and plain loops.

use super::CheckDevice;
use super::compare::{HALVES, Tensor, Tolerance, close, equal, fetch, indices, named, read_only, tensor};
use super::weights::{Rows, Stored};
use crate::check::{fill, hash};
use crate::device::Use;
use crate::device::expert_stream::{Delta, Experts, expert_combine, expert_down, expert_up, interleave};
use crate::device::{Launch, Ptr, Weights};
use crate::pack::{self, WeightData};
use crate::{DType, Exec, ExpertGroups, Fp8Rows, View, ViewMut, Workspace};

#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) tokens: usize,
    pub(super) ranks: usize,
    pub(super) experts: usize,
    pub(super) h: usize,
    pub(super) inner: usize,
    /// All pairs go to the last expert.
    pub(super) one_expert: bool,
    pub(super) long: bool,
}

type Product = fn(&Experts, Ptr, Weights, Delta, Ptr) -> crate::Result<Launch>;

/// The kernels that a case runs.
pub(super) struct Products {
    pub(super) up: Product,
    pub(super) down: Product,
}

/// One token; widths below and beside a step, a panel, a block of rows; empty experts; more tokens on one expert than
/// a block takes at once.
const SHAPES: [Shape; 7] = [
    Shape { tokens: 1, ranks: 1, experts: 1, h: 8, inner: 8, one_expert: false, long: false },
    Shape { tokens: 1, ranks: 2, experts: 8, h: 64, inner: 96, one_expert: false, long: false },
    Shape { tokens: 7, ranks: 2, experts: 3, h: 72, inner: 40, one_expert: false, long: false },
    Shape { tokens: 8, ranks: 2, experts: 2, h: 1064, inner: 24, one_expert: true, long: false },
    Shape { tokens: 19, ranks: 2, experts: 4, h: 136, inner: 56, one_expert: false, long: false },
    Shape { tokens: 45, ranks: 1, experts: 3, h: 64, inner: 32, one_expert: true, long: false },
    Shape { tokens: 32, ranks: 2, experts: 8, h: 512, inner: 448, one_expert: false, long: true },
];

pub(super) fn run(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String> {
    let products = Products { up: expert_up, down: expert_down };
    let mut ran = run_products(device, small, "expert_stream", &SHAPES, &products)?;
    for dtype in super::compare::FLOATS {
        for (tokens, ranks, n) in [(1, 1, 1), (3, 2, 37), (5, 2, 576), (2, 8, 4096)] {
            combine(device, dtype, tokens, ranks, n)?;
            ran += 1;
        }
    }
    Ok(ran)
}

/// Both products over all `shapes`, with and without an adapter's part, with plain weights and with codes.
pub(super) fn run_products(
    device: &mut dyn CheckDevice,
    small: bool,
    kernel: &str,
    shapes: &[Shape],
    products: &Products,
) -> Result<usize, String> {
    let mut ran = 0;
    for dtype in HALVES {
        for stored in Stored::ALL {
            for shape in shapes.iter().filter(|shape| !small || !shape.long) {
                let shape = Shape { h: stored.width(shape.h), inner: stored.width(shape.inner), ..*shape };
                for adapted in [false, true] {
                    let name = format!("{kernel} {dtype:?} {stored:?} {shape:?} delta {adapted}");
                    Case::new(dtype, stored, shape, adapted).run(device, &name, products)?;
                    ran += 1;
                }
            }
        }
        every_code(device, &format!("{kernel} {dtype:?} every code"), dtype, products)?;
        ran += 1;
    }
    Ok(ran)
}

/// Each code at each place of 16 bytes, exactly: token `at` picks column `at`.
fn every_code(
    device: &mut dyn CheckDevice,
    name: &str,
    dtype: DType,
    products: &Products,
) -> Result<(), String> {
    const COLUMNS: usize = 16;
    device.clear();
    let is_nan = |code: u8| code & 0x7f == 0x7f;
    let all: Vec<u8> = (0..=u8::MAX).filter(|code| !is_nan(*code)).chain([0, 0]).collect();
    let codes =
        Fp8Rows { codes: all.iter().flat_map(|code| [*code; COLUMNS]).collect(), scales: fill(all.len(), 1) };
    let shape = Experts {
        offsets: indices(device, "offsets", &[0, COLUMNS as u32])?,
        sorted_pairs: indices(device, "sorted_pairs", &(0..COLUMNS as u32).collect::<Vec<_>>())?,
        dtype,
        experts: 1,
        ranks: 1,
        max_tokens: COLUMNS,
        h: all.len(),
        inner: COLUMNS,
    };
    let picks: Vec<f32> =
        (0..COLUMNS * COLUMNS).map(|at| f32::from(u8::from(at % COLUMNS == at / COLUMNS))).collect();
    let act = read_only(device, "act", &tensor(dtype, &picks).bytes)?;
    let rows = [Rows::of_codes(codes)];
    let w2 = Rows::upload(&rows, device, "w2")?;
    let y = device.alloc("y", COLUMNS * all.len() * 4, Use::Write)?;
    named(name, device.launch(&named(name, (products.down)(&shape, act, w2, Delta::NONE, y))?))?;
    let found = fetch(device, y, DType::F32, COLUMNS * all.len())?;
    for (at, found) in found.chunks_exact(all.len()).enumerate() {
        let expected: Vec<f32> = rows[0].values.iter().skip(at).step_by(COLUMNS).copied().collect();
        equal(&format!("{name}: column {at}"), found, &expected)?;
    }
    Ok(())
}

struct Case {
    dtype: DType,
    shape: Shape,
    ids: Vec<u32>,
    groups: ExpertGroups,
    sorted: Vec<u32>,
    x: Tensor,
    act: Tensor,
    gate: Vec<Rows>,
    up: Vec<Rows>,
    down: Vec<Rows>,
    /// LoRA's part before the nonlinearity, `[pairs, 2 inner]`: w1's columns, then w3's; and after w2, `[pairs, h]`.
    deltas: Option<(Tensor, Tensor)>,
    /// Every third token has no adapter.
    slots: Vec<u32>,
}

impl Case {
    pub(super) fn new(dtype: DType, stored: Stored, shape: Shape, adapted: bool) -> Case {
        let Shape { tokens, ranks, experts, h, inner, .. } = shape;
        let rows = tokens * ranks;
        let ids: Vec<u32> = (0..rows as u64)
            .map(|pair| {
                // The ranks of a token differ where they can.
                let token = pair / ranks as u64;
                let spread = (hash(token, 4) + pair % ranks as u64) % experts as u64;
                if shape.one_expert { experts as u32 - 1 } else { spread as u32 }
            })
            .collect();
        let mut groups = ExpertGroups::new(tokens, ranks, experts);
        groups.align(&ids).expect("ids are experts");
        let mut sorted = vec![0; rows];
        for (pair, row) in groups.position().iter().enumerate() {
            sorted[*row as usize] = pair as u32;
        }
        let random = |len: usize, seed: u64| tensor(dtype, &fill(len, seed));
        let all = |n: usize, k: usize, seed: u64| {
            (0..experts as u64).map(|at| Rows::new(stored, dtype, fill(n * k, seed + at), k)).collect()
        };
        Case {
            dtype,
            shape,
            ids,
            groups,
            sorted,
            x: random(tokens * h, 1),
            act: random(rows * inner, 2),
            gate: all(inner, h, 100),
            up: all(inner, h, 400),
            down: all(h, inner, 700),
            deltas: adapted.then(|| (random(rows * 2 * inner, 3), random(rows * h, 4))),
            slots: (0..tokens as u32)
                .map(|token| if token % 3 == 1 { u32::MAX } else { token % 2 })
                .collect(),
        }
    }

    /// The adapter's part of a pair, `None` where its token has no adapter.
    fn delta<'a>(&self, delta: &'a Tensor, pair: usize, width: usize) -> Option<&'a [f32]> {
        let adapted = self.slots[pair / self.shape.ranks] != u32::MAX;
        adapted.then(|| &delta.values[pair * width..][..width])
    }

    pub(super) fn run(
        &self,
        device: &mut dyn CheckDevice,
        name: &str,
        products: &Products,
    ) -> Result<(), String> {
        let Shape { tokens, ranks, experts, h, inner, .. } = self.shape;
        let rows = tokens * ranks;
        device.clear();
        let mut offsets: Vec<u32> =
            (0..experts).map(|expert| self.groups.range(expert).start as u32).collect();
        offsets.push(rows as u32);
        let shape = Experts {
            offsets: indices(device, "offsets", &offsets)?,
            sorted_pairs: indices(device, "sorted_pairs", &self.sorted)?,
            dtype: self.dtype,
            experts,
            ranks,
            max_tokens: tokens,
            h,
            inner,
        };
        let w13: Vec<Rows> =
            self.gate.iter().zip(&self.up).map(|(gate, up)| Rows::interleaved(gate, up, inner)).collect();
        let x = read_only(device, "x", &self.x.bytes)?;
        let w13 = Rows::upload(&w13, device, "w13")?;
        let w2 = Rows::upload(&self.down, device, "w2")?;
        let given = read_only(device, "given act", &self.act.bytes)?;
        let (delta13, delta2) = match &self.deltas {
            None => (Delta::NONE, Delta::NONE),
            Some((first, second)) => {
                let panels = first.values.chunks_exact(2 * inner).flat_map(|row| {
                    let (gate, up) = row.split_at(inner);
                    interleave(gate, up, inner, 1).expect("inner is a multiple of 8")
                });
                let panels: Vec<f32> = panels.collect();
                let slots = indices(device, "slots", &self.slots)?;
                let first = read_only(device, "delta13", &tensor(self.dtype, &panels).bytes)?;
                let second = read_only(device, "delta2", &second.bytes)?;
                (Delta { values: first, slots }, Delta { values: second, slots })
            }
        };
        let act = device.alloc("act", rows * inner * self.dtype.size(), Use::Write)?;
        let y = device.alloc("y", rows * h * 4, Use::Write)?;
        named(name, device.launch(&named(name, (products.up)(&shape, x, w13, delta13, act))?))?;
        named(name, device.launch(&named(name, (products.down)(&shape, given, w2, delta2, y))?))?;
        self.compare_up(name, &fetch(device, act, self.dtype, rows * inner)?)?;
        self.compare_down(name, &fetch(device, y, DType::F32, rows * h)?)
    }

    fn compare_up(&self, name: &str, found: &[f32]) -> Result<(), String> {
        let Shape { tokens, ranks, h, inner, .. } = self.shape;
        let pairs = tokens * ranks;
        let mut expected = vec![0.0; pairs * inner];
        match &self.deltas {
            None => {
                let w13 = named(name, pack::gate_up(&data(&self.gate), &data(&self.up), inner, h, None))?;
                let x = named(name, View::new(&self.x.values, tokens, h))?;
                let mut sorted = vec![0.0; pairs * inner];
                let out = named(name, ViewMut::new(&mut sorted, pairs, inner))?;
                let mut ws = named(name, Workspace::new(pairs, h))?;
                named(name, crate::gated_up(&Exec::Reference, &mut ws, x, &w13, &self.groups, out, None))?;
                for (row, pair) in self.sorted.iter().enumerate() {
                    expected[*pair as usize * inner..][..inner]
                        .copy_from_slice(&sorted[row * inner..][..inner]);
                }
            }
            Some((delta, _)) => {
                // The reference has no delta before the nonlinearity: both products alone, then the rest here.
                let gate = self.product(&self.gate, inner, h, &self.x.values, ranks);
                let up = self.product(&self.up, inner, h, &self.x.values, ranks);
                for pair in 0..pairs {
                    let delta = self.delta(delta, pair, 2 * inner);
                    for at in 0..inner {
                        let g = gate[pair * inner + at] + delta.map_or(0.0, |delta| delta[at]);
                        let u = up[pair * inner + at] + delta.map_or(0.0, |delta| delta[inner + at]);
                        expected[pair * inner + at] = g / (1.0 + (-g).exp()) * u;
                    }
                }
            }
        }
        // A product of two sums of h terms of a third each.
        let size = (h as f32 / 9.0).sqrt();
        close(
            &format!("{name}: up"),
            found,
            &expected,
            Tolerance::of(self.dtype, h, 3.0 * size * (1.0 + size)),
        )
    }

    fn compare_down(&self, name: &str, found: &[f32]) -> Result<(), String> {
        let Shape { h, inner, .. } = self.shape;
        let mut expected = self.product(&self.down, h, inner, &self.act.values, 1);
        for (pair, row) in expected.chunks_exact_mut(h).enumerate() {
            let delta = self.deltas.as_ref().and_then(|(_, delta)| self.delta(delta, pair, h));
            row.iter_mut().zip(delta.into_iter().flatten()).for_each(|(sum, delta)| *sum += delta);
        }
        let size = 1.0 + (inner as f32 / 9.0).sqrt();
        close(&format!("{name}: down"), found, &expected, Tolerance::of(DType::F32, inner, size))
    }

    /// Each pair's product with its expert, by plain loops; a row of `x` has `share` pairs.
    fn product(&self, weights: &[Rows], n: usize, k: usize, x: &[f32], share: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.ids.len() * n);
        for (pair, id) in self.ids.iter().enumerate() {
            let x = &x[pair / share * k..][..k];
            let w = &weights[*id as usize].values;
            out.extend(
                w.chunks_exact(k).map(|w| x.iter().zip(w).fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum))),
            );
        }
        out
    }
}

fn data(all: &[Rows]) -> Vec<WeightData<'_>> {
    all.iter().map(|rows| WeightData::F32(&rows.values)).collect()
}

fn combine(
    device: &mut dyn CheckDevice,
    dtype: DType,
    tokens: usize,
    ranks: usize,
    n: usize,
) -> Result<(), String> {
    let name = &format!("expert_combine {dtype:?} {tokens} tokens of {ranks} ranks, {n} wide");
    device.clear();
    let (y, weights) = (fill(tokens * ranks * n, 1), fill(tokens * ranks, 2));
    let shape = Experts {
        offsets: Ptr::NONE,
        sorted_pairs: Ptr::NONE,
        dtype,
        experts: 1,
        ranks,
        max_tokens: tokens + 1,
        h: n,
        inner: 0,
    };
    let out = device.alloc("out", tokens * n * dtype.size(), Use::Write)?;
    let from = read_only(device, "y", &tensor(DType::F32, &y).bytes)?;
    let by = read_only(device, "weights", &tensor(DType::F32, &weights).bytes)?;
    let count = indices(device, "tokens", &[tokens as u32])?;
    named(name, device.launch(&named(name, expert_combine(&shape, from, by, out, count))?))?;
    let mut expected = vec![0.0_f32; tokens * n];
    for token in 0..tokens {
        for rank in 0..ranks {
            let pair = token * ranks + rank;
            for at in 0..n {
                expected[token * n + at] = y[pair * n + at].mul_add(weights[pair], expected[token * n + at]);
            }
        }
    }
    close(name, &fetch(device, out, dtype, tokens * n)?, &expected, Tolerance::of(dtype, ranks, 1.0))
}
