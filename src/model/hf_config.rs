//! Configurations from a Hugging Face folder's `config.json`.

use std::path::Path;

use serde_json::Value;

use super::config::{
    Activation, DecoderConfig, EncoderConfig, HeadStyle, ModelConfig, MoeConfig, PositionStyle, RopeConfig,
    RopeScaling, ScoreScale, ScoringHead,
};
use super::error::{ModelError, Result};

/// Reads a JSON file.
pub(super) fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|err| ModelError::Json { path: path.to_owned(), message: err.to_string() })
}

/// A JSON file that may be absent.
pub(super) fn read_json_if_there(path: &Path) -> Result<Option<Value>> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}

fn number(json: &Value, field: &str) -> Option<usize> {
    json.get(field)?.as_u64().map(|n| n as usize)
}

fn need(json: &Value, field: &str) -> Result<usize> {
    number(json, field).ok_or_else(|| ModelError::MissingField { field: field.to_owned() })
}

fn float(json: &Value, field: &str) -> Option<f64> {
    json.get(field)?.as_f64()
}

/// The configuration of the folder `dir`, from its `config.json` and sentence-transformers' files.
pub(super) fn read(dir: &Path) -> Result<ModelConfig> {
    let json = read_json(&dir.join("config.json"))?;
    let architecture = json
        .get("architectures")
        .and_then(|all| all.get(0))
        .or_else(|| json.get("model_type"))
        .and_then(Value::as_str)
        .ok_or_else(|| ModelError::MissingField { field: "architectures".to_owned() })?
        .to_owned();
    refuse_quantized(&json)?;
    match architecture.as_str() {
        "LlamaForCausalLM" | "MistralForCausalLM" | "MixtralForCausalLM" | "llama" | "mistral"
        | "mixtral" => decoder(&json, architecture)?.check().map(ModelConfig::Decoder),
        name if name.ends_with("ForTokenClassification") => Err(ModelError::UnsupportedConfig {
            field: "architectures",
            value: architecture,
            expected:
                "it labels tokens; an embedder has no such head (BertModel, XLMRobertaModel), a reranker \
                       scores whole texts (BertForSequenceClassification)"
                    .to_owned(),
        }),
        name if name.starts_with("Bert") || name == "bert" => {
            let head = scoring_head(&json, &architecture, HeadStyle::Pooler)?;
            let config = encoder(dir, &json, architecture, PositionStyle::Absolute)?;
            EncoderConfig { head, ..config }.check().map(ModelConfig::Encoder)
        }
        name if name.starts_with("XLMRoberta")
            || name.starts_with("Roberta")
            || name == "xlm-roberta"
            || name == "roberta" =>
        {
            let style = PositionStyle::Offset(number(&json, "pad_token_id").unwrap_or(1) + 1);
            let head = scoring_head(&json, &architecture, HeadStyle::Classifier)?;
            EncoderConfig { head, ..encoder(dir, &json, architecture, style)? }
                .check()
                .map(ModelConfig::Encoder)
        }
        _ => Err(ModelError::UnknownArchitecture { architecture }),
    }
}

/// The head of a sequence classifier, which must have one label; `None` where there is none.
fn scoring_head(json: &Value, architecture: &str, style: HeadStyle) -> Result<Option<ScoringHead>> {
    if !architecture.ends_with("ForSequenceClassification") {
        return Ok(None);
    }
    // transformers writes no count where it is 2, its default.
    let named = json.get("id2label").and_then(Value::as_object).map(serde_json::Map::len);
    let labels = named.or_else(|| number(json, "num_labels")).unwrap_or(2);
    if labels != 1 {
        return Err(ModelError::UnsupportedConfig {
            field: "id2label",
            value: format!("{labels} labels"),
            expected: "one label: a reranker's single score of how well a passage answers a query".to_owned(),
        });
    }
    let activation = json
        .get("sentence_transformers")
        .and_then(|own| own.get("activation_fn"))
        .or_else(|| json.get("sbert_ce_default_activation_function"))
        .and_then(Value::as_str);
    let scale = match activation.map(|name| name.rsplit('.').next().unwrap_or(name)) {
        None | Some("Sigmoid") => ScoreScale::Sigmoid,
        Some("Identity") => ScoreScale::Logit,
        Some(other) => {
            return Err(ModelError::UnsupportedConfig {
                field: "activation_fn",
                value: other.to_owned(),
                expected: "Sigmoid or Identity".to_owned(),
            });
        }
    };
    Ok(Some(ScoringHead { style, scale }))
}

