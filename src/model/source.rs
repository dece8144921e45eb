//! A model's files, opened but not loaded.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::ModelConfig;
use super::error::{ModelError, Result};
use super::gguf::{GgufFile, GgufType};
use super::gguf_value::GgufValue;
use super::hf_config::{read, read_json, read_json_if_there};
use super::weights::{SafetensorFiles, Tensors};

/// A Hugging Face folder or a GGUF file.
#[derive(Debug)]
pub struct ModelSource {
    path: PathBuf,
    config: ModelConfig,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Folder(PathBuf),
    Gguf(GgufFile),
}

/// Where the tokenizer comes from; `text` builds it.
#[derive(Debug, Clone)]
pub enum TokenizerSource {
    /// `tokenizer.json`, and `tokenizer_config.json` if there is one.
    Json {
        /// The tokenizer.
        tokenizer: Vec<u8>,
        /// Its settings.
        config: Option<Value>,
    },
    /// A GGUF vocabulary.
    Gguf(Box<GgufVocab>),
}

/// The vocabulary in a GGUF file's metadata.
#[derive(Debug, Clone, Default)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// The pre-tokenizer's name, for `gpt2`.
    pub pre: String,
    /// Pieces by id.
    pub tokens: Vec<String>,
    /// Merges, best first, `left right`.
    pub merges: Vec<String>,
    /// Scores by id, for `llama`.
    pub scores: Vec<f32>,
    /// Types by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte.
    pub token_types: Vec<u32>,
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// Unknown.
    pub unk: Option<u32>,
    /// Whether a text begins with `bos`.
    pub add_bos: Option<bool>,
    /// Whether a space is put before a text, for `llama`.
    pub add_space_prefix: Option<bool>,
}

/// What `generation_config.json` says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end an answer.
    pub eos: Vec<u32>,
    /// Default temperature.
    pub temperature: Option<f32>,
    /// Default top-p.
    pub top_p: Option<f32>,
    /// Default top-k.
    pub top_k: Option<u32>,
}

/// What `tarn models inspect` prints.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ModelSummary {
    /// Where it is.
    pub path: PathBuf,
    /// Its architecture.
    pub architecture: String,
    /// `generates` or `embeds`.
    pub role: &'static str,
    /// Parameters.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Tensors by type.
    pub dtypes: std::collections::BTreeMap<String, usize>,
    /// Longest context in tokens.
    pub context: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Whether it has a chat template.
    pub chat_template: bool,
}

