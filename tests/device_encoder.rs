//! Encoders whose every launch runs on the emulated device, against the CPU's pass and `transformers`.

use tarn::model::{
    DeviceEncoder, DeviceEncoderOptions, DtypeChoice, Encoder, Exec, LoadOptions, ModelSource,
};
use tarn_kernels::DType;
use tarn_kernels::emulated::{Emulator, Mode};

use super::seeded::{golden, write_encoder};

/// Lengths of a batch's sequences: few tokens, whose products stream, and more, whose products are tiles; odd lengths,
/// nothing at the start, between and at the end; the longest that the models take.
const BATCHES: [&[usize]; 5] = [&[1], &[0, 7, 0, 17], &[31], &[3, 1, 50, 33, 13, 0], &[64, 0, 63]];

fn on_cpu(source: &ModelSource) -> Encoder {
    let options = LoadOptions {
        dtype: DtypeChoice::F32,
        max_num_batched_tokens: 128,
        max_num_seqs: 8,
        dummy_weights: false,
        exec: Exec::simd(1),
        progress: None,
    };
    Encoder::load(source, options).expect("loads")
}

fn on_device(source: &ModelSource, dtype: DType, mode: Mode) -> DeviceEncoder {
    let device = Box::new(Emulator::new(mode).expect("the build script compiled it"));
    let options = DeviceEncoderOptions {
        dtype,
        max_num_batched_tokens: 128,
        max_num_seqs: 7,
        dummy_weights: false,
        progress: None,
    };
    DeviceEncoder::load(device, source, &options).expect("loads")
}

/// Token ids of sequences of these lengths, and their bounds.
fn batch(lengths: &[usize]) -> (Vec<u32>, Vec<u32>) {
    let mut bounds = vec![0];
    for length in lengths {
        bounds.push(bounds[bounds.len() - 1] + *length as u32);
    }
    let tokens = bounds[lengths.len()];
    ((0..tokens).map(|at| at.wrapping_mul(0x9e37_79b9) >> 25).collect(), bounds)
}

/// The relative error that `layers` layers may have in `dtype`.
///
/// A layer rounds 9 activations (q, k and v; probabilities; what attention gives; four products and sums; two norms) and
/// 4 weights, and the embeddings are 2 sums of 3 rounded tables: each rounding is off by some unit / √12, roundings are
/// independent, and norms keep their share of the state what it was.
fn error_of(dtype: DType, layers: usize) -> f32 {
    let unit = if dtype == DType::F16 { 2.0_f32.powi(-11) } else { 2.0_f32.powi(-8) };
    unit * ((5 + 13 * layers) as f32 / 12.0).sqrt()
}

/// Vectors of norm 1 that are `error` apart, and no element more than six times its share; zeros where nothing was.
fn same(what: &str, found: &[f32], expected: &[f32], dim: usize, error: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.chunks_exact(dim).zip(expected.chunks_exact(dim)).enumerate() {
        if expected.iter().all(|x| *x == 0.0) {
            assert_eq!(found, expected, "{what}, sequence {at}");
            continue;
        }
        let cosine: f32 = found.iter().zip(expected).map(|(a, b)| a * b).sum();
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(cosine > 1.0 - 2.0 * error * error - 1e-6, "{what}, sequence {at}: cosine {cosine}");
        let bound = 6.0 * error / (dim as f32).sqrt();
        assert!(worst < bound, "{what}, sequence {at}: an element is off by {worst}, more than {bound}");
    }
}

#[test]
fn encoders_on_a_device_give_the_vectors_of_the_cpu() {
    for (name, model) in golden().encoders {
        let dir = tempfile::tempdir().expect("dir");
        let source = write_encoder(dir.path(), &name, &model);
        let mut cpu = on_cpu(&source);
        let (dim, layers) = (cpu.dim(), cpu.config().layers);
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        for dtype in [DType::BF16, DType::F16] {
            let error = error_of(dtype, layers);
            let mut device = on_device(&source, dtype, Mode::Plain);
            for lengths in BATCHES {
                let (ids, bounds) = batch(lengths);
                cpu.forward(&ids, &bounds, &mut expected).expect("forward");
                device.forward(&ids, &bounds, &mut found).expect("forward");
                same(&format!("{name} {dtype:?} {lengths:?}"), &found, &expected, dim, error);
            }
            for row in &model.rows {
                device.forward(&row.ids, &[0, row.ids.len() as u32], &mut found).expect("forward");
                same(&format!("{name} {dtype:?}, transformers"), &found, &row.vector, dim, error);
            }
        }
    }
}

#[test]
fn an_encoders_pass_stays_in_bounds_and_does_not_race() {
    for (name, model) in golden().encoders {
        let dir = tempfile::tempdir().expect("dir");
        let source = write_encoder(dir.path(), &name, &model);
        let mut device = on_device(&source, DType::BF16, Mode::Checked);
        for lengths in [BATCHES[1], BATCHES[3]] {
            let (ids, bounds) = batch(lengths);
            let mut found = Vec::new();
            device.forward(&ids, &bounds, &mut found).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(found.len(), lengths.len() * device.config().hidden);
        }
    }
}

#[test]
fn a_batch_that_a_device_has_no_room_for_is_refused() {
    let golden = golden();
    let (name, model) = golden.encoders.first_key_value().expect("an encoder");
    let dir = tempfile::tempdir().expect("dir");
    let source = write_encoder(dir.path(), name, model);
    let mut device = on_device(&source, DType::F16, Mode::Plain);
    let mut refuse = |ids: &[u32], bounds: &[u32], part: &str| {
        let error = device.forward(ids, bounds, &mut Vec::new()).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    refuse(&[1; 129], &[0, 60, 120, 129], "129 tokens");
    refuse(&[1; 8], &[0, 1, 2, 3, 4, 5, 6, 7, 8], "8 sequences");
    refuse(&[1, 128], &[0, 2], "token 128");
    let mut out = vec![1.0];
    device.forward(&[], &[0, 0], &mut out).expect("forward");
    assert!(out.len() > 1 && out.iter().all(|x| *x == 0.0));
}
