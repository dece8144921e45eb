//! The embed thread of a command: the embedder, and the reranker where one is wanted.
//!
//! They compute where the generator does, each on a device of its own, whose work goes behind the generator's.

use std::sync::Arc;

use anyhow::Context;
use sha2::{Digest, Sha256};
use tarn_kernels::gpu::Priority;

use crate::config::{ModelLocation, RerankSettings, Settings};
use crate::embed::{
    EmbedConfig, EmbedHandle, EmbedThread, EmbedderInfo, PairScorer, PooledEncoder, RerankerInfo,
    RerankerParts, start_with_reranker,
};
use crate::model::{
    DeviceEncoder, DeviceEncoderOptions, Encoder, EncoderConfig, Exec, Gate, LoadOptions, ModelConfig,
    ModelSource,
};

use super::device::{self, Place, place};
use super::parts::{compute_threads, progress};
use super::tokenizers::tokenizer;

/// Tokens of one pass on the CPU, where texts are shorter: weights are read once for all of them, and whoever waits behind
/// the pass does not wait long.
const CPU_TOKENS: usize = 512;
/// Tokens of one pass on a GPU. The narrowest products of a large encoder, 1,024 columns wide, are then 512 tiles of 128
/// tokens and 256 columns, some four for each of an H200's 132 multiprocessors, so that few idle at the end; queueing two
/// hundred launches takes the host a millisecond or two, of a pass of 55 ms at 300,000 tokens a second; a query waits for
/// one such pass at most. More would only make it wait longer.
const GPU_TOKENS: usize = 16 << 10;

/// An encoder, wherever it computes and whatever for.
trait AnyEncoder: PooledEncoder + PairScorer {}

impl<E: PooledEncoder + PairScorer> AnyEncoder for E {}

/// Loads an encoder on the embed thread.
type Load = Box<dyn FnOnce() -> Result<Box<dyn AnyEncoder>, String> + Send>;

/// Loads the embedder, and `reranker` beside it, and starts their thread.
///
/// On the CPU its bulk passes wait at `gate`, if there is one.
pub(super) fn embedder(
    settings: &Settings,
    gate: Option<Arc<Gate>>,
    reranker: Option<&RerankSettings>,
) -> anyhow::Result<(EmbedHandle, EmbedThread)> {
    compute_threads(settings);
    let embedder = settings.need_embedder()?;
    let (source, config) = open(&embedder.location, "embedder")?;
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
    let place = place(settings.device)?;
    tracing::info!("it embeds on {place}");
    let reranker =
        reranker.map(|reranker| reranker_parts(settings, &place, reranker, gate.clone())).transpose()?;
    let load = load(settings, &place, source, info.id.clone(), gate)?;
    let config = EmbedConfig { max_batch_tokens: batch_tokens(&place) };
    Ok(start_with_reranker(config, tokenizer, info, load, reranker)?)
}

/// Bytes that the encoder at `location` takes at `place`, its largest pass included.
pub(super) fn footprint(
    settings: &Settings,
    place: &Place,
    location: &ModelLocation,
    role: &str,
) -> anyhow::Result<u64> {
    let (source, config) = open(location, role)?;
    let bytes = match place {
        Place::Cpu(_) => {
            let takes = source.footprint(settings.dtype, false, batch_tokens(place), 1)?;
            takes.matrices + takes.small + takes.workspace
        }
        Place::Gpu(_) | Place::Emulated => {
            DeviceEncoder::footprint(&config, &device_options(settings, place, &source)?)?
        }
    };
    Ok(bytes as u64)
}

/// Most tokens of one pass, where texts are shorter. On the emulator a large pass has nothing to fill.
fn batch_tokens(place: &Place) -> usize {
    match place {
        Place::Gpu(_) => GPU_TOKENS,
        Place::Cpu(_) | Place::Emulated => CPU_TOKENS,
    }
}

