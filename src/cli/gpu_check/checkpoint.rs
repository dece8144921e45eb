//! A checkpoint of random weights, as the hub has them: `config.json`, and bf16 safetensors in shards with their index.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tarn_kernels::device::fill;

use crate::model::{DecoderConfig, RopeScaling};

/// Values that all tensors are made of; each begins elsewhere in them.
const VALUES: usize = 16 << 20;
/// Bytes that are read at a time.
const READ: usize = 8 << 20;

/// A tensor's name and shape.
type Tensor = (String, Vec<usize>);

/// What was written.
#[derive(Debug)]
pub(super) struct Checkpoint {
    shards: Vec<PathBuf>,
    /// Of all tensors.
    pub(super) bytes: u64,
}

impl Checkpoint {
    /// Writes the model to the folder `dir`, a shard for each layer and one for what is outside of them.
    ///
    /// # Errors
    /// What the file system says; [`io::ErrorKind::Unsupported`] for what this writes no `config.json` of.
    pub(super) fn write(dir: &Path, config: &DecoderConfig) -> io::Result<Checkpoint> {
        std::fs::write(dir.join("config.json"), describe(config)?.to_string())?;
        let shards: Vec<Vec<Tensor>> =
            std::iter::once(tables(config)).chain((0..config.layers).map(|at| layer(config, at))).collect();
        let name = |at: usize| format!("model-{:05}-of-{:05}.safetensors", at + 1, shards.len());
        let files = shards.iter().enumerate();
        let map: Map<String, Value> = files
            .flat_map(|(at, tensors)| tensors.iter().map(move |(tensor, _)| (tensor.clone(), at)))
            .map(|(tensor, at)| (tensor, json!(name(at))))
            .collect();
        let index = json!({"metadata": {}, "weight_map": map});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
        let len = VALUES.min(2 * shards.iter().flatten().map(|(_, shape)| count(shape)).max().unwrap_or(1));
        let value = |at| bf16::from_f32(fill::value(at, 1) * 0.05);
        let values: Vec<u8> =
            (0..len as u64).into_par_iter().flat_map_iter(|at| value(at).to_le_bytes()).collect();
        let paths: Vec<PathBuf> = (0..shards.len()).map(|at| dir.join(name(at))).collect();
        let written = paths.par_iter().zip(&shards).map(|(path, tensors)| shard(path, tensors, &values));
        let bytes = written.sum::<io::Result<u64>>()?;
        Ok(Checkpoint { shards: paths, bytes })
    }

    /// Reads all of it once, so that it is in the page cache.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn read(&self) -> io::Result<()> {
        self.shards.par_iter().try_for_each(|path| {
            let (mut file, mut bytes) = (File::open(path)?, vec![0; READ]);
            while file.read(&mut bytes)? > 0 {}
            Ok(())
        })
    }
}

/// Writes one file: the length of the header, the header, the tensors one after another. Returns the bytes of these.
fn shard(path: &Path, tensors: &[Tensor], values: &[u8]) -> io::Result<u64> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * count(shape);
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // So that tensors are aligned in the mapped file.
    header.resize(header.len().next_multiple_of(64) + 56, b' ');
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (name, shape) in tensors {
        let bytes = 2 * count(shape);
        if shape.len() == 1 {
            file.write_all(&bf16::ONE.to_le_bytes().repeat(count(shape)))?;
            continue;
        }
        let hash = name.bytes().fold(7_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let first = 2 * (hash % (values.len() / 2));
        let mut all = values[first..]
            .chunks(READ)
            .chain(std::iter::repeat_with(|| values).flat_map(|all| all.chunks(READ)));
        let mut left = bytes;
        while let Some(part) = all.next().filter(|_| left > 0) {
            let part = &part[..part.len().min(left)];
            file.write_all(part)?;
            left -= part.len();
        }
    }
    file.flush()?;
    Ok(end as u64)
}

fn count(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// `config.json`.
fn describe(config: &DecoderConfig) -> io::Result<Value> {
    let unsupported =
        |what: &str| Err(io::Error::new(io::ErrorKind::Unsupported, format!("no {what} is written")));
    let (Some(moe), RopeScaling::Default) = (config.moe, &config.rope.scaling) else {
        return unsupported("model without experts or with scaled positions");
    };
    if config.attention_bias || config.sliding_window.is_some() {
        return unsupported("model with biases or a window");
    }
    Ok(json!({
        "architectures": [config.architecture],
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tied,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
    }))
}

/// What is outside of the layers.
fn tables(config: &DecoderConfig) -> Vec<Tensor> {
    let table = vec![config.vocab, config.hidden];
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), table.clone()),
        ("model.norm.weight".to_owned(), vec![config.hidden]),
    ];
    if !config.tied {
        all.push(("lm_head.weight".to_owned(), table));
    }
    all
}

/// The tensors of a layer.
fn layer(config: &DecoderConfig, at: usize) -> Vec<Tensor> {
    let (hidden, inner) = (config.hidden, config.intermediate);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let experts = config.moe.map_or(0, |moe| moe.experts);
    let mut all = vec![
        (format!("model.layers.{at}.input_layernorm.weight"), vec![hidden]),
        (format!("model.layers.{at}.post_attention_layernorm.weight"), vec![hidden]),
        (format!("model.layers.{at}.block_sparse_moe.gate.weight"), vec![experts, hidden]),
    ];
    for (part, n, k) in [("q", q, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, q)] {
        all.push((format!("model.layers.{at}.self_attn.{part}_proj.weight"), vec![n, k]));
    }
    for expert in 0..experts {
        for (part, n, k) in [("w1", inner, hidden), ("w3", inner, hidden), ("w2", hidden, inner)] {
            let name = format!("model.layers.{at}.block_sparse_moe.experts.{expert}.{part}.weight");
            all.push((name, vec![n, k]));
        }
    }
    all
}
