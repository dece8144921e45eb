//! `adapter_config.json` as PEFT writes it.

use std::io::Read;
use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::super::error::{ModelError, Result};

/// Largest `adapter_config.json`; PEFT's have about a kilobyte.
const MOST_BYTES: u64 = 1 << 20;
/// Largest compiled pattern in bytes: a file of a customer's must not cost more.
const MOST_PATTERN: usize = 1 << 18;
/// Largest compiled patterns of a field together, in bytes.
const MOST_PATTERNS: usize = 64 << 20;

/// What the tensors mean.
#[derive(Debug)]
pub(super) struct Settings {
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    rslora: bool,
}

/// What PEFT can switch on and nothing here computes, and what to do.
const REFUSED: [(&str, &str); 14] = [
    (
        "use_dora",
        "DoRA scales the base weights: merge the adapter into the model, or train it with use_dora=False",
    ),
    ("lora_bias", "train it with lora_bias=False"),
    (
        "modules_to_save",
        "it replaces whole modules: merge it into the model, or train it without modules_to_save",
    ),
    ("trainable_token_indices", "it replaces rows of the embedding: merge it into the model"),
    ("fan_in_fan_out", "it is for transposed (Conv1D) weights, which the models that Tarn runs do not have"),
    ("layer_replication", "it repeats layers of the base model: merge it into the model"),
    ("alora_invocation_tokens", "activated LoRA starts inside a prompt: serve it with its own runtime"),
    ("use_qalora", "QALoRA pools its input: merge it into the model"),
    ("use_bdlora", "block-diagonal LoRA is another product: merge it into the model"),
    ("arrow_config", "Arrow routes between adapters: name one adapter instead"),
    ("kasa_config", "KaSA is another product: merge it into the model"),
    ("velora_config", "VeLoRA is another product: merge it into the model"),
    ("monteclora_config", "MonteCLoRA samples its weights: merge it into the model"),
    ("megatron_config", "it is for Megatron's parallel layers: convert it to PEFT's plain layers"),
];

/// Initialisations that change the base model's weights before training.
const CHANGES_THE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl Settings {
    /// Reads and checks the settings of the folder `dir`.
    pub(super) fn read(dir: &Path) -> Result<Settings> {
        let path = dir.join("adapter_config.json");
        let bytes = read_at_most(&path, MOST_BYTES, "it is no adapter_config.json of PEFT")?;
        let json: Value = serde_json::from_slice(&bytes)
            .map_err(|err| ModelError::Json { path: path.clone(), message: err.to_string() })?;
        Settings::parse(&json).map_err(|message| ModelError::Adapter { path, message })
    }

    fn parse(json: &Value) -> std::result::Result<Settings, String> {
        let kind = json.get("peft_type").and_then(Value::as_str).unwrap_or("(none)");
        if kind != "LORA" {
            return Err(format!("`peft_type` is {kind}: Tarn serves LORA adapters"));
        }
        for (field, what) in REFUSED {
            if json.get(field).is_some_and(is_set) {
                return Err(format!("`{field}` is set, which Tarn does not serve: {what}"));
            }
        }
        if let Some(bias) = json.get("bias").filter(|bias| !bias.is_null() && *bias != "none") {
            return Err(format!("`bias` is {bias}, but Tarn serves no biases: train it with bias=\"none\""));
        }
        if let Some(init) = json.get("init_lora_weights").and_then(Value::as_str)
            && CHANGES_THE_BASE.iter().any(|name| init.to_ascii_lowercase().starts_with(name))
        {
            return Err(format!(
                "`init_lora_weights` is {init}, which changed the base model's weights: save it as a plain LoRA with \
                 save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            ));
        }
        let rank = json.get("r").and_then(Value::as_u64).filter(|rank| (1..=1 << 16).contains(rank));
        let alpha = json.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
        Ok(Settings {
            rank: rank.ok_or("`r` is missing or no rank")? as usize,
            alpha: alpha.ok_or("`lora_alpha` is missing or no number")?,
            rank_pattern: patterns(json, "rank_pattern")?,
            alpha_pattern: patterns(json, "alpha_pattern")?,
            rslora: json.get("use_rslora").is_some_and(is_set),
        })
    }

    /// The rank that the settings give `module` (`model.layers.0.self_attn.q_proj`).
    pub(super) fn rank(&self, module: &str) -> usize {
        first(&self.rank_pattern, module).map_or(self.rank, |rank| rank as usize)
    }

    /// What B of `module` is multiplied with.
    pub(super) fn scale(&self, module: &str, rank: usize) -> f64 {
        let alpha = first(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = rank as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// Whether a switch is on, a list or an object has something in it, or anything else but null is there.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
        _ => true,
    }
}

/// The value of the first pattern that fits.
fn first(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

/// `rank_pattern` and `alpha_pattern`: PEFT matches each key as `(.*\.)?(KEY)$` from the start of a module's name.
fn patterns(json: &Value, field: &str) -> std::result::Result<Vec<(Regex, f64)>, String> {
    let none = Map::new();
    let all = match json.get(field) {
        None | Some(Value::Null) => &none,
        Some(value) => value.as_object().ok_or_else(|| format!("`{field}` is no object"))?,
    };
    let one = |(key, value): (&String, &Value)| {
        let value = value
            .as_f64()
            .filter(|value| value.is_finite() && *value >= 0.0)
            .ok_or_else(|| format!("`{field}` has {value} for `{key}`, which is no number"))?;
        let pattern = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{key})$"))
            .size_limit(MOST_PATTERN.min(MOST_PATTERNS / all.len().max(1)))
            .build()
            .map_err(|err| format!("`{field}` has the key `{key}`, which is no pattern: {err}"))?;
        Ok((pattern, value))
    };
    all.iter().map(one).collect()
}

/// A regular file's bytes, at most `most` of them, whatever happens to the file meanwhile.
pub(super) fn read_at_most(path: &Path, most: u64, otherwise: &str) -> Result<Vec<u8>> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let refuse = |message: String| ModelError::Adapter { path: path.to_owned(), message };
    // Asked before opening: opening a FIFO would wait for its writer.
    let about = std::fs::metadata(path).map_err(io)?;
    if !about.is_file() {
        return Err(refuse("it is no regular file".to_owned()));
    }
    let too_long = |len: u64| refuse(format!("it has {len} bytes, more than {most}: {otherwise}"));
    if about.len() > most {
        return Err(too_long(about.len()));
    }
    let mut bytes = Vec::with_capacity(about.len() as usize);
    std::fs::File::open(path).map_err(io)?.take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > most {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}
