//! What a decoder takes of a device, before there is one: the buffers are asked of a device that only counts.

use tarn_kernels::KernelError;
use tarn_kernels::device::{Copier, Device, Launch, Ptr, Reading, Use};

use super::super::super::config::DecoderConfig;
use super::super::super::error::Result;
use super::adapters::AdapterSlots;
use super::buffers::{Activations, Inputs};
use super::shape::Extents;
use super::{DeviceDecoder, DeviceFormat, DeviceOptions};

/// Bytes of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceFootprint {
    /// Weights, norms and the table of rotations.
    pub weights: usize,
    /// Slots of adapters and their scratch.
    pub adapters: usize,
    /// Activations, logits and what a step uploads.
    pub workspace: usize,
    /// One block of the cache over all layers.
    pub block: usize,
}

impl DeviceDecoder {
    /// What loading with `options` takes.
    ///
    /// # Errors
    /// [`ModelError::DeviceLimit`](super::super::super::ModelError::DeviceLimit) for what no kernel has room for.
    pub fn footprint(config: &DecoderConfig, options: &DeviceOptions) -> Result<DeviceFootprint> {
        let extents = Extents::new(config, options)?;
        let mut workspace = Counter::default();
        Inputs::new(&mut workspace, &extents)?;
        Activations::new(&mut workspace, &extents)?;
        let mut adapters = Counter::default();
        if extents.slots > 0 {
            AdapterSlots::new(&mut adapters, &extents, Use::Read)?;
        }
        Ok(DeviceFootprint {
            weights: weights(config, options),
            adapters: adapters.bytes,
            workspace: workspace.bytes,
            block: config.layers * extents.bytes(extents.cache(1)),
        })
    }
}

/// All weights. Not counted by loading them, which reads the files.
fn weights(config: &DecoderConfig, options: &DeviceOptions) -> usize {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let experts = config.moe.map_or(1, |moe| moe.experts);
    let table = |rows: usize, k: usize| placed(rows * k * options.dtype.size());
    let vector = |len: usize| placed(len * 4);
    let projection = |rows: usize, k: usize| match options.projections {
        DeviceFormat::Plain => table(rows, k),
        DeviceFormat::Fp8 => placed(rows * k) + vector(rows),
    };
    let layer = projection(q + 2 * kv, hidden)
        + projection(hidden, q)
        + config.moe.map_or(0, |moe| table(moe.experts, hidden))
        + projection(experts * 2 * inner, hidden)
        + projection(experts * hidden, inner)
        + 2 * vector(hidden)
        + if config.attention_bias { vector(q + 2 * kv) + vector(hidden) } else { 0 };
    let tables = if config.tied { 1 } else { 2 };
    tables * table(config.vocab, hidden)
        + vector(hidden)
        + vector(config.max_positions * config.head_dim)
        + config.layers * layer
}

/// What a buffer takes: the driver gives memory in units, large buffers have their own.
pub(in crate::model) fn placed(bytes: usize) -> usize {
    if bytes >= 1 << 20 { bytes.next_multiple_of(2 << 20) } else { bytes.max(1).next_multiple_of(512) }
}

/// A device that counts what is asked of it.
#[derive(Debug, Default)]
pub(in crate::model) struct Counter {
    pub(in crate::model) bytes: usize,
}

fn only_counts() -> KernelError {
    KernelError::Device { what: "a device that counts runs nothing: this is a bug".to_owned() }
}

impl Device for Counter {
    fn alloc(&mut self, _name: &str, bytes: usize, _use: Use) -> tarn_kernels::Result<Ptr> {
        self.bytes += placed(bytes);
        Ok(Ptr::NONE)
    }

    fn upload(&mut self, _to: Ptr, _offset: usize, _bytes: &[u8]) -> tarn_kernels::Result<()> {
        Ok(())
    }

    fn download(&mut self, _from: Ptr, _offset: usize, _bytes: &mut [u8]) -> tarn_kernels::Result<()> {
        Err(only_counts())
    }

    fn read(&mut self, _from: Ptr, _offset: usize, _bytes: usize) -> tarn_kernels::Result<Reading> {
        Err(only_counts())
    }

    fn finish(&mut self, _reading: Reading) -> tarn_kernels::Result<Vec<u8>> {
        Err(only_counts())
    }

    /// Weights that are filled there are only counted.
    fn launch(&mut self, _launch: &Launch) -> tarn_kernels::Result<()> {
        Ok(())
    }

    fn record(&mut self, _launches: Vec<Launch>) -> tarn_kernels::Result<usize> {
        Err(only_counts())
    }

    fn replay(&mut self, _list: usize) -> tarn_kernels::Result<()> {
        Err(only_counts())
    }

    fn synchronize(&mut self) -> tarn_kernels::Result<()> {
        Ok(())
    }

    fn copier(&self) -> tarn_kernels::Result<Box<dyn Copier>> {
        Err(only_counts())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::config::{MoeConfig, RopeConfig, RopeScaling};
    use super::super::super::super::weights::Tensors;
    use super::super::DeviceAdapters;
    use super::super::weights::DecoderWeights;
    use super::*;
    use tarn_kernels::DType;

    fn options(slots: usize, projections: DeviceFormat) -> DeviceOptions {
        DeviceOptions {
            dtype: DType::BF16,
            projections,
            max_num_batched_tokens: 32,
            max_num_seqs: 4,
            max_model_len: 64,
            adapters: (slots > 0).then_some(DeviceAdapters { slots, max_rank: 8 }),
            dummy_weights: true,
            progress: None,
        }
    }

    #[test]
    fn what_is_planned_is_what_loading_asks_for() {
        let moe = Some(MoeConfig { experts: 4, top_k: 2 });
        for (moe, tied, attention_bias, projections) in [
            (moe, false, false, DeviceFormat::Plain),
            (moe, false, false, DeviceFormat::Fp8),
            (None, true, true, DeviceFormat::Plain),
        ] {
            let options = |slots| options(slots, projections);
            let config = DecoderConfig {
                architecture: "test".to_owned(),
                hidden: 64,
                intermediate: 96,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 16,
                vocab: 20_000,
                max_positions: 128,
                eps: 1e-5,
                rope: RopeConfig { theta: 1e4, scaling: RopeScaling::Default },
                sliding_window: None,
                tied,
                attention_bias,
                moe,
            };
            let footprint = DeviceDecoder::footprint(&config, &options(2)).expect("fits");
            let extents = Extents::new(&config, &options(2)).expect("fits");
            let mut counter = Counter::default();
            DecoderWeights::load(&mut counter, &config, &extents, &Tensors::Dummy, &options(2))
                .expect("counts");
            assert_eq!(footprint.weights, counter.bytes);
            // 2 layers of keys and values of 16 tokens, 2 heads of 16, two bytes each.
            assert_eq!(footprint.block, 2 * 2 * 16 * 2 * 16 * 2);
            let without = DeviceDecoder::footprint(&config, &options(0)).expect("fits");
            assert_eq!(without, DeviceFootprint { adapters: 0, ..footprint });
            assert!(footprint.adapters > 0 && footprint.workspace > 4 * 20_000 * 4);
        }
        assert_eq!(
            (placed(0), placed(513), placed(1 << 20), placed((2 << 20) + 1)),
            (512, 1024, 2 << 20, 4 << 20)
        );
    }
}
