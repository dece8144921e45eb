//! Starts the generator's engine where it computes.

use std::sync::{Arc, mpsc};

use tarn_kernels::gpu::Priority;

use crate::config::Settings;
use crate::engine::{Adapters, DeviceRunner, EngineConfig, EngineHandle, EngineThread, ModelRunner, start};
use crate::model::{Decoder, DeviceDecoder, Exec, Gate, KvCache, LoadOptions, LoadProgress, ModelSource};

use super::device::{self, Place};
use super::parts::progress;
use super::window::Window;

fn shown(settings: &Settings) -> anyhow::Result<Box<dyn Fn(LoadProgress) + Send>> {
    Ok(progress(&format!("loading {}", settings.need_model()?.location.name)))
}

/// On the CPU; its steps hold `gate`, if there is one.
pub(super) fn on_cpu(
    settings: &Settings,
    source: ModelSource,
    config: EngineConfig,
    Window { max_model_len, blocks }: Window,
    gate: Option<Arc<Gate>>,
) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let batched = config.max_num_batched_tokens;
    let max_rank = settings.lora.possible().then_some(settings.lora.max_rank);
    let options = LoadOptions {
        dtype: settings.dtype,
        max_num_batched_tokens: batched,
        // A row of logits for each token of a step: log probabilities of prompts need as many.
        max_num_seqs: batched,
        dummy_weights: settings.need_model()?.dummy_weights,
        exec: Exec::simd(settings.threads),
        progress: Some(shown(settings)?),
    };
    let started = start(config, move || {
        let mut decoder = Decoder::load(&source, options).map_err(|error| error.to_string())?;
        if let Some(max_rank) = max_rank {
            decoder = decoder.with_adapters(max_rank).map_err(|error| error.to_string())?;
        }
        let kv = KvCache::new(decoder.kv_spec(), blocks).map_err(|error| error.to_string())?;
        let runner = ModelRunner::new(decoder, kv, max_model_len);
        Ok(match gate {
            Some(gate) => runner.with_gate(gate),
            None => runner,
        })
    });
    Ok(started?)
}

/// On a device; from then on `adapters` are brought there when they are read.
pub(super) fn on_device(
    settings: &Settings,
    place: Place,
    source: ModelSource,
    config: EngineConfig,
    Window { max_model_len, blocks }: Window,
    adapters: &Adapters,
) -> anyhow::Result<(EngineHandle, EngineThread)> {
    let options = device::options(settings, &source, max_model_len, Some(shown(settings)?))?;
    let exec = Exec::simd(settings.threads);
    let (loaders, loader) = mpsc::channel();
    let started = start(config, move || {
        let device = device::open(&place, Priority::Foreground).map_err(|error| format!("{error:#}"))?;
        let decoder = DeviceDecoder::load(device, &source, &options)
            .and_then(|decoder| decoder.with_blocks(blocks))
            .map_err(|error| error.to_string())?;
        if let Some(loader) = decoder.adapter_loader().map_err(|error| error.to_string())? {
            let _ = loaders.send(loader);
        }
        Ok(DeviceRunner::new(decoder, exec, max_model_len))
    });
    let started = started?;
    if let Ok(loader) = loader.try_recv() {
        adapters.placed_by(move |adapter| loader.load(adapter))?;
    }
    Ok(started)
}
