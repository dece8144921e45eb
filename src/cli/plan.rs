//! The memory of a command, planned from settings and files before anything is loaded.

use crate::config::{ByteSize, LoraSettings, Settings};
use crate::model::{DecoderConfig, DeviceDecoder, KvSpec, ModelConfig, ModelSource};
use crate::rag::GRAMMAR_BYTES;
use crate::server::RESPONSE_BYTES;

use super::device::{self, Place, place};
use super::encoders;
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
    /// The device's, where the models are on one.
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
    let place = place(settings.device)?;
    let available = match &place {
        Place::Gpu(gpu) => {
            enough_is_free(tarn_kernels::gpu::free_memory(gpu)?, gpu.memory, settings.memory_utilization)?;
            Some(gpu.memory)
        }
        _ => None,
    };
    plan_at(settings, roles, &place, available)
}

/// The part of a GPU's memory that is planned with is of all of it, as vLLM's `--gpu-memory-utilization` is: so several
/// processes share a GPU by parts that do not depend on who came first. It must be free.
fn enough_is_free(free: u64, all: u64, utilization: f64) -> anyhow::Result<()> {
    let wanted = (all as f64 * utilization) as u64;
    anyhow::ensure!(
        wanted <= free,
        "--memory-utilization {utilization} is {} of the GPU's {}, and {} are free: stop what else uses the GPU, or start \
         with --memory-utilization {:.2} or less",
        ByteSize(wanted),
        ByteSize(all),
        ByteSize(free),
        (free as f64 / all as f64 * 100.0).floor() / 100.0
    );
    Ok(())
}

