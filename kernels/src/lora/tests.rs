use super::*;
use crate::blocks::BlockFormat;
use crate::buf::ViewMut;
use crate::check::{fill, levels, random_blocks};
use crate::cpu::with_level;
use crate::expert_groups::ExpertGroups;
use crate::pack::{self, PackedExperts, WeightData};
use crate::{Workspace, expert_down, gated_up, matmul, matmul_adapted};
use half::{bf16, f16};

/// A and B of one update of `[n, k]`.
struct Pair {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
}

fn pair(n: usize, k: usize, rank: usize, seed: u64) -> Pair {
    Pair { a: fill(rank * k, seed), b: fill(n * rank, seed + 1000), rank }
}

impl Pair {
    fn factors(&self) -> Factors<'_> {
        Factors { a: WeightData::F32(&self.a), b: &self.b, rank: self.rank }
    }

    /// `B · (A · x)`, element `at`, in f64.
    fn exact(&self, x: &[f32], at: usize) -> f64 {
        (0..self.rank)
            .map(|r| {
                let low = dot(x, &self.a[r * x.len()..(r + 1) * x.len()]);
                low * f64::from(self.b[at * self.rank + r])
            })
            .sum()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `x · wᵀ` with `adapters[of[row]]` on each row.
fn adapted(exec: &Exec, x: &[f32], w: &Packed, of: &[u32], adapters: &[Option<LowRank>]) -> Vec<f32> {
    let (m, k) = (of.len(), w.k());
    let mut rows = AdapterRows::new(m.max(adapters.len()), 64).expect("scratch");
    rows.group(of, adapters.len()).expect("groups");
    let view = View::new(x, m, k).expect("x");
    let deltas = shrink(exec, view, RowsOf::Output, &mut rows, &|adapter, _| adapters[adapter].as_ref());
    let mut out = vec![0.0; m * w.n()];
    let mut ws = Workspace::new(m, k).expect("workspace");
    let to = ViewMut::new(&mut out, m, w.n()).expect("out");
    matmul_adapted(exec, &mut ws, view, w, None, to, deltas.expect("shrinks")).expect("matmul");
    out
}

const N: [usize; 3] = [40, 9, 17];

/// q, k and v of an adapter; the second has no k, the third is of rank 1, the fourth updates nothing here.
fn adapters(k: usize) -> (Vec<[Option<Pair>; 3]>, Vec<Option<LowRank>>) {
    let of = |seed: u64, ranks: [usize; 3]| {
        std::array::from_fn(|at| (ranks[at] > 0).then(|| pair(N[at], k, ranks[at], seed * 10 + at as u64)))
    };
    let pairs: Vec<[Option<Pair>; 3]> = vec![of(1, [8, 8, 8]), of(2, [20, 0, 3]), of(3, [1, 1, 1])];
    let packed = pairs.iter().map(|parts| {
        let parts: Vec<_> = N.iter().zip(parts).map(|(n, p)| (*n, p.as_ref().map(Pair::factors))).collect();
        Some(LowRank::plain(&parts, k).expect("packs"))
    });
    let packed = packed.chain([None]).collect();
    (pairs, packed)
}

/// Rows of four adapters and the base, in no order.
fn mixed(rows: usize) -> Vec<u32> {
    (0..rows as u32).map(|row| [2, NO_ADAPTER, 0, 1, 0, 3, NO_ADAPTER][(row * 5 % 7) as usize]).collect()
}

fn weights(k: usize) -> Vec<Packed> {
    let sources: Vec<Vec<f32>> = N.iter().enumerate().map(|(at, n)| fill(n * k, at as u64 + 70)).collect();
    let floats: Vec<_> = sources.iter().zip(N).map(|(data, n)| (WeightData::F32(data), n)).collect();
    let row = BlockFormat::Q8_0.row_bytes(k).expect("whole blocks");
    let blocks: Vec<Vec<u8>> =
        N.iter().map(|n| random_blocks(BlockFormat::Q8_0, n * row / BlockFormat::Q8_0.bytes(), 3)).collect();
    let integers: Vec<_> =
        blocks.iter().zip(N).map(|(data, n)| (WeightData::Blocks(BlockFormat::Q8_0, data), n)).collect();
    vec![
        pack::dense_rows(&floats, k, None).expect("packs"),
        pack::dense_rows(&floats, k, Some(crate::WeightFormat::BF16)).expect("packs"),
        pack::dense_rows(&integers, k, None).expect("packs"),
    ]
}

#[test]
fn updates_are_those_of_plain_loops_and_land_in_their_own_columns() {
    let (rows, k) = (33, 64);
    let (x, of) = (fill(rows * k, 5), mixed(rows));
    let (pairs, packed) = adapters(k);
    for w in weights(k) {
        let mut base = vec![0.0; rows * w.n()];
        let mut ws = Workspace::new(rows, k).expect("workspace");
        let view = View::new(&x, rows, k).expect("x");
        let to = ViewMut::new(&mut base, rows, w.n()).expect("out");
        matmul(&Exec::simd(1), &mut ws, view, &w, None, to, false).expect("matmul");
        let out = adapted(&Exec::simd(2), &x, &w, &of, &packed);
        for row in 0..rows {
            let (mut col, parts) = (0, pairs.get(of[row] as usize));
            for (part, n) in N.iter().enumerate() {
                for at in 0..*n {
                    let pair = parts.and_then(|parts| parts[part].as_ref());
                    let delta = pair.map_or(0.0, |pair| pair.exact(&x[row * k..(row + 1) * k], at));
                    let (found, base) = (out[row * w.n() + col], base[row * w.n() + col]);
                    let wanted = f64::from(base) + delta;
                    assert!((f64::from(found) - wanted).abs() < 1e-4, "{w:?} {row} {col}: {found} {wanted}");
                    assert!(pair.is_some() || found == base, "{w:?} {row} {col}: the base moved");
                    col += 1;
                }
            }
        }
    }
}

#[test]
fn a_row_alone_equals_the_row_in_any_mix_of_adapters_threads_and_instruction_sets_bit_for_bit() {
    // Enough rows for several tasks of a group.
    let (rows, k) = (150, 64);
    let (x, of) = (fill(rows * k, 6), mixed(rows));
    let (_, packed) = adapters(k);
    for w in weights(k) {
        let all = adapted(&Exec::Reference, &x, &w, &of, &packed);
        for threads in [1, 2, 3] {
            assert_eq!(adapted(&Exec::simd(threads), &x, &w, &of, &packed), all, "{w:?} {threads} threads");
        }
        for level in levels() {
            let other = with_level(level, || adapted(&Exec::simd(1), &x, &w, &of, &packed));
            assert_eq!(other, all, "{w:?} {level:?}");
        }
        for row in 0..rows {
            let alone = adapted(&Exec::simd(2), &x[row * k..(row + 1) * k], &w, &of[row..=row], &packed);
            assert_eq!(alone, all[row * w.n()..(row + 1) * w.n()], "{w:?} row {row}");
        }
    }
}

#[test]
fn half_precision_factors_count_as_stored() {
    let (k, n, rank) = (32, 20, 4);
    let (x, pair) = (fill(k, 1), pair(n, k, rank, 2));
    let w = pack::dense(WeightData::F32(&fill(n * k, 9)), n, k, None).expect("packs");
    let run = |a: WeightData<'_>| {
        let factors = Factors { a, b: &pair.b, rank };
        let update = LowRank::plain(&[(n, Some(factors))], k).expect("packs");
        adapted(&Exec::simd(1), &x, &w, &[0], &[Some(update)])
    };
    let bf: Vec<bf16> = pair.a.iter().map(|a| bf16::from_f32(*a)).collect();
    let wide: Vec<f32> = bf.iter().map(|a| a.to_f32()).collect();
    assert_eq!(run(WeightData::BF16(&bf)), run(WeightData::F32(&wide)));
    let half: Vec<f16> = pair.a.iter().map(|a| f16::from_f32(*a)).collect();
    let wide: Vec<f32> = half.iter().map(|a| a.to_f32()).collect();
    assert_eq!(run(WeightData::F16(&half)), run(WeightData::F32(&wide)));
}

