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
    /// None: its weights are dummies.
    None,
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
    /// Merges, best first: what stands left and what stands right.
    pub merges: Vec<(String, String)>,
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
    /// Default min-p.
    pub min_p: Option<f32>,
    /// Default repetition penalty.
    pub repetition_penalty: Option<f32>,
}

/// Control tokens that end a turn in GGUF files, which name only one of them as the end.
const TURN_ENDS: [&str; 6] =
    ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|endoftext|>"];

/// What `tarn models inspect` prints.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ModelSummary {
    /// Where it is.
    pub path: PathBuf,
    /// Its architecture.
    pub architecture: String,
    /// `generates`, `embeds` or `scores pairs`.
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

    /// A model without files, whose weights are dummies whatever the options of a load say: for measuring.
    #[must_use]
    pub fn of_dummies(config: ModelConfig) -> ModelSource {
        ModelSource { path: PathBuf::new(), config, files: Files::None }
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
            Files::None => Ok(Tensors::Dummy),
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
            Files::None => {
                let found = "it is of dummies alone".to_owned();
                Err(ModelError::NotAModel { path: self.path.clone(), found })
            }
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
            Files::None => Ok(None),
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
                // Files disagree, and a missed end lets answers run to the window: each counts.
                let mut eos = json.as_ref().map(eos_ids).unwrap_or_default();
                eos.extend(eos_ids(&config));
                eos.extend(tokenizer_eos(dir)?);
                let float = |field: &str| json.as_ref()?.get(field)?.as_f64().map(|x| x as f32);
                Ok(GenerationConfig {
                    eos: distinct(eos),
                    temperature: float("temperature"),
                    top_p: float("top_p"),
                    top_k: json.as_ref().and_then(|json| json.get("top_k")?.as_u64()).map(|k| k as u32),
                    min_p: float("min_p"),
                    repetition_penalty: float("repetition_penalty"),
                })
            }
            Files::Gguf(file) => {
                let id = |key: &str| file.metadata.get(key)?.as_usize().map(|id| id as u32);
                let keys = ["eos_token_id", "eot_token_id", "eom_token_id"];
                let mut eos: Vec<u32> =
                    keys.iter().filter_map(|key| id(&format!("tokenizer.ggml.{key}"))).collect();
                let vocab = vocabulary(file)?;
                let control = vocab.tokens.iter().zip(&vocab.token_types).zip(0..);
                eos.extend(control.filter_map(|((piece, kind), id)| {
                    (*kind == CONTROL && TURN_ENDS.contains(&piece.as_str())).then_some(id)
                }));
                Ok(GenerationConfig { eos: distinct(eos), ..Default::default() })
            }
            Files::None => Ok(GenerationConfig::default()),
        }
    }

    /// Counts and sizes, without loading.
    ///
    /// # Errors
    /// When weight files are missing or damaged.
    pub fn inspect(&self) -> Result<ModelSummary> {
        let (architecture, role, context, vocab) = match &self.config {
            ModelConfig::Decoder(c) => (c.architecture.clone(), "generates", c.max_positions, c.vocab),
            ModelConfig::Encoder(c) => {
                let role = if c.head.is_some() { "scores pairs" } else { "embeds" };
                (c.architecture.clone(), role, c.max_tokens, c.vocab)
            }
        };
        let mut dtypes = std::collections::BTreeMap::new();
        let (mut parameters, mut bytes) = (0_u64, 0_u64);
        let mut add = |dtype: String, shape: &[usize], len: usize| {
            *dtypes.entry(dtype).or_insert(0) += 1;
            parameters += shape.iter().product::<usize>() as u64;
            bytes += len as u64;
        };
        match self.tensors()? {
            Tensors::Safetensors(files) => {
                files.each(|_, dtype, shape, len| add(dtype.to_owned(), shape, len))
            }
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

/// `eos_token_id`: one id or several.
fn eos_ids(json: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match json.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The id of the `eos_token` that a folder's `tokenizer_config.json` names.
fn tokenizer_eos(dir: &Path) -> Result<Option<u32>> {
    let config = read_json_if_there(&dir.join("tokenizer_config.json"))?;
    let eos = config.as_ref().and_then(|config| config.get("eos_token"));
    let Some(eos) = eos.and_then(|eos| eos.as_str().or_else(|| eos.get("content")?.as_str())) else {
        return Ok(None);
    };
    let Some(tokenizer) = read_json_if_there(&dir.join("tokenizer.json"))? else { return Ok(None) };
    let added = tokenizer.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let id = added
        .filter(|token| token.get("content").and_then(Value::as_str) == Some(eos))
        .find_map(|token| token.get("id")?.as_u64())
        .or_else(|| tokenizer.get("model")?.get("vocab")?.get(eos)?.as_u64());
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

/// The ids without repetitions, in order.
fn distinct(ids: Vec<u32>) -> Vec<u32> {
    let mut seen = std::collections::HashSet::new();
    ids.into_iter().filter(|id| seen.insert(*id)).collect()
}

/// GGUF's type of control tokens.
const CONTROL: u32 = 3;

/// A merge `left right`; the left piece has at least one character, which may be a blank.
fn merge(text: &str) -> Option<(String, String)> {
    let first = text.chars().next()?.len_utf8();
    let at = first + text[first..].find(' ')?;
    Some((text[..at].to_owned(), text[at + 1..].to_owned()))
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
        merges: texts("merges").iter().filter_map(|text| merge(text)).collect(),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_file_that_names_an_end_counts_and_so_do_the_sampling_defaults() {
        let dir = tempfile::tempdir().expect("dir");
        let write = |name: &str, json: Value| {
            std::fs::write(dir.path().join(name), json.to_string()).expect("writes");
        };
        write(
            "config.json",
            json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 64,
            "eos_token_id": 5}),
        );
        write(
            "generation_config.json",
            json!({"eos_token_id": [2, 5], "min_p": 0.1, "repetition_penalty": 1.25}),
        );
        write("tokenizer_config.json", json!({"eos_token": {"content": "<|im_end|>"}}));
        write(
            "tokenizer.json",
            json!({"added_tokens": [{"id": 9, "content": "<|im_end|>"}], "model": {"vocab": {}}}),
        );
        let found = ModelSource::open(dir.path()).expect("opens").generation_config().expect("reads");
        assert_eq!(found.eos, [2, 5, 9]);
        assert_eq!((found.min_p, found.repetition_penalty), (Some(0.1), Some(1.25)));
    }

    #[test]
    fn merges_are_cut_at_the_blank_between_the_pieces() {
        assert_eq!(merge("Ġ t"), Some(("Ġ".to_owned(), "t".to_owned())));
        assert_eq!(merge("  b"), Some((" ".to_owned(), "b".to_owned())));
        assert_eq!(merge("ab"), None);
    }

    /// A GGUF file of one token table without weights.
    fn gguf(extra: &[(&str, GgufField)]) -> Vec<u8> {
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        let mut fields: Vec<(&str, GgufField)> = vec![
            ("general.architecture", GgufField::Text("llama")),
            ("llama.context_length", GgufField::U32(64)),
            ("llama.embedding_length", GgufField::U32(64)),
            ("llama.feed_forward_length", GgufField::U32(96)),
            ("llama.block_count", GgufField::U32(1)),
            ("llama.attention.head_count", GgufField::U32(4)),
        ];
        fields.extend_from_slice(extra);
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(1_u64.to_le_bytes());
        out.extend((fields.len() as u64).to_le_bytes());
        for (key, field) in fields {
            text(&mut out, key);
            match field {
                GgufField::U32(n) => {
                    out.extend(4_u32.to_le_bytes());
                    out.extend(n.to_le_bytes());
                }
                GgufField::F32(x) => {
                    out.extend(6_u32.to_le_bytes());
                    out.extend(x.to_le_bytes());
                }
                GgufField::Text(value) => {
                    out.extend(8_u32.to_le_bytes());
                    text(&mut out, value);
                }
                GgufField::Texts(all) => {
                    out.extend(9_u32.to_le_bytes());
                    out.extend(8_u32.to_le_bytes());
                    out.extend((all.len() as u64).to_le_bytes());
                    all.iter().for_each(|one| text(&mut out, one));
                }
                GgufField::Types(all) => {
                    out.extend(9_u32.to_le_bytes());
                    out.extend(5_u32.to_le_bytes());
                    out.extend((all.len() as u64).to_le_bytes());
                    all.iter().for_each(|one| out.extend(one.to_le_bytes()));
                }
            }
        }
        text(&mut out, "token_embd.weight");
        out.extend(2_u32.to_le_bytes());
        out.extend(64_u64.to_le_bytes());
        out.extend(4_u64.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend(0_u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32) + 64 * 4 * 4, 0);
        out
    }

    #[derive(Clone, Copy)]
    enum GgufField {
        U32(u32),
        F32(f32),
        Text(&'static str),
        Texts(&'static [&'static str]),
        Types(&'static [i32]),
    }

    fn open(extra: &[(&str, GgufField)]) -> Result<ModelSource> {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, gguf(extra)).expect("writes");
        ModelSource::open(&path)
    }

    #[test]
    fn a_gguf_ends_at_every_control_token_that_ends_a_turn() {
        let source = open(&[
            ("tokenizer.ggml.tokens", GgufField::Texts(&["</s>", "<|im_end|>", "<|eot_id|>", "<|end|>"])),
            ("tokenizer.ggml.token_type", GgufField::Types(&[3, 3, 3, 1])),
            ("tokenizer.ggml.eos_token_id", GgufField::U32(0)),
        ]);
        assert_eq!(source.expect("opens").generation_config().expect("reads").eos, [0, 1, 2]);
    }

    #[test]
    fn a_gguf_with_partly_rotated_heads_is_refused_and_yarn_factors_multiply() {
        let error = open(&[("llama.rope.dimension_count", GgufField::U32(8))]).expect_err("refused");
        assert!(error.to_string().contains("rope.dimension_count"), "{error}");
        let source = open(&[
            ("llama.rope.dimension_count", GgufField::U32(16)),
            ("llama.attention.sliding_window", GgufField::U32(0)),
            ("llama.rope.scaling.type", GgufField::Text("yarn")),
            ("llama.rope.scaling.factor", GgufField::F32(4.0)),
            ("llama.rope.scaling.attn_factor", GgufField::F32(0.5)),
        ])
        .expect("opens");
        let ModelConfig::Decoder(config) = source.config() else { panic!("a decoder") };
        assert_eq!(config.sliding_window, None);
        let super::super::config::RopeScaling::Yarn { attention_factor: Some(scale), .. } =
            config.rope.scaling
        else {
            panic!("yarn: {:?}", config.rope)
        };
        assert!((scale - 0.5 * (0.1 * 4.0_f64.ln() + 1.0)).abs() < 1e-9, "{scale}");
    }
}
