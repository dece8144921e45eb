//! The section `encoder`: passages through an encoder with dummy weights of multilingual-e5-large's shapes.

use std::time::Instant;

use tarn_kernels::DType;
use tarn_kernels::device::fill;
use tarn_kernels::gpu::Priority;

use super::super::device::{self, Place};
use super::floors::encode_seconds;
use super::report::Report;
use super::row::{Found, Row, Rows, Unit};
use super::shapes::{e5_large, small_encoder};
use super::traffic::median;
use crate::model::{DeviceEncoder, DeviceEncoderOptions, ModelConfig, ModelSource};

/// Passes that are timed, after one that is not.
const PASSES: usize = 9;

/// The row; whether it could be measured.
pub(super) fn encoder(place: &Place, report: &mut Report) -> anyhow::Result<bool> {
    let (name, config, passages) = match place {
        Place::Emulated => ("a small encoder", small_encoder(), 2),
        _ => ("multilingual-e5-large", e5_large(), 32),
    };
    println!("\nencoder: {name}, dummy weights; medians of {PASSES} passes");
    let length = config.max_tokens;
    let options = DeviceEncoderOptions {
        dtype: DType::BF16,
        max_num_batched_tokens: passages * length,
        max_num_seqs: passages,
        dummy_weights: true,
        progress: None,
    };
    let source = ModelSource::of_dummies(ModelConfig::Encoder(config.clone()));
    let mut encoder = DeviceEncoder::load(device::open(place, Priority::Foreground)?, &source, &options)?;
    let id = |at: u64| (f64::from(fill::value(at, 1) + 1.0) / 2.0 * config.vocab as f64) as u32;
    let ids: Vec<u32> = (0..(passages * length) as u64).map(id).collect();
    let bounds: Vec<u32> = (0..=passages).map(|at| (at * length) as u32).collect();
    let (mut vectors, mut took) = (Vec::new(), Vec::new());
    for at in 0..=PASSES {
        let since = Instant::now();
        encoder.forward(&ids, &bounds, &mut vectors)?;
        if at > 0 {
            took.push(since.elapsed().as_secs_f64());
        }
    }
    anyhow::ensure!(vectors.iter().all(|value| value.is_finite()), "vectors that are not finite");
    let tokens = ids.len() as f64;
    let floor = tokens / encode_seconds(&config, passages, length);
    let found = Ok(Found { value: tokens / median(took), floor: Some(floor), experts: None });
    let what = format!("{name}, {passages} passages of {length} tokens, bf16");
    let mut rows = Rows::default();
    rows.add(Row { what, unit: Unit::TokensPerSecond, must: 300_000.0, aim: 500_000.0, found });
    report.rows("encoder", name, &rows);
    Ok(true)
}