struct Moe {
    w13: PackedExperts,
    w2: PackedExperts,
    gate: Vec<Vec<f32>>,
    up: Vec<Vec<f32>>,
    down: Vec<Vec<f32>>,
}

const H: usize = 24;
const I: usize = 20;
const EXPERTS: usize = 4;
const TOP: usize = 2;

fn moe(experts: usize) -> Moe {
    let all = |seed: u64| -> Vec<Vec<f32>> { (0..experts).map(|e| fill(I * H, seed + e as u64)).collect() };
    let (gate, up, down) = (all(0), all(10), all(20));
    fn data(all: &[Vec<f32>]) -> Vec<WeightData<'_>> {
        all.iter().map(|x| WeightData::F32(x)).collect()
    }
    let w13 = pack::gate_up(&data(&gate), &data(&up), I, H, None).expect("packs");
    let w2 = pack::experts(&data(&down), H, I, None).expect("packs");
    Moe { w13, w2, gate, up, down }
}

/// gate, up and down of an expert's update.
type ExpertPairs = [Option<Pair>; 3];

fn expert_pairs(seed: u64, ranks: [usize; 3]) -> ExpertPairs {
    let shapes = [(I, H), (I, H), (H, I)];
    std::array::from_fn(|at| {
        let (n, k) = shapes[at];
        (ranks[at] > 0).then(|| pair(n, k, ranks[at], seed * 10 + at as u64))
    })
}

