//! Builds the parts that commands need from the settings.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::config::Settings;
use crate::embed::{EmbedConfig, EmbedHandle, EmbedThread, EmbedderInfo};
use crate::engine::{EngineConfig, EngineThread, ModelRunner, SamplingParams};
use crate::ingest::{Jobs, Pipeline, PipelineConfig, WorkerLimits};
use crate::lake::{LakeConfig, Lakes};
use crate::model::{
    Decoder, Encoder, Exec, Gate, GgufVocab, KvCache, KvSpec, LoadOptions, LoadProgress, ModelConfig,
    ModelSource, TokenizerSource,
};
use crate::rag::{Citing, Generator, GeneratorConfig, RagConfig, RagService};
use crate::server::AppState;
use crate::telemetry::Metrics;
use crate::text::{ChatTemplate, Tokenizer, Vocab, VocabKind};

/// A progress bar on a terminal, nothing elsewhere.
fn progress(what: &str) -> Box<dyn Fn(LoadProgress) + Send> {
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

fn tokenizer(source: &ModelSource) -> anyhow::Result<Tokenizer> {
    match source.tokenizer()? {
        TokenizerSource::Json { tokenizer, config } => Ok(Tokenizer::from_json(&tokenizer, config.as_ref())?),
        TokenizerSource::Gguf(gguf) => Ok(Tokenizer::from_vocab(&vocab(&gguf)?, gguf.bos, gguf.eos)?),
    }
}

/// What a GGUF says of its vocabulary, with llama.cpp's defaults for what it does not say.
fn vocab(gguf: &GgufVocab) -> anyhow::Result<Vocab> {
    let of_type = |kind: u32| {
        let all = gguf.token_types.iter().zip(0_u32..).filter(move |(found, _)| **found == kind);
        all.map(|(_, id)| id).collect::<Vec<_>>()
    };
    let kind = match gguf.model.as_str() {
        "gpt2" => VocabKind::ByteLevel,
        "llama" => VocabKind::SentencePiece,
        other => anyhow::bail!(
            "the GGUF's tokenizer `{other}` is not supported: use the model's Hugging Face folder"
        ),
    };
    Ok(Vocab {
        kind,
        pre: gguf.pre.clone(),
        control: of_type(3),
        user_defined: of_type(4),
        bos: gguf.bos.filter(|_| gguf.add_bos.unwrap_or_else(|| kind.begins(&gguf.pre))),
        unk: gguf.unk,
        space_prefix: gguf.add_space_prefix.unwrap_or(true),
        tokens: gguf.tokens.clone(),
        merges: gguf.merges.clone(),
        scores: gguf.scores.clone(),
    })
}

/// Most tokens of a sequence, and the KV blocks for all of them.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    max_model_len: usize,
    blocks: usize,
}

impl Window {
    /// The window where none is asked for.
    const DEFAULT: usize = 8192;
    /// Bytes of cache for sequences beyond the first, where nobody says otherwise.
    const CACHE: usize = 512 << 20;

    /// What is possible of what is asked for, in tokens and bytes; says so where that is less.
    fn plan(
        asked: Option<usize>,
        max_positions: usize,
        kv_bytes: Option<usize>,
        block_bytes: usize,
    ) -> anyhow::Result<Window> {
        anyhow::ensure!(asked != Some(0), "--max-model-len is 0, but must be at least 1");
        let wanted = asked.unwrap_or(Window::DEFAULT);
        let fits = wanted.min(max_positions);
        if wanted > fits && asked.is_some() {
            tracing::warn!(
                "the window is {fits} tokens, the model's longest context, and not the {wanted} asked for"
            );
        } else if asked.is_none() && fits < max_positions {
            tracing::info!(
                "the window is {fits} tokens of the model's {max_positions}: --max-model-len sets it"
            );
        }
        let for_one = fits.div_ceil(KvSpec::BLOCK_SIZE).saturating_mul(block_bytes);
        let by_default = for_one.saturating_mul(8).min(for_one.max(Window::CACHE));
        let blocks = kv_bytes.unwrap_or(by_default) / block_bytes;
        anyhow::ensure!(blocks > 0, "--kv-cache-mb is too small for one block of {} KiB", block_bytes >> 10);
        // Places in the cache are counted in 32 bits.
        anyhow::ensure!(
            blocks <= u32::MAX as usize / KvSpec::BLOCK_SIZE,
            "--kv-cache-mb is too large: {blocks} blocks of {} KiB",
            block_bytes >> 10
        );
        let max_model_len = fits.min(blocks * KvSpec::BLOCK_SIZE);
        if max_model_len < fits {
            tracing::warn!(
                "the window is {max_model_len} tokens and not {fits}: the KV cache holds no more; --kv-cache-mb sets it"
            );
        }
        Ok(Window { max_model_len, blocks })
    }
}

