//! The embed thread of a command: the embedder, and the reranker where one is wanted.

use std::sync::Arc;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::config::{ModelLocation, RerankSettings, Settings};
use crate::embed::{
    EmbedConfig, EmbedHandle, EmbedThread, EmbedderInfo, PairScorer, RerankerInfo, RerankerParts,
    start_with_reranker,
};
use crate::model::{DtypeChoice, Encoder, EncoderConfig, Exec, Gate, LoadOptions, ModelConfig, ModelSource};

use super::parts::{compute_threads, progress};
use super::tokenizers::tokenizer;

/// Tokens of one forward pass, where texts are shorter.
pub(super) const MAX_BATCH_TOKENS: usize = 512;

/// Loads the embedder, and `reranker` beside it, and starts their thread.
///
/// Its bulk passes wait at `gate`, if there is one.
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
    let reranker = reranker.map(|reranker| reranker_parts(settings, reranker, gate.clone())).transpose()?;
    let build = load(source, info.id.clone(), (settings.dtype, settings.threads), gate);
    let config = EmbedConfig { max_batch_tokens: MAX_BATCH_TOKENS };
    Ok(start_with_reranker(config, tokenizer, info, build, reranker)?)
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
    let load = load(source, id, (settings.dtype, settings.threads), gate);
    let build = Box::new(move || load().map(|encoder| Box::new(encoder) as Box<dyn PairScorer>));
    Ok(RerankerParts { info, tokenizer, build })
}

/// What loads an encoder on the embed thread.
fn load(
    source: ModelSource,
    name: String,
    (dtype, threads): (DtypeChoice, usize),
    gate: Option<Arc<Gate>>,
) -> impl FnOnce() -> Result<Encoder, String> + Send + 'static {
    move || {
        let options = LoadOptions {
            dtype,
            max_num_batched_tokens: MAX_BATCH_TOKENS,
            max_num_seqs: 1,
            dummy_weights: false,
            exec: Exec::simd(threads),
            progress: Some(progress(&format!("loading {name}"))),
        };
        let mut encoder = Encoder::load(&source, options).map_err(|error| format!("{name}: {error}"))?;
        if let Some(gate) = gate {
            encoder.set_gate(gate);
        }
        Ok(encoder)
    }
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