fn packed_expert(pairs: &ExpertPairs) -> (Option<LowRank>, Option<LowRank>) {
    let [gate, up, down] = pairs.each_ref().map(|pair| pair.as_ref().map(Pair::factors));
    let w13 = (gate.is_some() || up.is_some()).then(|| LowRank::gated(gate, up, I, H).expect("packs"));
    (w13, down.map(|down| LowRank::plain(&[(H, Some(down))], I).expect("packs")))
}

/// The MLP of `of.len()` tokens, `ids` and `weights` as the router gave them; dense without ids.
fn mlp(
    exec: &Exec,
    moe: &Moe,
    x: &[f32],
    of: &[u32],
    routed: Option<(&[u32], &[f32])>,
    adapters: &[Vec<(Option<LowRank>, Option<LowRank>)>],
) -> Vec<f32> {
    let tokens = of.len();
    let top = if routed.is_some() { TOP } else { 1 };
    let groups = match routed {
        Some((ids, _)) => {
            let mut groups = ExpertGroups::new(tokens, top, EXPERTS);
            groups.align(ids).expect("aligns");
            groups
        }
        None => ExpertGroups::single(tokens),
    };
    let pairs = tokens * top;
    let mut rows = AdapterRows::new(pairs.max(adapters.len()), 32).expect("scratch");
    rows.group_experts(of, adapters.len(), &groups).expect("groups");
    let mut ws = Workspace::new(pairs, H.max(I)).expect("workspace");
    let (mut act, mut scratch, mut out) = (vec![0.0; pairs * I], vec![0.0; pairs * H], vec![0.0; tokens * H]);
    let view = View::new(x, tokens, H).expect("x");
    let w13 = |adapter: usize, expert: usize| adapters[adapter][expert].0.as_ref();
    let deltas = shrink(exec, view, RowsOf::Tokens, &mut rows, &w13).expect("shrinks");
    let to = ViewMut::new(&mut act, pairs, I).expect("act");
    gated_up(exec, &mut ws, view, &moe.w13, &groups, to, deltas).expect("up");
    let view = View::new(&act, pairs, I).expect("act");
    let w2 = |adapter: usize, expert: usize| adapters[adapter][expert].1.as_ref();
    let deltas = shrink(exec, view, RowsOf::Output, &mut rows, &w2).expect("shrinks");
    let scratch = ViewMut::new(&mut scratch, pairs, H).expect("scratch");
    let to = ViewMut::new(&mut out, tokens, H).expect("out");
    let weights = routed.map(|(_, weights)| weights);
    expert_down(exec, &mut ws, view, &moe.w2, &groups, weights, scratch, to, deltas).expect("down");
    out
}