/// Loads the generator and starts its engine.
///
/// Its steps hold `gate`, if there is one, so that bulk embedding makes way.
pub(super) fn generator(
    settings: &Settings,
    gate: Option<Arc<Gate>>,
) -> anyhow::Result<(Generator, EngineThread)> {
    compute_threads(settings);
    let model = settings.need_model()?;
    let source = ModelSource::open(&model.location.path)?;
    let ModelConfig::Decoder(config) = source.config().clone() else {
        anyhow::bail!(
            "{} embeds and does not generate: give it as --embedder",
            model.location.path.display()
        );
    };
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
    let spec = KvSpec { layers: config.layers, kv_heads: config.kv_heads, head_dim: config.head_dim };
    let Window { max_model_len, blocks } =
        Window::plan(limits.max_model_len, config.max_positions, limits.kv_cache_bytes, spec.block_bytes())?;

    let (dtype, threads, dummy_weights) = (settings.dtype, settings.threads, model.dummy_weights);
    let summary = if dummy_weights { None } else { Some(source.inspect()?) };
    let parameters = summary.as_ref().map_or(0, |summary| summary.parameters);
    tracing::info!(
        model = model.location.name,
        weights_mib = summary.as_ref().map_or(0, |summary| summary.bytes >> 20),
        kv_blocks = blocks,
        kv_mib = (blocks * spec.block_bytes()) >> 20,
        window = max_model_len,
        "the KV cache holds {:.1} sequences of the whole window",
        blocks as f64 / max_model_len.div_ceil(KvSpec::BLOCK_SIZE) as f64
    );
    let batched = limits.max_num_batched_tokens;
    let name = model.location.name.clone();
    let label = format!("loading {name}");
    let build = move || {
        let options = LoadOptions {
            dtype,
            max_num_batched_tokens: batched,
            // A row of logits for each token of a step: log probabilities of prompts need as many.
            max_num_seqs: batched,
            dummy_weights,
            exec: Exec::simd(threads),
            progress: Some(progress(&label)),
        };
        let decoder = Decoder::load(&source, options).map_err(|error| error.to_string())?;
        let kv = KvCache::new(decoder.kv_spec(), blocks).map_err(|error| error.to_string())?;
        let runner = ModelRunner::new(decoder, kv, max_model_len);
        Ok(match gate {
            Some(gate) => runner.with_gate(gate),
            None => runner,
        })
    };
    let config = EngineConfig {
        max_num_seqs: limits.max_num_seqs,
        max_num_batched_tokens: batched,
        max_waiting: limits.max_waiting,
        prefix_cache: limits.prefix_cache,
        speculation: None,
    };
    let (engine, thread) = crate::engine::start(config, build)?;
    let config =
        GeneratorConfig { name, eos: generation.eos, sampling, citing: Citing::for_parameters(parameters) };
    Ok((Generator::new(engine, tokenizer, template, config), thread))
}

