//! What a model will take of memory, from its configuration and its files' headers, before anything is loaded.

use std::collections::HashMap;

use tarn_kernels::blocks::BlockFormat;
use tarn_kernels::{AdapterRows, WeightFormat};

use super::config::{DecoderConfig, EncoderConfig, ModelConfig};
use super::error::Result;
use super::gguf::GgufType;
use super::source::ModelSource;
use super::weights::{DtypeChoice, Tensors};

/// Bytes of a model in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Embedding tables and packed matrices.
    pub matrices: usize,
    /// Norms, biases, routers, heads of one row: kept as f32.
    pub small: usize,
    /// Activations, logits and scratch.
    pub workspace: usize,
}

/// Products that an adapter updates at once: q, k and v of a token; gate and up of a (token, expert) pair.
pub(super) const ADAPTED_AT_ONCE: [usize; 2] = [3, 2];

/// Rows of a panel of packed weights.
const LANES: usize = 16;

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Float(WeightFormat),
    Blocks(BlockFormat),
}

struct Header {
    stored: Stored,
    shape: Vec<usize>,
    bytes: usize,
}

impl Stored {
    fn of_safetensors(dtype: &str) -> Option<Stored> {
        Some(Stored::Float(match dtype {
            "F32" => WeightFormat::F32,
            "F16" => WeightFormat::F16,
            "BF16" => WeightFormat::BF16,
            // Position ids and the like, which nobody loads.
            _ => return None,
        }))
    }

    fn of_gguf(kind: GgufType) -> Stored {
        match kind {
            GgufType::F32 => Stored::Float(WeightFormat::F32),
            GgufType::F16 => Stored::Float(WeightFormat::F16),
            GgufType::BF16 => Stored::Float(WeightFormat::BF16),
            GgufType::Blocks(format) => Stored::Blocks(format),
        }
    }

    /// What packing makes of it, with the weights of a group.
    fn packed(self, target: Option<WeightFormat>) -> (WeightFormat, usize) {
        match (target, self) {
            (Some(format), _) | (None, Stored::Float(format)) => (format, 1),
            (None, Stored::Blocks(format @ (BlockFormat::Q8_0 | BlockFormat::Q6K))) => {
                (WeightFormat::Int8, format.group())
            }
            (None, Stored::Blocks(format)) => (WeightFormat::Int4, format.group()),
        }
    }
}

/// Bytes of a panel of 16 rows of `k` weights.
fn panel_bytes((format, group): (WeightFormat, usize), k: usize) -> usize {
    match format {
        WeightFormat::F32 => k * LANES * 4,
        WeightFormat::F16 | WeightFormat::BF16 => k * LANES * 2,
        WeightFormat::Fp8 => k * LANES + LANES * 4,
        WeightFormat::Int8 => k * LANES + k / group * LANES * 4,
        WeightFormat::Int4 => k * LANES / 2 + k / group * LANES * 8,
    }
}

/// Matrices of a tensor `[.., n, k]`, `n` and `k`.
fn matrices(shape: &[usize]) -> (usize, usize, usize) {
    match shape {
        [parts @ .., n, k] => (parts.iter().product(), *n, *k),
        _ => (0, 0, 0),
    }
}

impl ModelSource {
    /// What loading takes with weights of type `dtype` (with random ones of the right shapes where `dummy`) for passes
    /// of up to `tokens` tokens and `rows` rows of logits.
    ///
    /// # Errors
    /// When weight files are missing or damaged.
    pub fn footprint(
        &self,
        dtype: DtypeChoice,
        dummy: bool,
        tokens: usize,
        rows: usize,
    ) -> Result<Footprint> {
        let headers = match (self.config(), dummy) {
            (ModelConfig::Decoder(config), true) => dummy_headers(config),
            _ => self.headers()?,
        };
        let (weights, workspace) = match self.config() {
            ModelConfig::Decoder(config) => {
                (decoder_weights(config, &headers, dtype), decoder_workspace(config, tokens, rows))
            }
            ModelConfig::Encoder(config) => {
                let tokens = tokens.max(config.max_tokens);
                (encoder_weights(config, &headers, dtype.target()), encoder_workspace(config, tokens))
            }
        };
        Ok(Footprint { workspace, ..weights })
    }