/// Weights that a quantization method packed are of other shapes, and wrong if they are read as they are.
fn refuse_quantized(json: &Value) -> Result<()> {
    let found = ["quantization_config", "compression_config"]
        .into_iter()
        .find_map(|field| Some((field, json.get(field).filter(|value| !value.is_null())?)));
    let Some((field, value)) = found else { return Ok(()) };
    let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("of an unnamed method");
    Err(ModelError::UnsupportedConfig {
        field,
        value: method.to_owned(),
        expected: "use the model's F32, F16 or BF16 folder, or a GGUF file".to_owned(),
    })
}

fn decoder(json: &Value, architecture: String) -> Result<DecoderConfig> {
    let hidden = need(json, "hidden_size")?;
    let heads = need(json, "num_attention_heads")?;
    if let Some(activation) = json.get("hidden_act").and_then(Value::as_str)
        && activation != "silu"
    {
        return Err(ModelError::UnsupportedConfig {
            field: "hidden_act",
            value: activation.to_owned(),
            expected: "silu".to_owned(),
        });
    }
    if json.get("mlp_bias").and_then(Value::as_bool) == Some(true) {
        return Err(ModelError::UnsupportedConfig {
            field: "mlp_bias",
            value: "true".to_owned(),
            expected: "MLPs without biases".to_owned(),
        });
    }
    let parameters = json.get("rope_parameters");
    let partial = float(json, "partial_rotary_factor")
        .or_else(|| float(parameters?, "partial_rotary_factor"))
        .or_else(|| float(json.get("rope_scaling")?, "partial_rotary_factor"));
    if let Some(partial) = partial.filter(|partial| *partial != 1.0) {
        return Err(ModelError::UnsupportedConfig {
            field: "partial_rotary_factor",
            value: partial.to_string(),
            expected: "rotary positions over the whole head, 1.0".to_owned(),
        });
    }
    let moe = match number(json, "num_local_experts") {
        Some(experts) if architecture.to_lowercase().starts_with("mixtral") => {
            Some(MoeConfig { experts, top_k: need(json, "num_experts_per_tok")? })
        }
        _ => None,
    };
    let trained = need(json, "max_position_embeddings")?;
    let rope = rope(json, trained)?;
    let max_positions = window(&rope.scaling, trained);
    let mixtral_or_mistral = !architecture.to_lowercase().starts_with("llama");
    Ok(DecoderConfig {
        hidden,
        intermediate: need(json, "intermediate_size")?,
        layers: need(json, "num_hidden_layers")?,
        heads,
        kv_heads: number(json, "num_key_value_heads").unwrap_or(heads),
        head_dim: number(json, "head_dim").unwrap_or(hidden / heads.max(1)),
        vocab: need(json, "vocab_size")?,
        max_positions,
        eps: float(json, "rms_norm_eps").unwrap_or(1e-6) as f32,
        rope,
        // transformers' mask takes 0 for no window.
        sliding_window: number(json, "sliding_window").filter(|window| mixtral_or_mistral && *window > 0),
        tied: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        attention_bias: json.get("attention_bias").and_then(Value::as_bool).unwrap_or(false),
        moe,
        architecture,
    })
}

/// Longest context: `max_position_embeddings` is the length before scaling for the variants that do not name one, as
/// vLLM takes it.
fn window(scaling: &RopeScaling, trained: usize) -> usize {
    match scaling {
        RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. } if *factor > 1.0 => {
            (trained as f64 * factor) as usize
        }
        RopeScaling::Yarn { factor, original, .. } => trained.max((*original as f64 * factor) as usize),
        _ => trained,
    }
}

fn rope(json: &Value, max_positions: usize) -> Result<RopeConfig> {
    // transformers 5 moved all of it into `rope_parameters`.
    let parameters = json.get("rope_parameters").filter(|p| !p.is_null());
    let scaling = parameters.or_else(|| json.get("rope_scaling")).filter(|s| !s.is_null());
    let theta = parameters
        .and_then(|p| float(p, "rope_theta"))
        .or_else(|| float(json, "rope_theta"))
        .unwrap_or(10_000.0);
    let Some(scaling) = scaling else { return Ok(RopeConfig { theta, scaling: RopeScaling::Default }) };
    let kind =
        scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
    let factor = || {
        float(scaling, "factor")
            .ok_or_else(|| ModelError::MissingField { field: "rope_scaling.factor".to_owned() })
    };
    let original = number(scaling, "original_max_position_embeddings")
        .or_else(|| number(json, "original_max_position_embeddings"))
        .unwrap_or(max_positions);
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor()? },
        // The base grows only past the original length, which is what max_position_embeddings says.
        "dynamic" => RopeScaling::Dynamic { factor: factor()?, original: max_positions },
        "llama3" => RopeScaling::Llama3 {
            factor: factor()?,
            low: float(scaling, "low_freq_factor").unwrap_or(1.0),
            high: float(scaling, "high_freq_factor").unwrap_or(4.0),
            original,
        },
        "yarn" => RopeScaling::Yarn {
            factor: factor()?,
            original,
            beta_slow: float(scaling, "beta_slow").unwrap_or(1.0),
            beta_fast: float(scaling, "beta_fast").unwrap_or(32.0),
            attention_factor: float(scaling, "attention_factor").or_else(|| {
                let (all, whole) = (float(scaling, "mscale_all_dim")?, float(scaling, "mscale")?);
                let factor = float(scaling, "factor").filter(|factor| *factor > 1.0)?;
                let scale = |m: f64| 0.1 * m * factor.ln() + 1.0;
                (all != 0.0 && whole != 0.0).then(|| scale(whole) / scale(all))
            }),
        },
        other => {
            return Err(ModelError::UnsupportedConfig {
                field: "rope_scaling",
                value: other.to_owned(),
                expected: "default, linear, dynamic, llama3 or yarn".to_owned(),
            });
        }
    };
    Ok(RopeConfig { theta, scaling })
}