/// Loads the embedder and starts its thread.
///
/// Its bulk passes wait at `gate`, if there is one.
pub(super) fn embedder(
    settings: &Settings,
    gate: Option<Arc<Gate>>,
) -> anyhow::Result<(EmbedHandle, EmbedThread)> {
    compute_threads(settings);
    let embedder = settings.need_embedder()?;
    let source = ModelSource::open(&embedder.location.path)?;
    let ModelConfig::Encoder(config) = source.config().clone() else {
        anyhow::bail!(
            "{} generates and does not embed: give it as --model",
            embedder.location.path.display()
        );
    };
    let tokenizer = tokenizer(&source)?;
    let name = embedder.location.name.clone();
    let is_e5 = is_e5(&name);
    let prefix = |set: &Option<String>, e5: &str| {
        set.clone().unwrap_or_else(|| if is_e5 { e5.to_owned() } else { String::new() })
    };
    let info = EmbedderInfo {
        sha256: digest(&embedder.location.path).context("reading the embedder's files")?,
        dim: config.hidden,
        pooling: format!("{:?}", config.pooling).to_lowercase(),
        query_prefix: prefix(&embedder.query_prefix, "query: "),
        passage_prefix: prefix(&embedder.passage_prefix, "passage: "),
        max_tokens: config.max_tokens,
        id: name,
    };
    let (dtype, threads) = (settings.dtype, settings.threads);
    let label = format!("loading {}", info.id);
    let build = move || {
        let options = LoadOptions {
            dtype,
            max_num_batched_tokens: 512,
            max_num_seqs: 1,
            dummy_weights: false,
            exec: Exec::simd(threads),
            progress: Some(progress(&label)),
        };
        let mut encoder = Encoder::load(&source, options).map_err(|error| error.to_string())?;
        if let Some(gate) = gate {
            encoder.set_gate(gate);
        }
        Ok(encoder)
    };
    Ok(crate::embed::start(EmbedConfig { max_batch_tokens: 512 }, tokenizer, info, build)?)
}

/// Whether a name has `e5` as a word.
fn is_e5(name: &str) -> bool {
    name.split(|c: char| !c.is_alphanumeric()).any(|word| word.eq_ignore_ascii_case("e5"))
}

/// Gives rayon, which some crates compute on, as many threads as the settings say.
fn compute_threads(settings: &Settings) {
    // A second call (in tests) finds the pool in place, which is fine.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build_global();
}

/// A digest of what decides a model's vectors: its small files whole, its weights by length and samples.
fn digest(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut hasher = Sha256::new();
    let mut files: Vec<_> =
        std::fs::read_dir(path)?.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !(name == "config.json" || name == "tokenizer.json" || name.ends_with(".safetensors")) {
            continue;
        }
        let mut file = std::fs::File::open(&path)?;
        let length = file.metadata()?.len();
        hasher.update(name.as_bytes());
        hasher.update(length.to_le_bytes());
        let mut part = vec![0; 1 << 16];
        for sample in 0..64_u64 {
            file.seek(SeekFrom::Start(length / 64 * sample))?;
            let read = file.read(&mut part)?;
            hasher.update(&part[..read]);
        }
    }
    Ok(hex::encode(hasher.finalize()))
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
    let metrics = Metrics::new();
    let gate = Arc::new(Gate::new());
    let (embed, embed_thread) = embedder(settings, Some(gate.clone()))?;
    let (generator, engine_thread) = match settings.model {
        Some(_) => {
            let (generator, thread) = generator(settings, Some(gate))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e5_is_a_word_of_the_name() {
        assert!(is_e5("intfloat/multilingual-e5-small") && is_e5("E5_base") && is_e5("e5"));
        assert!(!is_e5("base5") && !is_e5("gte5-small") && !is_e5("me5"));
    }

    #[test]
    fn the_window_is_what_model_and_cache_allow() {
        let plan = |asked, max, bytes| Window::plan(asked, max, bytes, 1 << 10);
        assert_eq!(plan(None, 100_000, None).expect("plans"), Window { max_model_len: 8192, blocks: 4096 });
        assert_eq!(plan(Some(64), 32, Some(1 << 20)).expect("plans").max_model_len, 32);
        assert_eq!(plan(Some(64), 100, Some(2 << 10)).expect("plans").max_model_len, 32);
        assert!(plan(Some(0), 100, None).is_err() && plan(None, 100, Some(1)).is_err());
        assert!(plan(None, 100, Some(usize::MAX)).is_err());
    }

    #[test]
    fn a_gguf_of_llama_3_begins_texts_where_it_does_not_say() {
        let gguf = |pre: &str, add_bos| GgufVocab {
            model: "gpt2".to_owned(),
            pre: pre.to_owned(),
            bos: Some(0),
            add_bos,
            ..GgufVocab::default()
        };
        assert_eq!(vocab(&gguf("llama-bpe", None)).expect("builds").bos, Some(0));
        assert_eq!(vocab(&gguf("llama-bpe", Some(false))).expect("builds").bos, None);
        assert_eq!(vocab(&gguf("smollm", None)).expect("builds").bos, None);
    }
}
