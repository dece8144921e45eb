//! The section `weights`: a checkpoint that is in the page cache, to the device.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use tarn_kernels::DType;
use tarn_kernels::gpu::{self, Priority};

use super::super::device::{self, Place};
use super::checkpoint::Checkpoint;
use super::report::Report;
use super::row::{Found, Row, Rows, Unit};
use super::shapes::{mixtral_8x7b, small_mixture};
use crate::model::{DecoderConfig, DeviceDecoder, DeviceFormat, DeviceOptions, ModelSource};

/// The row; whether it could be measured.
pub(super) fn weights(place: &Place, report: &mut Report) -> anyhow::Result<bool> {
    let (name, config) = match place {
        Place::Emulated => ("a small mixture", small_mixture()),
        // 15 GB: five layers, and the tables.
        _ => ("five layers of Mixtral 8x7B", DecoderConfig { layers: 5, ..mixtral_8x7b() }),
    };
    let options = DeviceOptions {
        dtype: DType::BF16,
        projections: DeviceFormat::Plain,
        max_num_batched_tokens: 16,
        max_num_seqs: 1,
        max_model_len: 16,
        adapters: None,
        dummy_weights: false,
        progress: None,
    };
    let bytes = DeviceDecoder::footprint(&config, &options)?.weights as u64;
    println!("\nweights: a checkpoint of {name} in shards, bf16; from the page cache to the device");
    let found = match room(place, bytes)? {
        Ok(()) => Ok(load(place, &config, &options)?),
        Err(why) => Err(why),
    };
    let what = format!("weights to the device, {:.1} GB", bytes as f64 / 1e9);
    let mut rows = Rows::default();
    rows.add(Row { what, unit: Unit::GigabytesPerSecond, must: 2.5, aim: 8.0, found });
    report.rows("weights", name, &rows);
    Ok(true)
}

/// Whether the temporary folder and the device have room for `bytes` bytes of weights, or which has not.
fn room(place: &Place, bytes: u64) -> anyhow::Result<Result<(), String>> {
    let folder = std::env::temp_dir();
    let free = free_bytes(&folder).with_context(|| format!("asking for room in {}", folder.display()))?;
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    if free < bytes {
        return Ok(Err(format!(
            "{:.1} GB are written to {}, where {:.1} are free: name another folder with TMPDIR",
            gigabytes(bytes),
            folder.display(),
            gigabytes(free)
        )));
    }
    Ok(match place {
        Place::Gpu(gpu) => match gpu::free_memory(gpu)? {
            free if free < bytes => Err(format!(
                "it takes {:.1} GB of the device's memory, {:.1} are free",
                gigabytes(bytes),
                gigabytes(free)
            )),
            _ => Ok(()),
        },
        _ => Ok(()),
    })
}

fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let found = rustix::fs::statvfs(folder)?;
    Ok(found.f_bavail * found.f_frsize)
}

/// Writes the checkpoint, reads it once, and times what the program does with a model at its start.
fn load(place: &Place, config: &DecoderConfig, options: &DeviceOptions) -> anyhow::Result<Found> {
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let since = Instant::now();
    let checkpoint = Checkpoint::write(folder.path(), config).context("writing the checkpoint")?;
    checkpoint.read().context("reading the checkpoint")?;
    let gigabytes = checkpoint.bytes as f64 / 1e9;
    println!("wrote and read {gigabytes:.1} GB in {:.1} s", since.elapsed().as_secs_f64());
    let source = ModelSource::open(folder.path())?;
    let device = device::open(place, Priority::Foreground)?;
    let since = Instant::now();
    let loaded = DeviceDecoder::load(device, &source, options)?;
    let seconds = since.elapsed().as_secs_f64();
    drop(loaded);
    Ok(Found { value: gigabytes / seconds, floor: None, experts: None })
}