fn encoder(
    dir: &Path,
    json: &Value,
    architecture: String,
    positions: PositionStyle,
) -> Result<EncoderConfig> {
    let activation = match json.get("hidden_act").and_then(Value::as_str).unwrap_or("gelu") {
        "gelu" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => {
            return Err(ModelError::UnsupportedConfig {
                field: "hidden_act",
                value: other.to_owned(),
                expected: "gelu, gelu_new or relu".to_owned(),
            });
        }
    };
    if let Some(kind) = json.get("position_embedding_type").and_then(Value::as_str)
        && kind != "absolute"
    {
        return Err(ModelError::UnsupportedConfig {
            field: "position_embedding_type",
            value: kind.to_owned(),
            expected: "absolute".to_owned(),
        });
    }
    let position_rows = need(json, "max_position_embeddings")?;
    let longest = match positions {
        PositionStyle::Absolute => position_rows,
        PositionStyle::Offset(offset) => position_rows.saturating_sub(offset),
    };
    let sentence = read_json_if_there(&dir.join("sentence_bert_config.json"))?;
    let max_tokens = sentence
        .as_ref()
        .and_then(|json| number(json, "max_seq_length"))
        .map_or(longest, |max| max.min(longest));
    let pooling = read_json_if_there(&dir.join("1_Pooling/config.json"))?;
    let on = |field: &str| {
        pooling.as_ref().and_then(|json| json.get(field)).and_then(Value::as_bool) == Some(true)
    };
    let modes = [
        "pooling_mode_cls_token",
        "pooling_mode_mean_tokens",
        "pooling_mode_lasttoken",
        "pooling_mode_max_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens",
    ];
    let modes: Vec<&str> = modes.into_iter().filter(|mode| on(mode)).collect();
    if modes.len() > 1 {
        return Err(ModelError::UnsupportedConfig {
            field: "1_Pooling",
            value: modes.join(" and "),
            expected: "one mode: mean, cls or lasttoken pooling".to_owned(),
        });
    }
    let pooling = if on("pooling_mode_cls_token") {
        tarn_kernels::Pooling::Cls
    } else if on("pooling_mode_lasttoken") {
        tarn_kernels::Pooling::LastToken
    } else if pooling.is_none() || on("pooling_mode_mean_tokens") {
        tarn_kernels::Pooling::Mean
    } else {
        return Err(ModelError::UnsupportedConfig {
            field: "1_Pooling",
            value: "another mode".to_owned(),
            expected: "mean, cls or lasttoken pooling".to_owned(),
        });
    };
    // Without sentence-transformers' list of modules the e5 convention holds: vectors of norm 1.
    let modules = read_json_if_there(&dir.join("modules.json"))?;
    let kinds = modules.as_ref().and_then(Value::as_array).into_iter().flatten();
    let mut kinds = kinds.filter_map(|module| module.get("type")?.as_str()?.rsplit('.').next());
    if let Some(other) = kinds.find(|kind| !matches!(*kind, "Transformer" | "Pooling" | "Normalize")) {
        return Err(ModelError::UnsupportedConfig {
            field: "modules.json",
            value: other.to_owned(),
            expected: "the modules Transformer, Pooling and Normalize".to_owned(),
        });
    }
    let normalize = modules.is_none_or(|modules| modules.to_string().contains("Normalize"));
    Ok(EncoderConfig {
        hidden: need(json, "hidden_size")?,
        intermediate: need(json, "intermediate_size")?,
        layers: need(json, "num_hidden_layers")?,
        heads: need(json, "num_attention_heads")?,
        vocab: need(json, "vocab_size")?,
        position_rows,
        type_rows: number(json, "type_vocab_size").unwrap_or(0),
        eps: float(json, "layer_norm_eps").unwrap_or(1e-12) as f32,
        activation,
        positions,
        max_tokens,
        pooling,
        normalize,
        head: None,
        architecture,
    })
}

#[cfg(test)]
mod tests;
