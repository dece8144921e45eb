//! What an encoder takes of a device, before there is one.

use super::super::super::config::EncoderConfig;
use super::super::super::decoder::{Counter, placed};
use super::super::super::error::Result;
use super::pass::Buffers;
use super::shape::Limits;
use super::{DeviceEncoder, DeviceEncoderOptions};

impl DeviceEncoder {
    /// Bytes of device memory that loading with `options` takes: weights, and what the largest pass reads and writes.
    ///
    /// # Errors
    /// As [`DeviceEncoder::load`], of what needs no file.
    pub fn footprint(config: &EncoderConfig, options: &DeviceEncoderOptions) -> Result<usize> {
        let mut buffers = Counter::default();
        Buffers::new(&mut buffers, config, options.dtype, Limits::new(config, options))?;
        Ok(weights(config, options) + buffers.bytes)
    }
}

/// All weights. Not counted by loading them, which reads the files.
fn weights(config: &EncoderConfig, options: &DeviceEncoderOptions) -> usize {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let table = |rows: usize, k: usize| placed(rows * k * options.dtype.size());
    let vector = |len: usize| placed(len * 4);
    let dense = |n: usize, k: usize| table(n, k) + vector(n);
    let norm = 2 * vector(hidden);
    let types = if config.type_rows > 0 { table(config.type_rows, hidden) } else { 0 };
    let layer =
        dense(3 * hidden, hidden) + dense(hidden, hidden) + dense(inner, hidden) + dense(hidden, inner);
    table(config.vocab, hidden)
        + table(config.position_rows, hidden)
        + types
        + norm
        + config.layers * (layer + 2 * norm)
        + config.head.map_or(0, |_| dense(hidden, hidden))
}
