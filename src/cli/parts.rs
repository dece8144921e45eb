//! Builds the parts that commands need from the settings.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::Settings;
use crate::embed::{EmbedHandle, EmbedThread};
use crate::engine::{EngineConfig, EngineThread, SamplingParams};
use crate::ingest::{Jobs, Pipeline, PipelineConfig, WorkerLimits};
use crate::lake::{LakeConfig, Lakes};
use crate::model::{Gate, KvSpec, LoadProgress, ModelConfig, ModelSource};
use crate::rag::{Citing, Generator, GeneratorConfig, RagConfig, RagService};
use crate::server::AppState;
use crate::telemetry::Metrics;
use crate::text::{ChatTemplate, ToolFormat};

use super::device::{Place, place};
use super::encoders::embedder;
use super::engines;
use super::plan::{Roles, plan};
use super::tokenizers::tokenizer;
use super::window::Window;

/// A progress bar on a terminal, nothing elsewhere.
pub(super) fn progress(what: &str) -> Box<dyn Fn(LoadProgress) + Send> {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} layers") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    Box::new(move |at| {
        bar.set_length(at.of as u64);
        bar.set_position(at.layers as u64);
        if at.layers == at.of {
            bar.finish_and_clear();
        }
    })
}

/// Loads the generator and starts its engine.
///
/// Its steps hold `gate`, if there is one, so that bulk embedding makes way.
pub(super) fn generator(
    settings: &Settings,
    window: Window,
    gate: Option<Arc<Gate>>,
) -> anyhow::Result<(Generator, EngineThread)> {
    compute_threads(settings);
    let model = settings.need_model()?;
    let source = ModelSource::open(&model.location.path)?;
    let ModelConfig::Decoder(config) = source.config().clone() else {
        anyhow::bail!(
            "{} reads texts and does not generate: give it as --embedder or --reranker",
            model.location.path.display()
        );
    };
    let tool_format = model.tool_call_parser.as_deref().map(tool_format).transpose()?;
    // Before the weights: a wrong adapter is cheap to find.
    let adapters = super::adapters::adapters(&settings.lora, &config)?;
    let tokenizer = tokenizer(&source)?;
    let template = match source.chat_template()? {
        Some(template) => Some(ChatTemplate::compile(&template, tokenizer.bos(), tokenizer.eos())?),
        None => None,
    };
    let generation = source.generation_config()?;
    let mut sampling = SamplingParams::default();
    sampling.temperature = generation.temperature.unwrap_or(sampling.temperature);
    sampling.top_p = generation.top_p.unwrap_or(sampling.top_p);
    sampling.top_k = generation.top_k;
    sampling.min_p = generation.min_p.unwrap_or(sampling.min_p);
    sampling.repetition_penalty = generation.repetition_penalty.unwrap_or(sampling.repetition_penalty);

    let limits = settings.engine.clone();
    let Window { max_model_len, blocks } = window;
    let place = place(settings.device)?;
    tracing::info!("it generates on {place}");

    let dummy_weights = model.dummy_weights;
    let summary = if dummy_weights { None } else { Some(source.inspect()?) };
    let parameters = summary.as_ref().map_or(0, |summary| summary.parameters);
    tracing::info!(
        model = model.location.name,
        weights_mib = summary.as_ref().map_or(0, |summary| summary.bytes >> 20),
        kv_blocks = blocks,
        window = max_model_len,
        "the KV cache holds {:.1} sequences of the whole window",
        blocks as f64 / max_model_len.div_ceil(KvSpec::BLOCK_SIZE) as f64
    );
    let name = model.location.name.clone();
    let config = EngineConfig {
        max_num_seqs: limits.max_num_seqs,
        max_num_batched_tokens: limits.max_num_batched_tokens,
        max_waiting: limits.max_waiting,
        prefix_cache: limits.prefix_cache,
        speculation: limits.speculation,
    };
    let (engine, thread) = match place {
        Place::Cpu(_) => engines::on_cpu(settings, source, config, window, gate)?,
        // Bulk embedding need not wait at the gate: its device's stream has a lower priority.
        place => engines::on_device(settings, place, source, config, window, &adapters)?,
    };
    let config = GeneratorConfig {
        name,
        eos: generation.eos,
        sampling,
        citing: Citing::for_parameters(parameters),
        tool_format,
    };
    Ok((Generator::new(engine, tokenizer, template, config).with_adapters(adapters), thread))
}

