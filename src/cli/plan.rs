//! The memory of a command, planned from settings and files before anything is loaded.

use crate::config::{LoraSettings, Settings};
use crate::model::{DecoderConfig, DeviceDecoder, KvSpec, ModelConfig, ModelSource};
use crate::rag::GRAMMAR_BYTES;
use crate::server::RESPONSE_BYTES;

use super::device::{self, Place, place};
use super::encoders::{self, MAX_BATCH_TOKENS};
use super::machine_memory;
use super::memory_plan::{Budget, MemoryPlan, Owner, Part, TooLittle};
use super::window::{Share, Window};

/// What the program takes beside its models: code, threads, tokenizers, the lake's buffers, what speculation knows of
/// texts (some 32 bytes a token; its guesses are rows of the step, which are planned for).
const PROGRAM: u64 = 192 << 20;

/// The models that a command loads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Roles {
    pub(super) generator: bool,
    pub(super) embedder: bool,
    pub(super) reranker: bool,
    /// Whether it answers over HTTP, and keeps for later requests what earlier ones made.
    pub(super) serves: bool,
}

/// Memory, and the generator's window in it.
#[derive(Debug)]
pub(super) struct Planned {
    /// The machine's.
    pub(super) memory: MemoryPlan,
    /// The device's, where the generator is on one.
    pub(super) device: Option<MemoryPlan>,
    /// `None` without a generator.
    pub(super) window: Option<Window>,
}

impl Planned {
    /// Whether all parts fit.
    ///
    /// # Errors
    /// [`TooLittle`] with the table of what does not.
    pub(super) fn check(&self) -> Result<(), TooLittle> {
        self.memory.check()?;
        self.device.as_ref().map_or(Ok(()), MemoryPlan::check)
    }
}

/// Plans the memory of the models in `roles`. Whether it is enough is for [`Planned::check`] to say.
pub(super) fn plan(settings: &Settings, roles: Roles) -> anyhow::Result<Planned> {
    let budget = Budget {
        owner: Owner::Machine,
        available: machine_memory::available(),
        utilization: settings.memory_utilization,
    };
    let mut memory = MemoryPlan::new(budget);
    for (wanted, location, role, part) in [
        (roles.embedder, settings.embedder.as_ref().map(|it| &it.location), "embedder", Part::Embedder),
        (roles.reranker, settings.reranker.as_ref().map(|it| &it.location), "reranker", Part::Reranker),
    ] {
        if let Some(location) = location.filter(|_| wanted) {
            let (source, _) = encoders::open(location, role)?;
            let takes = source.footprint(settings.dtype, false, MAX_BATCH_TOKENS, 1)?;
            memory.add(part, (takes.matrices + takes.small + takes.workspace) as u64);
        }
    }
    if !roles.generator {
        memory.add(Part::Workspace, PROGRAM);
        return Ok(Planned { memory, device: None, window: None });
    }
    let model = settings.need_model()?;
    let source = ModelSource::open(&model.location.path)?;
    let ModelConfig::Decoder(config) = source.config() else {
        anyhow::bail!(
            "{} reads texts and does not generate: give it as --embedder or --reranker",
            model.location.path.display()
        );
    };
    if roles.serves {
        memory.add(Part::Kept, (GRAMMAR_BYTES + RESPONSE_BYTES) as u64);
    }
    let place = place(settings.device)?;
    let (limits, longest) = (&settings.engine, config.max_positions);
    if !matches!(place, Place::Cpu(_)) {
        memory.add(Part::Workspace, PROGRAM);
        let (device, window) = on_device(settings, &source, config, free_memory(&place)?)?;
        return Ok(Planned { memory, device: Some(device), window: Some(window) });
    }
    let batched = limits.max_num_batched_tokens;
    let takes = source.footprint(settings.dtype, model.dummy_weights, batched, batched)?;
    memory.add(Part::Weights, (takes.matrices + takes.small) as u64);
    memory.add(Part::Adapters, adapter_bytes(&settings.lora, config));
    let max_rank = if settings.lora.possible() { settings.lora.max_rank } else { 0 };
    let scratch = config.adapter_scratch_bytes(batched, max_rank);
    memory.add(Part::Workspace, (takes.workspace + scratch) as u64 + PROGRAM);
    let block = decoder_kv(config).block_bytes();
    let left = (memory.left(), Share::Modest);
    let window = Window::plan(limits.max_model_len, longest, limits.kv_cache_bytes, block, left)?;
    memory.add(Part::KvCache, (window.blocks * block) as u64);
    Ok(Planned { memory, device: None, window: Some(window) })
}

