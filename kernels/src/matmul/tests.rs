use super::*;
use crate::blocks::BlockFormat;
use crate::check::{fill, random_blocks};
use crate::pack::{self, WeightData};
use half::{bf16, f16};

enum Source {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    Blocks(BlockFormat, Vec<u8>),
}

impl Source {
    fn data(&self) -> WeightData<'_> {
        match self {
            Source::F32(data) => WeightData::F32(data),
            Source::F16(data) => WeightData::F16(data),
            Source::BF16(data) => WeightData::BF16(data),
            Source::Blocks(format, data) => WeightData::Blocks(*format, data),
        }
    }
}

fn sources(n: usize, k: usize) -> Vec<Source> {
    let floats = fill(n * k, 1);
    let mut all = vec![
        Source::F16(floats.iter().map(|x| f16::from_f32(*x)).collect()),
        Source::BF16(floats.iter().map(|x| bf16::from_f32(*x)).collect()),
        Source::F32(floats),
    ];
    for format in
        [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q4K, BlockFormat::Q6K]
    {
        if let Some(row) = format.row_bytes(k) {
            all.push(Source::Blocks(format, random_blocks(format, n * row / format.bytes(), 2)));
        }
    }
    all
}

/// Weights of every format.
fn weights(n: usize, k: usize) -> Vec<Packed> {
    let pack = |source: &Source, target| pack::dense(source.data(), n, k, target).expect("packs");
    let mut all: Vec<Packed> = sources(n, k).iter().map(|source| pack(source, None)).collect();
    all.push(pack(&Source::F32(fill(n * k, 1)), Some(WeightFormat::Fp8)));
    all
}

fn product(exec: &Exec, x: &[f32], m: usize, w: &Packed) -> Vec<f32> {
    let mut ws = Workspace::new(m, w.k()).expect("workspace");
    let mut out = vec![0.0; m * w.n()];
    let view = View::new(x, m, w.k()).expect("view");
    matmul(exec, &mut ws, view, w, None, ViewMut::new(&mut out, m, w.n()).expect("out"), false)
        .expect("matmul");
    out
}

#[test]
fn what_is_no_number_makes_its_own_row_none_and_no_other() {
    let (n, k, m) = (17, 256, 3);
    for w in weights(n, k) {
        let mut x = fill(m * k, 3);
        let clean = product(&Exec::simd(2), &x, m, &w);
        x[k + 37] = f32::NAN;
        for exec in [Exec::Reference, Exec::simd(2)] {
            let found = product(&exec, &x, m, &w);
            assert!(found[n..2 * n].iter().all(|y| y.is_nan()), "{w:?}");
            assert_eq!((&found[..n], &found[2 * n..]), (&clean[..n], &clean[2 * n..]), "{w:?}");
        }
    }
}