/// How an encoder is brought to the device of `place`.
fn device_options(
    settings: &Settings,
    place: &Place,
    source: &ModelSource,
) -> anyhow::Result<DeviceEncoderOptions> {
    let tokens = batch_tokens(place);
    Ok(DeviceEncoderOptions {
        dtype: device::dtype(settings.dtype, source, false)?,
        max_num_batched_tokens: tokens,
        // No text is without a token.
        max_num_seqs: tokens,
        dummy_weights: false,
        progress: None,
    })
}

/// Opens an encoder's files; `role` is the setting that named them.
pub(super) fn open(location: &ModelLocation, role: &str) -> anyhow::Result<(ModelSource, EncoderConfig)> {
    let path = location.path.display();
    let source = ModelSource::open(&location.path)?;
    let ModelConfig::Encoder(config) = source.config().clone() else {
        anyhow::bail!("--{role} {path} generates: give it as --model");
    };
    match (role, config.head) {
        ("embedder", Some(_)) => {
            anyhow::bail!("--embedder {path} scores pairs and does not embed: give it as --reranker")
        }
        ("reranker", None) => anyhow::bail!(
            "--reranker {path} has no head that scores pairs (its architecture is {}): a reranker is a \
             BertForSequenceClassification or XLMRobertaForSequenceClassification with one label",
            config.architecture
        ),
        _ => Ok((source, config)),
    }
}

fn reranker_parts(
    settings: &Settings,
    place: &Place,
    reranker: &RerankSettings,
    gate: Option<Arc<Gate>>,
) -> anyhow::Result<RerankerParts> {
    let (source, config) = open(&reranker.location, "reranker")?;
    let tokenizer = tokenizer(&source)?;
    let head = config.head.context("a reranker has a head: this is a bug")?;
    let id = reranker.location.name.clone();
    if settings.embedder.as_ref().is_some_and(|embedder| embedder.location.name == id)
        || settings.model.as_ref().is_some_and(|model| model.location.name == id)
    {
        anyhow::bail!("two models are named `{id}`: rename a folder, or set --served-model-name");
    }
    let info = RerankerInfo {
        id: id.clone(),
        max_tokens: config.max_tokens,
        template: reranker.template.clone(),
        scale: head.scale,
    };
    let load = load(settings, place, source, id, gate)?;
    let build = Box::new(move || load().map(|encoder| encoder as Box<dyn PairScorer>));
    Ok(RerankerParts { info, tokenizer, build })
}

/// What loads an encoder at `place`.
fn load(
    settings: &Settings,
    place: &Place,
    source: ModelSource,
    name: String,
    gate: Option<Arc<Gate>>,
) -> anyhow::Result<Load> {
    if let Place::Cpu(_) = place {
        let (dtype, threads) = (settings.dtype, settings.threads);
        return Ok(Box::new(move || {
            let options = LoadOptions {
                dtype,
                max_num_batched_tokens: CPU_TOKENS,
                max_num_seqs: 1,
                dummy_weights: false,
                exec: Exec::simd(threads),
                progress: Some(progress(&format!("loading {name}"))),
            };
            let mut encoder = Encoder::load(&source, options).map_err(|error| format!("{name}: {error}"))?;
            if let Some(gate) = gate {
                encoder.set_gate(gate);
            }
            Ok(Box::new(encoder))
        }));
    }
    let options = device_options(settings, place, &source)?;
    let place = place.clone();
    Ok(Box::new(move || {
        let device =
            device::open(&place, Priority::Background).map_err(|error| format!("{name}: {error:#}"))?;
        let options =
            DeviceEncoderOptions { progress: Some(progress(&format!("loading {name}"))), ..options };
        let encoder =
            DeviceEncoder::load(device, &source, &options).map_err(|error| format!("{name}: {error}"))?;
        Ok(Box::new(encoder))
    }))
}

/// Whether a name has `e5` as a word.
fn is_e5(name: &str) -> bool {
    name.split(|c: char| !c.is_alphanumeric()).any(|word| word.eq_ignore_ascii_case("e5"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e5_is_a_word_of_the_name() {
        assert!(is_e5("intfloat/multilingual-e5-small") && is_e5("E5_base") && is_e5("e5"));
        assert!(!is_e5("base5") && !is_e5("gte5-small") && !is_e5("me5"));
    }
}