/// The generator's part where it is on a device that has `free` bytes: the cache gets what is left.
fn on_device(
    settings: &Settings,
    source: &ModelSource,
    config: &DecoderConfig,
    free: Option<u64>,
) -> anyhow::Result<(MemoryPlan, Window)> {
    let limits = &settings.engine;
    let (asked, longest) = (limits.max_model_len, config.max_positions);
    let options = device::options(settings, source, Window::longest(asked, longest), None)?;
    let takes = DeviceDecoder::footprint(config, &options)?;
    let mut plan = MemoryPlan::new(Budget {
        owner: Owner::Gpu,
        available: free,
        utilization: settings.memory_utilization,
    });
    plan.add(Part::Weights, takes.weights as u64);
    plan.add(Part::Adapters, takes.adapters as u64);
    plan.add(Part::Workspace, takes.workspace as u64);
    let window = Window::plan(asked, longest, limits.kv_cache_bytes, takes.block, (plan.left(), Share::All))?;
    plan.add(Part::KvCache, (window.blocks * takes.block) as u64);
    Ok((plan, window))
}

/// Bytes that nobody has taken of a device's memory; `None` for the host's, which is not asked for.
fn free_memory(place: &Place) -> anyhow::Result<Option<u64>> {
    match place {
        Place::Gpu(gpu) => Ok(Some(tarn_kernels::gpu::free_memory(gpu)?)),
        _ => Ok(None),
    }
}

/// The generator's window where it is the only model, or `roles` says what is beside it; refused where it does not fit.
pub(super) fn window(settings: &Settings, roles: Roles) -> anyhow::Result<Window> {
    settings.need_model()?;
    let planned = plan(settings, Roles { generator: true, ..roles })?;
    planned.check()?;
    anyhow::Context::context(planned.window, "a generator has a window: this is a bug")
}

/// The extents of the KV cache of a model.
pub(super) fn decoder_kv(config: &DecoderConfig) -> KvSpec {
    KvSpec { layers: config.layers, kv_heads: config.kv_heads, head_dim: config.head_dim }
}

/// All places for adapters as they may be filled: where more can come while the server runs, with the largest that is
/// allowed; otherwise with the modules, whose files say how large they can be.
fn adapter_bytes(settings: &LoraSettings, config: &DecoderConfig) -> u64 {
    let largest = config.adapter_bytes(settings.max_rank) as u64;
    if settings.dir.is_some() {
        return largest.saturating_mul(settings.max_loras as u64);
    }
    let mut sizes: Vec<u64> = settings
        .modules
        .iter()
        .map(|module| {
            let file = std::fs::metadata(module.path.join("adapter_model.safetensors"));
            // Halves become floats, and ranks are padded, by less than the smallest adapter takes.
            let padding = config.adapter_bytes(1) as u64;
            file.map_or(largest, |file| largest.min(file.len().saturating_mul(2).saturating_add(padding)))
        })
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.iter().take(settings.max_loras).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LoraModule;
    use crate::model::{RopeConfig, RopeScaling};

    fn config() -> DecoderConfig {
        DecoderConfig {
            architecture: "llama".to_owned(),
            hidden: 64,
            intermediate: 96,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab: 128,
            max_positions: 128,
            eps: 1e-5,
            rope: RopeConfig { theta: 1e4, scaling: RopeScaling::Default },
            sliding_window: None,
            tied: true,
            attention_bias: false,
            moe: None,
        }
    }

    #[test]
    fn adapters_take_what_their_files_allow_or_where_more_may_come_the_most() {
        let dir = tempfile::tempdir().expect("dir");
        let folder = |name: &str, bytes: usize| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).expect("folder");
            std::fs::write(path.join("adapter_model.safetensors"), vec![0; bytes]).expect("writes");
            LoraModule::new(name, path)
        };
        let modules = vec![folder("a", 100), folder("b", 300), folder("c", 200)];
        let mut settings = LoraSettings { modules, max_loras: 2, max_rank: 8, dir: None };
        // A (in × rank, in panels of 16) and B (rank × out) of q, k, v; o; gate, up; down.
        let a = (3 * 16 * 64) + (16 * 64) + (3 * 16 * 64) + (16 * 96);
        let b = (64 + 32 + 32) + 64 + (2 * 96) + 64;
        let one = 4 * 2 * (a + 8 * b);
        assert_eq!(config().adapter_bytes(8), one);
        let padding = 4 * 2 * (a + b) as u64;
        assert_eq!(adapter_bytes(&settings, &config()), 2 * (300 + 200) + 2 * padding);
        settings.dir = Some(dir.path().to_owned());
        assert_eq!(adapter_bytes(&settings, &config()), 2 * one as u64);
        settings.dir = None;
        settings.modules.clear();
        assert_eq!(adapter_bytes(&settings, &config()), 0);
    }
}