#[test]
fn simd_equals_the_reference_and_a_row_alone_equals_the_row_in_a_batch_bit_for_bit() {
    for (n, k) in [(1, 1), (17, 33), (48, 64), (130, 256), (31, 512)] {
        for w in weights(n, k) {
            for m in [1, 2, 3, 5, 16, 33] {
                let x = fill(m * k, 3);
                let reference = product(&Exec::Reference, &x, m, &w);
                for threads in [1, 2, 3] {
                    let exec = Exec::simd(threads);
                    let all = product(&exec, &x, m, &w);
                    assert_eq!(all, reference, "{w:?} m {m} threads {threads}");
                    for row in 0..m {
                        let alone = product(&exec, &x[row * k..(row + 1) * k], 1, &w);
                        assert_eq!(alone, all[row * n..(row + 1) * n], "{w:?} m {m} row {row}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let (m, n, k) = (7, 70, 256);
    for w in weights(n, k) {
        let x = fill(m * k, 4);
        let simd = product(&Exec::simd(1), &x, m, &w);
        for level in crate::check::levels() {
            let other = crate::cpu::with_level(level, || product(&Exec::simd(1), &x, m, &w));
            assert_eq!(other, simd, "{w:?} {level:?}");
        }
    }
}

#[test]
fn unpacked_weights_are_the_dequantised_ones() {
    let (n, k) = (19, 512);
    for source in sources(n, k) {
        let w = pack::dense(source.data(), n, k, None).expect("packs");
        let mut row = vec![0.0; k];
        let unpacked = pack::unpack(&w);
        for at in 0..n {
            source.data().row(at, &mut row);
            for (a, b) in row.iter().zip(&unpacked[at * k..]) {
                assert!((a - b).abs() <= 1e-6 * a.abs().max(1e-3), "{w:?}: {a} {b}");
            }
        }
    }
}

#[test]
fn fp8_weights_are_those_of_their_rows_whatever_they_come_from_and_go_to() {
    let (n, k, fp8) = (20, 64, Some(WeightFormat::Fp8));
    for source in sources(n, k) {
        let mut values = vec![0.0; n * k];
        values.chunks_exact_mut(k).enumerate().for_each(|(row, out)| source.data().row(row, out));
        let rows = crate::Fp8Rows::quantize(WeightData::F32(&values), k).expect("whole rows").dequantize();
        let w = pack::dense(source.data(), n, k, fp8).expect("packs");
        assert_eq!(pack::unpack(&w), rows);
        assert_eq!(w.bytes(), n.next_multiple_of(16) * (k + 4));
        let gated = pack::gate_up(&[source.data()], &[source.data()], n, k, fp8).expect("packs");
        assert_eq!(pack::unpack(gated.expert(0)), [&rows[..], &rows[..]].concat());
    }
}

#[test]
fn a_weight_that_is_no_number_makes_its_own_column_none() {
    let (n, k) = (20, 32);
    for wrong in [f32::NAN, f32::INFINITY] {
        let mut values = fill(n * k, 1);
        values[3 * k + 5] = wrong;
        let w = pack::dense(WeightData::F32(&values), n, k, Some(WeightFormat::Fp8)).expect("packs");
        for exec in [Exec::Reference, Exec::simd(1)] {
            let found = product(&exec, &fill(k, 2), 1, &w);
            assert!(found.iter().enumerate().all(|(at, y)| y.is_nan() == (at == 3)), "{found:?}");
        }
    }
}

#[test]
fn integer_products_are_close_to_exact_ones() {
    let (m, n, k) = (3, 40, 512);
    for w in weights(n, k) {
        let x = fill(m * k, 5);
        let out = product(&Exec::simd(2), &x, m, &w);
        let weights = pack::unpack(&w);
        for row in 0..m {
            for col in 0..n {
                let terms = || (0..k).map(|at| f64::from(x[row * k + at]) * f64::from(weights[col * k + at]));
                let (exact, size): (f64, f64) = (terms().sum(), terms().map(|t| t * t).sum::<f64>().sqrt());
                let error = (f64::from(out[row * n + col]) - exact).abs();
                assert!(error < 0.02 * size + 1e-5, "{w:?}: {error} of {size}");
            }
        }
    }
}

#[test]
fn fused_rows_and_bias_and_add() {
    let k = 32;
    let (a, b) = (fill(5 * k, 6), fill(20 * k, 7));
    let w = pack::dense_rows(&[(WeightData::F32(&a), 5), (WeightData::F32(&b), 20)], k, None).expect("packs");
    let x = fill(2 * k, 8);
    let bias = fill(25, 9);
    let before = fill(50, 10);
    let plain = product(&Exec::simd(2), &x, 2, &w);
    let mut out = before.clone();
    let mut ws = Workspace::new(2, k).expect("workspace");
    let view = View::new(&x, 2, k).expect("view");
    matmul(&Exec::simd(2), &mut ws, view, &w, Some(&bias), ViewMut::new(&mut out, 2, 25).expect("out"), true)
        .expect("matmul");
    for at in 0..50 {
        assert_eq!(out[at], plain[at] + bias[at % 25] + before[at]);
    }
}

#[test]
fn wrong_shapes_are_refused_in_words() {
    let w = pack::dense(WeightData::F32(&fill(64, 1)), 4, 16, None).expect("packs");
    let x = fill(30, 2);
    let mut out = vec![0.0; 8];
    let mut ws = Workspace::new(2, 16).expect("workspace");
    let error = matmul(
        &Exec::Reference,
        &mut ws,
        View::new(&x, 2, 15).expect("view"),
        &w,
        None,
        ViewMut::new(&mut out, 2, 4).expect("out"),
        false,
    )
    .expect_err("refused");
    assert_eq!(error.to_string(), "matmul: columns of x is 15, expected 16");
    assert!(pack::dense(WeightData::F32(&x), 4, 16, None).is_err());
}