    fn headers(&self) -> Result<HashMap<String, Header>> {
        let mut headers = HashMap::new();
        match self.tensors()? {
            Tensors::Safetensors(files) => files.each(|name, dtype, shape, bytes| {
                if let Some(stored) = Stored::of_safetensors(dtype) {
                    headers.insert(name.to_owned(), Header { stored, shape: shape.to_vec(), bytes });
                }
            }),
            Tensors::Gguf(file) => {
                for (name, tensor) in &file.tensors {
                    let (stored, bytes) = (Stored::of_gguf(tensor.kind), tensor.range.len());
                    headers.insert(name.clone(), Header { stored, shape: tensor.shape.clone(), bytes });
                }
            }
            Tensors::Dummy => {}
        }
        Ok(headers)
    }
}

/// What a decoder of this configuration would have, all of it bfloat16, which is what dummy weights are.
fn dummy_headers(config: &DecoderConfig) -> HashMap<String, Header> {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut headers = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let (stored, bytes) = (Stored::Float(WeightFormat::BF16), 2 * shape.iter().product::<usize>());
        headers.insert(name, Header { stored, shape: shape.to_vec(), bytes });
    };
    add("model.embed_tokens.weight".to_owned(), &[config.vocab, hidden]);
    add("lm_head.weight".to_owned(), &[config.vocab, hidden]);
    for at in 0..config.layers {
        let layer = format!("model.layers.{at}");
        for (part, n, k) in [("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)] {
            add(format!("{layer}.self_attn.{part}_proj.weight"), &[n, k]);
        }
        if let Some(moe) = config.moe {
            add(format!("{layer}.block_sparse_moe.gate.weight"), &[moe.experts, hidden]);
        }
        for expert in 0..config.moe.map_or(1, |moe| moe.experts) {
            for (part, n, k) in [("w1", inner, hidden), ("w3", inner, hidden), ("w2", hidden, inner)] {
                add(format!("{layer}.experts.{expert}.{part}.weight"), &[n, k]);
            }
        }
        add(format!("{layer}.norms"), &[2 * hidden]);
    }
    headers
}

/// The other half of a gated pair: what is packed with the tensor `name`.
fn gated_partner(name: &str) -> Option<String> {
    let pairs = [
        ("gate_proj.", "up_proj."),
        (".w1.", ".w3."),
        ("ffn_gate.", "ffn_up."),
        ("ffn_gate_exps.", "ffn_up_exps."),
    ];
    pairs.iter().find_map(|(gate, up)| match (name.contains(gate), name.contains(up)) {
        (true, _) => Some(name.replace(gate, up)),
        (_, true) => Some(name.replace(up, gate)),
        _ => None,
    })
}

fn decoder_weights(
    config: &DecoderConfig,
    headers: &HashMap<String, Header>,
    dtype: DtypeChoice,
) -> Footprint {
    let mut total = Footprint::default();
    let (target, projections) = (dtype.target(), dtype.projections());
    for (name, header) in headers {
        let (count, n, k) = matrices(&header.shape);
        let packed = |format| count * n.div_ceil(LANES) * panel_bytes(format, k);
        let natural = header.stored.packed(projections);
        match name.as_str() {
            _ if header.shape.len() < 2 => total.small += 4 * header.shape.iter().product::<usize>(),
            "model.embed_tokens.weight" | "token_embd.weight" => {
                let head = header.stored.packed(target);
                total.matrices += header.bytes + if config.tied { packed(head) } else { 0 };
            }
            "lm_head.weight" | "output.weight" if config.tied => {}
            "lm_head.weight" | "output.weight" => total.matrices += packed(header.stored.packed(target)),
            router if router.contains("block_sparse_moe.gate.") || router.contains("ffn_gate_inp.") => {
                total.small += packed((target.unwrap_or(WeightFormat::F32), 1));
            }
            name => match gated_partner(name) {
                Some(partner) => {
                    // Unlike halves meet as IEEE halves.
                    let unlike =
                        headers.get(&partner).is_some_and(|p| p.stored.packed(projections) != natural);
                    let format = if unlike { (WeightFormat::F16, 1) } else { natural };
                    // A panel has 8 rows of each.
                    total.matrices += count * n.div_ceil(LANES / 2) * panel_bytes(format, k) / 2;
                }
                None => total.matrices += packed(natural),
            },
        }
    }
    total
}