/// As [`plan`], with the models at `place`, which has `available` bytes where it is a device.
fn plan_at(
    settings: &Settings,
    roles: Roles,
    place: &Place,
    available: Option<u64>,
) -> anyhow::Result<Planned> {
    let of = |owner, available| {
        MemoryPlan::new(Budget { owner, available, utilization: settings.memory_utilization })
    };
    let mut memory = of(Owner::Machine, machine_memory::available());
    let mut device = match place {
        Place::Cpu(_) => None,
        Place::Gpu(_) | Place::Emulated => Some(of(Owner::Gpu, available)),
    };
    for (wanted, location, role, part) in [
        (roles.embedder, settings.embedder.as_ref().map(|it| &it.location), "embedder", Part::Embedder),
        (roles.reranker, settings.reranker.as_ref().map(|it| &it.location), "reranker", Part::Reranker),
    ] {
        if let Some(location) = location.filter(|_| wanted) {
            let bytes = encoders::footprint(settings, place, location, role)?;
            device.as_mut().unwrap_or(&mut memory).add(part, bytes);
        }
    }
    if !roles.generator {
        memory.add(Part::Workspace, PROGRAM);
        return Ok(Planned { memory, device, window: None });
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
    let window = match &mut device {
        Some(device) => {
            memory.add(Part::Workspace, PROGRAM);
            on_device(settings, &source, config, device)?
        }
        None => on_cpu(settings, &source, config, &mut memory)?,
    };
    Ok(Planned { memory, device, window: Some(window) })
}

/// Plans the generator, and the program, in what `memory` has left.
fn on_cpu(
    settings: &Settings,
    source: &ModelSource,
    config: &DecoderConfig,
    memory: &mut MemoryPlan,
) -> anyhow::Result<Window> {
    let (limits, longest) = (&settings.engine, config.max_positions);
    let batched = limits.max_num_batched_tokens;
    let dummy_weights = settings.need_model()?.dummy_weights;
    let takes = source.footprint(settings.dtype, dummy_weights, batched, batched)?;
    memory.add(Part::Weights, (takes.matrices + takes.small) as u64);
    memory.add(Part::Adapters, adapter_bytes(&settings.lora, config));
    let max_rank = if settings.lora.possible() { settings.lora.max_rank } else { 0 };
    let scratch = config.adapter_scratch_bytes(batched, max_rank);
    memory.add(Part::Workspace, (takes.workspace + scratch) as u64 + PROGRAM);
    let block = decoder_kv(config).block_bytes();
    let left = (memory.left(), Share::Modest);
    let window = Window::plan(limits.max_model_len, longest, limits.kv_cache_bytes, block, left)?;
    memory.add(Part::KvCache, (window.blocks * block) as u64);
    Ok(window)
}

/// Plans the generator on a device whose memory is `plan`'s: the cache gets what all else leaves.
fn on_device(
    settings: &Settings,
    source: &ModelSource,
    config: &DecoderConfig,
    plan: &mut MemoryPlan,
) -> anyhow::Result<Window> {
    let limits = &settings.engine;
    let (asked, longest) = (limits.max_model_len, config.max_positions);
    let options = device::options(settings, source, Window::longest(asked, longest), None)?;
    let takes = DeviceDecoder::footprint(config, &options)?;
    plan.add(Part::Weights, takes.weights as u64);
    plan.add(Part::Adapters, takes.adapters as u64);
    plan.add(Part::Workspace, takes.workspace as u64);
    let window = Window::plan(asked, longest, limits.kv_cache_bytes, takes.block, (plan.left(), Share::All))?;
    plan.add(Part::KvCache, (window.blocks * takes.block) as u64);
    Ok(window)
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
    use serde_json::{Value, json};
    use tarn_kernels::gpu::Gpu;

    use super::*;
    use crate::config::{LoraModule, RawSettings};
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

    /// A small generator with random weights, an embedder and a reranker, in `dir`.
    fn settings(dir: &std::path::Path) -> Settings {
        let folder = |name: &str, config: Value| {
            let path = dir.join(name);
            std::fs::create_dir(&path).expect("folder");
            std::fs::write(path.join("config.json"), config.to_string()).expect("writes");
            // A plan asks the files for the types of their elements only.
            let bytes = [0; 4];
            let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &bytes);
            let file = path.join("model.safetensors");
            safetensors::serialize_to_file([("a", tensor.expect("shape"))], None, &file).expect("writes");
            Some(path.to_string_lossy().into_owned())
        };
        let sizes = |architecture: &str| {
            json!({"architectures": [architecture], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                "num_attention_heads": 4, "head_dim": 16, "vocab_size": 128, "max_position_embeddings": 128,
                "rms_norm_eps": 1e-5, "type_vocab_size": 2, "id2label": {"0": "LABEL_0"}})
        };
        let raw = RawSettings {
            model: folder("model", sizes("LlamaForCausalLM")),
            embedder: folder("embedder", sizes("BertModel")),
            reranker: folder("reranker", sizes("BertForSequenceClassification")),
            dummy_weights: Some(true),
            models_dir: Some(dir.to_owned()),
            ..RawSettings::default()
        };
        Settings::resolve(raw).expect("resolves")
    }

    #[test]
    fn a_part_of_a_gpu_is_of_all_of_its_memory_and_must_be_free() {
        let gib = 1 << 30;
        assert!(enough_is_free(57 * gib, 141 * gib, 0.4).is_ok(), "56.4 GiB");
        let refused = enough_is_free(50 * gib, 141 * gib, 0.4).expect_err("too little").to_string();
        for words in ["--memory-utilization 0.4 is", "141 GiB", "50 GiB are free", "0.35 or less"] {
            assert!(refused.contains(words), "`{words}` is not in: {refused}");
        }
    }

    #[test]
    fn on_a_device_encoders_are_planned_there_and_the_cache_gets_what_they_leave() {
        let dir = tempfile::tempdir().expect("dir");
        let settings = settings(dir.path());
        let gpu = Gpu { ordinal: 0, name: "Test".to_owned(), capability: (9, 0), memory: 8 << 30 };
        let gpu = Place::Gpu(gpu);
        let at = |generator, encoders, place: &Place, free| {
            let roles = Roles { generator, embedder: encoders, reranker: encoders, serves: true };
            plan_at(&settings, roles, place, Some(free)).expect("plans")
        };
        let part = |plan: &MemoryPlan, name: &str| {
            plan.parts().find(|(part, _)| *part == name).map_or(0, |(_, bytes)| bytes)
        };
        let encoders = |plan: &MemoryPlan| part(plan, "embedder") + part(plan, "reranker");
        let on_device = |planned: &Planned| planned.device.clone().expect("a device has a plan");

        let (alone, all) = (at(true, false, &gpu, 8 << 30), at(true, true, &gpu, 8 << 30));
        assert_eq!((encoders(&on_device(&alone)), encoders(&all.memory)), (0, 0));
        let taken = encoders(&on_device(&all));
        assert!(part(&on_device(&all), "reranker") > part(&on_device(&all), "embedder"), "a head is more");
        let cache = |planned: &Planned| part(&on_device(planned), "kv_cache");
        // Two layers of keys and values of 16 tokens, 4 heads of 16, two bytes each.
        let block = 2 * 2 * 16 * 4 * 16 * 2;
        assert!((cache(&alone) - cache(&all)).abs_diff(taken) < block, "{taken} bytes of encoders");
        assert!(all.check().is_ok());

        let only = at(false, true, &gpu, 8 << 30);
        assert_eq!((on_device(&only).total(), only.window), (taken, None));
        let small = at(false, true, &Place::Emulated, 8 << 30);
        assert!(encoders(&on_device(&small)) * 4 < taken, "passes on a GPU are larger");
        let refused = at(false, true, &gpu, 16 << 20).check().expect_err("too little").to_string();
        for words in ["GPU memory", "embedder", "--reranker"] {
            assert!(refused.contains(words), "`{words}` is not in:\n{refused}");
        }

        let cpu = at(true, true, &Place::Cpu(None), 8 << 30);
        assert!(cpu.device.is_none() && encoders(&cpu.memory) > 0);
    }
}
