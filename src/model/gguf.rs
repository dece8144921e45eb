//! GGUF files: header, metadata, tensors. Every length is taken as hostile.
//!
//! candle's reader was not used here because its errors do not name the tensor, and an unknown type fails the whole
//! file without saying which. Block formats are decoded by `kernels::blocks`.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tarn_kernels::MappedFile;
use tarn_kernels::blocks::BlockFormat;

use super::config::{DecoderConfig, MoeConfig, RopeConfig, RopeScaling};
use super::error::{ModelError, Result};
use super::gguf_value::{GgufValue, Reader, Refusal};

/// Element type of a tensor that Tarn reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GgufType {
    F32,
    F16,
    BF16,
    Blocks(BlockFormat),
}

impl GgufType {
    /// Bytes of a row of `k` elements.
    fn row_bytes(self, k: usize) -> Option<usize> {
        match self {
            GgufType::F32 => k.checked_mul(4),
            GgufType::F16 | GgufType::BF16 => k.checked_mul(2),
            GgufType::Blocks(format) => format.row_bytes(k),
        }
    }
}

/// Where a tensor is.
#[derive(Debug, Clone)]
pub(super) struct GgufTensor {
    /// Row-major shape, outermost first.
    pub(super) shape: Vec<usize>,
    pub(super) kind: GgufType,
    pub(super) range: Range<usize>,
}

/// An opened file.
#[derive(Debug)]
pub(super) struct GgufFile {
    pub(super) path: PathBuf,
    pub(super) metadata: HashMap<String, GgufValue>,
    pub(super) tensors: HashMap<String, GgufTensor>,
    map: MappedFile,
}

/// ggml's names of types, for messages.
fn type_name(kind: u32) -> String {
    let known = [
        (6, "Q5_0"),
        (7, "Q5_1"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (13, "Q5_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    known
        .iter()
        .find(|(id, _)| *id == kind)
        .map_or_else(|| format!("number {kind}"), |(_, name)| (*name).to_owned())
}

impl GgufFile {
    pub(super) fn open(path: &Path) -> Result<GgufFile> {
        let map =
            MappedFile::open(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        let (metadata, tensors) =
            parse(map.bytes()).map_err(|message| ModelError::Gguf { path: path.to_owned(), message })?;
        Ok(GgufFile { path: path.to_owned(), metadata, tensors, map })
    }

    /// The bytes of a tensor.
    pub(super) fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        &self.map.bytes()[tensor.range.clone()]
    }

    fn refuse<T>(&self, message: String) -> Result<T> {
        Err(ModelError::Gguf { path: self.path.clone(), message })
    }

    fn architecture(&self) -> &str {
        self.metadata.get("general.architecture").and_then(GgufValue::as_str).unwrap_or("")
    }

    fn number(&self, field: &str) -> Option<usize> {
        self.metadata.get(&format!("{}.{field}", self.architecture()))?.as_usize()
    }

    fn need(&self, field: &str) -> Result<usize> {
        self.number(field)
            .ok_or_else(|| ModelError::MissingField { field: format!("{}.{field}", self.architecture()) })
    }

    fn float(&self, field: &str) -> Option<f64> {
        self.metadata.get(&format!("{}.{field}", self.architecture()))?.as_f64()
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.metadata.get(&format!("{}.{field}", self.architecture()))?.as_str()
    }

    /// The decoder's configuration.
    pub(super) fn config(&self) -> Result<DecoderConfig> {
        let architecture = self.architecture().to_owned();
        if !matches!(architecture.as_str(), "llama" | "mistral" | "mixtral") {
            return Err(ModelError::UnknownArchitecture { architecture: format!("{architecture} (GGUF)") });
        }
        let heads = self.need("attention.head_count")?;
        let hidden = self.need("embedding_length")?;
        let head_dim = self.number("attention.key_length").unwrap_or(hidden / heads.max(1));
        if let Some(rotated) = self.number("rope.dimension_count").filter(|rotated| *rotated != head_dim) {
            return Err(ModelError::UnsupportedConfig {
                field: "rope.dimension_count",
                value: rotated.to_string(),
                expected: format!("rotary positions over the whole head, {head_dim}"),
            });
        }
        let max_positions = self.need("context_length")?;
        let moe = match self.number("expert_count") {
            Some(experts) if experts > 0 => {
                Some(MoeConfig { experts, top_k: self.need("expert_used_count")? })
            }
            _ => None,
        };
        let Some(embedding) = self.tensors.get("token_embd.weight") else {
            return Err(ModelError::MissingTensor {
                name: "token_embd.weight".to_owned(),
                path: self.path.clone(),
            });
        };
        let scaling = self.rope_scaling(max_positions)?;
        let config = DecoderConfig {
            architecture,
            hidden,
            intermediate: self.need("feed_forward_length")?,
            layers: self.need("block_count")?,
            heads,
            kv_heads: self.number("attention.head_count_kv").unwrap_or(heads),
            head_dim,
            vocab: embedding.shape[0],
            max_positions,
            eps: self.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-5) as f32,
            rope: RopeConfig { theta: self.float("rope.freq_base").unwrap_or(10_000.0), scaling },
            sliding_window: self.number("attention.sliding_window").filter(|window| *window > 0),
            tied: !self.tensors.contains_key("output.weight"),
            attention_bias: self.tensors.contains_key("blk.0.attn_q.bias"),
            moe,
        };
        config.check()
    }

    fn rope_scaling(&self, max_positions: usize) -> Result<RopeScaling> {
        if let Some(tensor) = self.tensors.get("rope_freqs.weight") {
            if tensor.kind != GgufType::F32 {
                return self.refuse("tensor `rope_freqs.weight` is not F32".to_owned());
            }
            let floats = self.bytes(tensor).as_chunks::<4>().0;
            return Ok(RopeScaling::Factors(floats.iter().map(|b| f32::from_le_bytes(*b)).collect()));
        }
        let factor = self.float("rope.scaling.factor").or_else(|| self.float("rope.scale_linear"));
        Ok(match (self.text("rope.scaling.type"), factor) {
            (None | Some("linear"), Some(factor)) if factor != 1.0 => RopeScaling::Linear { factor },
            (None | Some("none" | "linear"), _) => RopeScaling::Default,
            (Some("yarn"), factor) => {
                let factor = factor.unwrap_or(1.0);
                // llama.cpp multiplies YaRN's own factor by the file's.
                let own = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
                RopeScaling::Yarn {
                    factor,
                    original: self.number("rope.scaling.original_context_length").unwrap_or(max_positions),
                    beta_slow: self.float("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                    beta_fast: self.float("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                    attention_factor: self.float("rope.scaling.attn_factor").map(|file| file * own),
                }
            }
            (Some(other), _) => {
                return Err(ModelError::UnsupportedConfig {
                    field: "rope.scaling.type",
                    value: other.to_owned(),
                    expected: "none, linear or yarn".to_owned(),
                });
            }
        })
    }
}

type Parsed = (HashMap<String, GgufValue>, HashMap<String, GgufTensor>);

fn parse(bytes: &[u8]) -> std::result::Result<Parsed, Refusal> {
    let mut reader = Reader::new(bytes);
    if bytes.len() < 4 || &bytes[..4] != b"GGUF" {
        return Err("this is not a GGUF file (its first bytes are not `GGUF`)".to_owned());
    }
    reader.u32()?;
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!(
            "GGUF version {version} is not supported (2 and 3 are; big-endian files are not)"
        ));
    }
    let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
    let mut metadata = HashMap::new();
    for _ in 0..value_count {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = reader.value(kind, 0).map_err(|why| format!("metadata `{key}`: {why}"))?;
        metadata.insert(key, value);
    }
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        let name = reader.text()?;
        let rank = reader.u32()?;
        if rank == 0 || rank > 4 {
            return Err(format!("tensor `{name}` has {rank} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            shape.push(usize::try_from(reader.u64()?).map_err(|_| format!("tensor `{name}` is too large"))?);
        }
        shape.reverse();
        infos.push((name, shape, reader.u32()?, reader.u64()?));
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => {
            value.as_usize().filter(|a| a.is_power_of_two() && *a >= 8 && *a <= 1 << 20).ok_or_else(|| {
                format!("`general.alignment` is {value:?}, but must be a power of two from 8 to 1048576")
            })?
        }
    };
    let data = reader.position().next_multiple_of(alignment);
    let mut tensors = HashMap::new();
    for (name, shape, kind, offset) in infos {
        let tensor = place(bytes.len(), data, alignment, &name, shape, kind, offset)?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("tensor `{name}` occurs twice"));
        }
    }
    Ok((metadata, tensors))
}