fn encoder_weights(
    config: &EncoderConfig,
    headers: &HashMap<String, Header>,
    target: Option<WeightFormat>,
) -> Footprint {
    let mut total = Footprint::default();
    for (name, header) in headers {
        let name = name.strip_prefix("bert.").or_else(|| name.strip_prefix("roberta.")).unwrap_or(name);
        let head = name.starts_with("pooler.") || name.starts_with("classifier.");
        if !(name.starts_with("embeddings.") || name.starts_with("encoder.") || head && config.head.is_some())
        {
            continue;
        }
        let (count, n, k) = matrices(&header.shape);
        if name.ends_with("_embeddings.weight") {
            total.matrices += header.bytes;
        } else if header.shape.len() < 2 || head && n == 1 {
            total.small += 4 * header.shape.iter().product::<usize>();
        } else {
            total.matrices += count * n.div_ceil(LANES) * panel_bytes(header.stored.packed(target), k);
        }
    }
    total
}

/// Codes, scales and sums of quantised activations: [`tarn_kernels::Workspace`].
fn quantized_bytes(rows: usize, k: usize) -> usize {
    let k = k.next_multiple_of(32);
    rows * k + 4 * (rows * k / 32) + 4 * (rows * k / 16)
}

fn decoder_workspace(config: &DecoderConfig, tokens: usize, rows: usize) -> usize {
    let (hidden, inner, q) = (config.hidden, config.intermediate, config.heads * config.head_dim);
    let (experts, top_k) = config.moe.map_or((1, 1), |moe| (moe.experts, moe.top_k));
    let pairs = tokens * top_k;
    let qkv = q + 2 * config.kv_heads * config.head_dim;
    let scratch = if config.moe.is_some() { pairs * hidden } else { 0 };
    let floats = tokens * (2 * hidden + qkv + q + experts)
        + tokens.max(rows) * hidden
        + pairs * inner
        + scratch
        + rows * (hidden + config.vocab)
        + config.max_positions * config.head_dim;
    // Experts and weights of pairs, and the pairs sorted by expert.
    let routing = 8 * pairs + 8 * pairs + 4 * (experts + 1);
    4 * floats + routing + quantized_bytes(pairs.max(rows), hidden.max(inner).max(q))
}

fn encoder_workspace(config: &EncoderConfig, tokens: usize) -> usize {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let attention = (tokens.div_ceil(16) + tokens.min(1024) + 1) * 16 * 4 * hidden;
    let head = if config.head.is_some() { 2 * hidden * tokens } else { 0 };
    let floats = tokens * (3 * hidden + 3 * hidden + inner) + attention + head;
    4 * floats + 8 * tokens + quantized_bytes(tokens, hidden.max(inner))
}

impl DecoderConfig {
    /// Most bytes of an adapter of rank up to `rank` on every projection: f32, each A in panels of 16 rows, each B in
    /// panels of 16 columns.
    #[must_use]
    pub fn adapter_bytes(&self, rank: usize) -> usize {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let padded = |n: usize| n.next_multiple_of(LANES);
        let product = |rows_of_a: usize, k: usize, n: usize| rows_of_a * k + rank * n;
        let attention = product(3 * padded(rank), hidden, padded(q) + 2 * padded(kv))
            + product(padded(rank), q, padded(hidden));
        // Where gate and up have different ranks, zero rows follow the shorter one's.
        let expert = product(2 * padded(rank) + LANES, hidden, 2 * padded(inner))
            + product(padded(rank), inner, padded(hidden));
        let mlp = self
            .moe
            .map_or(expert, |moe| product(padded(rank), hidden, padded(moe.experts)) + moe.experts * expert);
        4 * self.layers * (attention + mlp)
    }

    /// Bytes of scratch for adapters of rank up to `max_rank` in passes of up to `tokens` tokens; 0 without.
    #[must_use]
    pub fn adapter_scratch_bytes(&self, tokens: usize, max_rank: usize) -> usize {
        if max_rank == 0 {
            return 0;
        }
        let pairs = self.moe.map_or(0, |moe| tokens * moe.top_k);
        let [token, pair] = ADAPTED_AT_ONCE.map(|products| AdapterRows::row_bytes(products * max_rank));
        tokens * token + pairs * pair
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partners_of_gated_projections_are_found_in_every_spelling() {
        for (name, partner) in [
            ("model.layers.0.mlp.gate_proj.weight", Some("model.layers.0.mlp.up_proj.weight")),
            ("m.experts.3.w3.weight", Some("m.experts.3.w1.weight")),
            ("blk.1.ffn_up_exps.weight", Some("blk.1.ffn_gate_exps.weight")),
            ("blk.1.ffn_gate.7.weight", Some("blk.1.ffn_up.7.weight")),
            ("model.layers.0.mlp.down_proj.weight", None),
            ("blk.0.ffn_gate_inp.weight", None),
        ] {
            assert_eq!(gated_partner(name).as_deref(), partner, "{name}");
        }
    }
}