#[test]
fn experts_have_updates_of_their_own_before_silu_and_before_the_routers_weights() {
    let tokens = 60;
    let moe = moe(EXPERTS);
    let ranks = [[4, 4, 4], [3, 5, 2], [5, 3, 0], [0, 4, 4], [6, 0, 1], [0, 0, 0]];
    let pairs: Vec<Vec<ExpertPairs>> = (0..3)
        .map(|a| {
            (0..EXPERTS).map(|e| expert_pairs((a * 7 + e) as u64 + 40, ranks[(a * 3 + e) % 6])).collect()
        })
        .collect();
    let packed: Vec<Vec<_>> = pairs.iter().map(|all| all.iter().map(packed_expert).collect()).collect();
    let x = fill(tokens * H, 30);
    let ids: Vec<u32> = (0..tokens as u32).flat_map(|t| [t % 4, (t * 7 + 1 + t % 3) % 4]).collect();
    let ids: Vec<u32> = ids
        .chunks(2)
        .flat_map(|p| if p[0] == p[1] { [p[0], (p[1] + 1) % 4] } else { [p[0], p[1]] })
        .collect();
    let weights: Vec<f32> = fill(tokens * TOP, 31).iter().map(|w| w.abs()).collect();
    let of: Vec<u32> = (0..tokens as u32).map(|t| [0, NO_ADAPTER, 2, 1, 1][(t * 3 % 5) as usize]).collect();
    let run = |exec: &Exec, from: usize, to: usize| {
        let routed = (&ids[from * TOP..to * TOP], &weights[from * TOP..to * TOP]);
        mlp(exec, &moe, &x[from * H..to * H], &of[from..to], Some(routed), &packed)
    };
    let all = run(&Exec::Reference, 0, tokens);
    for threads in [1, 2, 3] {
        assert_eq!(run(&Exec::simd(threads), 0, tokens), all, "{threads} threads");
    }
    for level in levels() {
        // silu is not to the bit the same in every instruction set's reference, but the levels agree.
        assert_eq!(with_level(level, || run(&Exec::simd(1), 0, tokens)), all, "{level:?}");
    }
    for token in 0..tokens {
        assert_eq!(run(&Exec::simd(2), token, token + 1), all[token * H..(token + 1) * H], "token {token}");
        let row = &x[token * H..(token + 1) * H];
        let mut wanted = [0.0_f64; H];
        for rank in 0..TOP {
            let expert = ids[token * TOP + rank] as usize;
            let update = |part: usize| pairs.get(of[token] as usize).and_then(|a| a[expert][part].as_ref());
            let inner: Vec<f32> = (0..I)
                .map(|at| {
                    let up = |w: &[f32], part: usize| {
                        dot(row, &w[at * H..(at + 1) * H]) + update(part).map_or(0.0, |p| p.exact(row, at))
                    };
                    let (g, u) = (up(&moe.gate[expert], 0), up(&moe.up[expert], 1));
                    (g / (1.0 + (-g).exp()) * u) as f32
                })
                .collect();
            for (col, wanted) in wanted.iter_mut().enumerate() {
                let base = dot(&inner, &moe.down[expert][col * I..(col + 1) * I]);
                let value = base + update(2).map_or(0.0, |p| p.exact(&inner, col));
                *wanted += f64::from(weights[token * TOP + rank]) * value;
            }
        }
        for (found, wanted) in all[token * H..].iter().zip(wanted) {
            let error = (f64::from(*found) - wanted).abs();
            assert!(error < 1e-3 * wanted.abs().max(1.0), "token {token}: {found} {wanted}");
        }
    }
}

#[test]
fn a_dense_mlp_and_a_shared_a_equal_the_same_in_two_pieces() {
    let tokens = 9;
    let moe = moe(1);
    let x = fill(tokens * H, 50);
    let of = vec![0; tokens];
    let (a, b) = (fill(3 * H, 51), fill(2 * I * 3, 52));
    let factors = |b| Factors { a: WeightData::F32(&a), b, rank: 3 };
    let (gate, up) = b.split_at(I * 3);
    let split = LowRank::gated(Some(factors(gate)), Some(factors(up)), I, H).expect("packs");
    let shared = LowRank::gated_shared(factors(&b), I, H).expect("packs");
    assert!(shared.width() < split.width());
    let run = |update: LowRank| mlp(&Exec::simd(2), &moe, &x, &of, None, &[vec![(Some(update), None)]]);
    let (split, shared) = (run(split), run(shared));
    assert_eq!(split, shared);
    let base = mlp(&Exec::simd(2), &moe, &x, &vec![NO_ADAPTER; tokens], None, &[vec![(None, None)]]);
    assert_ne!(base, shared);
}