/// By the name that vLLM's users know.
fn tool_format(name: &str) -> anyhow::Result<ToolFormat> {
    ToolFormat::named(name).ok_or_else(|| {
        anyhow::anyhow!(
            "--tool-call-parser is `{name}`, but must be hermes, mistral, mistral_args or llama3_json"
        )
    })
}

/// Gives rayon, which some crates compute on, as many threads as the settings say.
pub(super) fn compute_threads(settings: &Settings) {
    // A second call (in tests) finds the pool in place, which is fine.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build_global();
}

/// Opens the lakes.
pub(super) fn lakes(settings: &Settings) -> anyhow::Result<Arc<Lakes>> {
    let config = LakeConfig {
        root: settings.lake.clone(),
        retention: settings.retention,
        scan_threads: settings.threads,
        failpoints: settings.failpoints,
    };
    Ok(Arc::new(Lakes::open(config)?))
}

/// What turns files into documents.
pub(super) fn pipeline(
    settings: &Settings,
    embed: EmbedHandle,
    lakes: Arc<Lakes>,
) -> anyhow::Result<Pipeline> {
    let config = PipelineConfig {
        worker_exe: std::env::current_exe()
            .context("finding this program, which parses in child processes")?,
        limits: WorkerLimits { time: settings.ingest.parse_time, memory: settings.ingest.parse_bytes },
        chunk_tokens: settings.ingest.chunk_tokens,
        parallel: settings.threads,
    };
    Ok(Pipeline::new(config, embed, lakes))
}

/// All of a server. The threads must outlive it.
pub(super) fn server(settings: &Settings) -> anyhow::Result<(AppState, Option<EngineThread>, EmbedThread)> {
    let roles = Roles {
        generator: settings.model.is_some(),
        embedder: true,
        reranker: settings.reranker.is_some(),
        serves: true,
    };
    let planned = plan(settings, roles)?;
    planned.check()?;
    tracing::info!("planned memory: {}", planned.memory.line());
    let metrics = Metrics::new();
    metrics.planned("memory", planned.memory.parts(), planned.memory.budget.bytes());
    if let Some(device) = &planned.device {
        tracing::info!("planned memory of the device: {}", device.line());
        metrics.planned("device_memory", device.parts(), device.budget.bytes());
    }
    let gate = Arc::new(Gate::new());
    let (embed, embed_thread) = embedder(settings, Some(gate.clone()), settings.reranker.as_ref())?;
    let (generator, engine_thread) = match planned.window {
        Some(window) => {
            let (generator, thread) = generator(settings, window, Some(gate))?;
            (Some(generator.measured(metrics.clone())), Some(thread))
        }
        None => (None, None),
    };
    let lakes = lakes(settings)?;
    let pipeline = pipeline(settings, embed.clone(), lakes.clone())?;
    let state = AppState {
        rag: RagService::new(lakes.clone(), embed.clone(), generator.clone(), RagConfig::default()),
        jobs: Jobs::new(pipeline.clone(), 2),
        pipeline,
        generator,
        embed,
        lakes,
        metrics,
        adapters_dir: settings.lora.dir.clone(),
        responses: crate::server::ResponseStore::default(),
        api_keys: settings.server.api_keys.clone().into(),
        max_upload_bytes: settings.server.max_upload_bytes,
        draining: Arc::new(AtomicBool::new(false)),
    };
    Ok((state, engine_thread, embed_thread))
}

/// The async runtime of a command.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