impl ModelSource {
    /// Opens a folder with `config.json`, a `.gguf` file, or a folder with exactly one `.gguf` file.
    ///
    /// # Errors
    /// [`ModelError`] that names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<ModelSource> {
        let not_a_model =
            |found: &str| ModelError::NotAModel { path: path.to_owned(), found: found.to_owned() };
        if path.is_dir() {
            if path.join("config.json").is_file() {
                let config = read(path)?;
                return Ok(ModelSource {
                    path: path.to_owned(),
                    config,
                    files: Files::Folder(path.to_owned()),
                });
            }
            let mut ggufs: Vec<PathBuf> = std::fs::read_dir(path)
                .map_err(|source| ModelError::Io { path: path.to_owned(), source })?
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf")))
                .collect();
            return match (ggufs.len(), ggufs.pop()) {
                (1, Some(only)) => ModelSource::open(&only),
                (0, _) => Err(not_a_model("it has neither config.json nor a .gguf file")),
                (n, _) => Err(not_a_model(&format!("it has {n} .gguf files: name one of them"))),
            };
        }
        if !path.exists() {
            return Err(not_a_model("it does not exist"));
        }
        let file = GgufFile::open(path)?;
        let config = ModelConfig::Decoder(file.config()?);
        Ok(ModelSource { path: path.to_owned(), config, files: Files::Gguf(file) })
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors; a folder's weight files are opened here.
    pub(super) fn tensors(&self) -> Result<Tensors<'_>> {
        match &self.files {
            Files::Folder(dir) => Ok(Tensors::Safetensors(SafetensorFiles::open(dir)?)),
            Files::Gguf(file) => Ok(Tensors::Gguf(file)),
        }
    }

    /// The tokenizer's data.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn tokenizer(&self) -> Result<TokenizerSource> {
        match &self.files {
            Files::Folder(dir) => {
                let path = dir.join("tokenizer.json");
                let tokenizer = std::fs::read(&path).map_err(|source| ModelError::Io { path, source })?;
                let config = read_json_if_there(&dir.join("tokenizer_config.json"))?;
                Ok(TokenizerSource::Json { tokenizer, config })
            }
            Files::Gguf(file) => vocabulary(file).map(|vocab| TokenizerSource::Gguf(Box::new(vocab))),
        }
    }

    /// The chat template, if the model has one.
    ///
    /// # Errors
    /// When a file is damaged.
    pub fn chat_template(&self) -> Result<Option<String>> {
        match &self.files {
            Files::Folder(dir) => {
                for name in ["chat_template.jinja", "chat_template.json"] {
                    let path = dir.join(name);
                    if !path.is_file() {
                        continue;
                    }
                    if name.ends_with("json") {
                        let json = read_json(&path)?;
                        return Ok(json.get("chat_template").and_then(Value::as_str).map(str::to_owned));
                    }
                    let text =
                        std::fs::read_to_string(&path).map_err(|source| ModelError::Io { path, source })?;
                    return Ok(Some(text));
                }
                let config = read_json_if_there(&dir.join("tokenizer_config.json"))?;
                Ok(config.as_ref().and_then(|config| match config.get("chat_template")? {
                    Value::String(template) => Some(template.clone()),
                    // Several named templates: the one called `default`.
                    Value::Array(all) => all
                        .iter()
                        .find(|one| one.get("name").and_then(Value::as_str) == Some("default"))
                        .and_then(|one| one.get("template")?.as_str())
                        .map(str::to_owned),
                    _ => None,
                }))
            }
            Files::Gguf(file) => Ok(file
                .metadata
                .get("tokenizer.chat_template")
                .and_then(GgufValue::as_str)
                .map(str::to_owned)),
        }
    }

    /// End tokens and sampling defaults.
    ///
    /// # Errors
    /// When a file is damaged.
    pub fn generation_config(&self) -> Result<GenerationConfig> {
        match &self.files {
            Files::Folder(dir) => {
                let json = read_json_if_there(&dir.join("generation_config.json"))?;
                let config = read_json(&dir.join("config.json"))?;
                let from = |json: &Value| match json.get("eos_token_id") {
                    Some(Value::Number(id)) => id.as_u64().map(|id| vec![id as u32]),
                    Some(Value::Array(ids)) => {
                        Some(ids.iter().filter_map(|id| id.as_u64().map(|id| id as u32)).collect())
                    }
                    _ => None,
                };
                let eos = json.as_ref().and_then(from).or_else(|| from(&config)).unwrap_or_default();
                let float = |field: &str| json.as_ref()?.get(field)?.as_f64().map(|x| x as f32);
                Ok(GenerationConfig {
                    eos,
                    temperature: float("temperature"),
                    top_p: float("top_p"),
                    top_k: json.as_ref().and_then(|json| json.get("top_k")?.as_u64()).map(|k| k as u32),
                })
            }
            Files::Gguf(file) => {
                let id = |key: &str| file.metadata.get(key)?.as_usize().map(|id| id as u32);
                let eos = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
                Ok(GenerationConfig {
                    eos: eos.iter().filter_map(|key| id(key)).collect(),
                    ..Default::default()
                })
            }
        }
    }

    /// Counts and sizes, without loading.
    ///
    /// # Errors
    /// When weight files are missing or damaged.
    pub fn inspect(&self) -> Result<ModelSummary> {
        let (architecture, role, context, vocab) = match &self.config {
            ModelConfig::Decoder(c) => (c.architecture.clone(), "generates", c.max_positions, c.vocab),
            ModelConfig::Encoder(c) => (c.architecture.clone(), "embeds", c.max_tokens, c.vocab),
        };
        let mut dtypes = std::collections::BTreeMap::new();
        let (mut parameters, mut bytes) = (0_u64, 0_u64);
        let mut add = |dtype: String, shape: &[usize], len: usize| {
            *dtypes.entry(dtype).or_insert(0) += 1;
            parameters += shape.iter().product::<usize>() as u64;
            bytes += len as u64;
        };
        match self.tensors()? {
            Tensors::Safetensors(files) => files.each(|dtype, shape, len| add(dtype.to_owned(), shape, len)),
            Tensors::Gguf(file) => {
                for tensor in file.tensors.values() {
                    let dtype = match tensor.kind {
                        GgufType::Blocks(format) => format!("{format:?}"),
                        other => format!("{other:?}"),
                    };
                    add(dtype, &tensor.shape, tensor.range.len());
                }
            }
            Tensors::Dummy => {}
        }
        Ok(ModelSummary {
            path: self.path.clone(),
            architecture,
            role,
            parameters,
            bytes,
            dtypes,
            context,
            vocab,
            chat_template: self.chat_template()?.is_some(),
        })
    }
}

fn vocabulary(file: &GgufFile) -> Result<GgufVocab> {
    let field = |name: &str| file.metadata.get(&format!("tokenizer.ggml.{name}"));
    let texts = |name: &str| -> Vec<String> {
        let all = field(name).and_then(GgufValue::as_array).unwrap_or_default();
        all.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
    };
    let tokens = texts("tokens");
    if tokens.is_empty() {
        return Err(ModelError::MissingField { field: "tokenizer.ggml.tokens".to_owned() });
    }
    let id = |name: &str| field(name).and_then(GgufValue::as_usize).map(|id| id as u32);
    let flag = |name: &str| field(name).and_then(GgufValue::as_usize).map(|value| value != 0);
    Ok(GgufVocab {
        model: field("model").and_then(GgufValue::as_str).unwrap_or("").to_owned(),
        pre: field("pre").and_then(GgufValue::as_str).unwrap_or("default").to_owned(),
        tokens,
        merges: texts("merges"),
        scores: field("scores")
            .and_then(GgufValue::as_array)
            .map(|all| all.iter().map(|x| x.as_f64().unwrap_or(0.0) as f32).collect())
            .unwrap_or_default(),
        token_types: field("token_type")
            .and_then(GgufValue::as_array)
            .map(|all| all.iter().map(|x| x.as_usize().unwrap_or(1) as u32).collect())
            .unwrap_or_default(),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        unk: id("unknown_token_id"),
        add_bos: flag("add_bos_token"),
        add_space_prefix: flag("add_space_prefix"),
    })
}