#[test]
fn unpacked_factors_are_the_update() {
    let close = |update: &LowRank, parts: &[usize], x: &[f32], exact: &dyn Fn(usize) -> f64| {
        let (a, b) = update.unpack(parts).expect("its parts");
        let (k, width) = (x.len(), update.width());
        let rows = parts.iter().sum::<usize>() * if update.is_gated() { 2 } else { 1 };
        assert_eq!((a.len(), b.len()), (width * k, rows * width));
        let low: Vec<f64> = a.chunks_exact(k).map(|row| dot(x, row)).collect();
        for (at, row) in b.chunks_exact(width).enumerate() {
            let found: f64 = row.iter().zip(&low).map(|(b, low)| f64::from(*b) * low).sum();
            assert!((found - exact(at)).abs() < 1e-4, "row {at}: {found} {}", exact(at));
        }
    };
    let x = fill(64, 5);
    let (pairs, packed) = adapters(x.len());
    for (pairs, update) in pairs.iter().zip(packed.iter().flatten()) {
        close(update, &N, &x, &|at| {
            let part = if at < N[0] { 0 } else { 1 + usize::from(at >= N[0] + N[1]) };
            let at = at - N[..part].iter().sum::<usize>();
            pairs[part].as_ref().map_or(0.0, |pair| pair.exact(&x, at))
        });
        assert!(update.unpack(&N[..2]).is_err(), "a part is missing");
    }
    let x = fill(H, 6);
    // Gate and up of one rank, of two, and one alone.
    for ranks in [[4, 4, 0], [2, 7, 0], [7, 2, 0], [0, 3, 0], [3, 0, 0]] {
        let pairs = expert_pairs(7, ranks);
        let update = packed_expert(&pairs).0.expect("an update");
        close(&update, &[I], &x, &|at| pairs[at / I].as_ref().map_or(0.0, |pair| pair.exact(&x, at % I)));
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let k = 16;
    let p = pair(8, k, 4, 1);
    let update = LowRank::plain(&[(8, Some(p.factors()))], k).expect("packs");
    assert!(LowRank::plain(&[(9, Some(p.factors()))], k).is_err(), "rows of B");
    assert!(LowRank::plain(&[(8, Some(p.factors()))], k + 1).is_err(), "columns of A");
    assert!(LowRank::plain(&[(8, None)], k).is_err(), "nothing");
    assert!(LowRank::gated(None, None, 8, k).is_err(), "nothing");
    let mut rows = AdapterRows::new(2, 4).expect("scratch");
    assert!(rows.group(&[0, 1], 1).is_err(), "an adapter that is not there");
    assert!(rows.group(&[0; 3], 1).is_err(), "more rows than there is room for");
    rows.group(&[0, NO_ADAPTER], 1).expect("groups");
    let exec = Exec::simd(1);
    let x = fill(2 * k, 2);
    let view = View::new(&x, 2, k).expect("x");
    let mut narrow = AdapterRows::new(2, 3).expect("scratch");
    narrow.group(&[0, 0], 1).expect("groups");
    let refused =
        shrink(&exec, view, RowsOf::Output, &mut narrow, &|_, _| Some(&update)).expect_err("refused");
    assert_eq!(refused.to_string(), "shrink: width of the scratch is 3, expected 4");
    let less = View::new(&x[..k], 1, k).expect("x");
    let mut other = AdapterRows::new(2, 4).expect("scratch");
    other.group(&[NO_ADAPTER, 0], 1).expect("groups");
    let refused =
        shrink(&exec, less, RowsOf::Output, &mut other, &|_, _| Some(&update)).expect_err("refused");
    assert_eq!(refused.to_string(), "shrink: row of x 1 is outside of 1");
    let deltas = shrink(&exec, view, RowsOf::Output, &mut rows, &|_, _| Some(&update)).expect("shrinks");
    let mut ws = Workspace::new(2, k).expect("workspace");
    let mut run = |n: usize, rows: usize, deltas| {
        let w = pack::dense(WeightData::F32(&fill(n * k, 3)), n, k, None).expect("packs");
        let mut out = vec![0.0; rows * n];
        let x = View::new(&x[..rows * k], rows, k).expect("x");
        matmul_adapted(&exec, &mut ws, x, &w, None, ViewMut::new(&mut out, rows, n).expect("out"), deltas)
    };
    run(8, 2, deltas).expect("fits");
    assert!(run(24, 2, deltas).is_err(), "a product with more rows than B");
    assert!(run(8, 1, deltas).is_err(), "another number of rows");
}