fn place(
    len: usize,
    data: usize,
    alignment: usize,
    name: &str,
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
) -> std::result::Result<GgufTensor, Refusal> {
    let kind = match kind {
        0 => GgufType::F32,
        1 => GgufType::F16,
        30 => GgufType::BF16,
        2 => GgufType::Blocks(BlockFormat::Q4_0),
        3 => GgufType::Blocks(BlockFormat::Q4_1),
        8 => GgufType::Blocks(BlockFormat::Q8_0),
        12 => GgufType::Blocks(BlockFormat::Q4K),
        14 => GgufType::Blocks(BlockFormat::Q6K),
        other => {
            return Err(format!(
                "tensor `{name}` has type {}, which Tarn does not read; it reads F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K \
                 and Q6_K: use a file quantised to one of these",
                type_name(other)
            ));
        }
    };
    let columns = shape.last().copied().unwrap_or(0);
    let rows = shape[..shape.len() - 1].iter().try_fold(1_usize, |all, extent| all.checked_mul(*extent));
    let bytes = kind
        .row_bytes(columns)
        .ok_or_else(|| format!("tensor `{name}` has rows of {columns}, no whole number of its blocks"))?;
    let size = rows
        .and_then(|rows| rows.checked_mul(bytes))
        .ok_or_else(|| format!("tensor `{name}` is too large"))?;
    if !offset.is_multiple_of(alignment as u64) {
        return Err(format!("tensor `{name}` is at offset {offset}, which is not aligned to {alignment}"));
    }
    let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
    let end = start.and_then(|start| start.checked_add(size)).filter(|end| *end <= len);
    match (start, end) {
        (Some(start), Some(end)) => Ok(GgufTensor { shape, kind, range: start..end }),
        _ => Err(format!("tensor `{name}` reaches past the end of the file: the file is truncated")),
    }
}
