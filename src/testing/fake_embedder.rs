//! An embedder without weights: vectors by hashing words.

use serde_json::json;

use crate::embed::{EmbedConfig, EmbedHandle, EmbedThread, EmbedderInfo, PooledEncoder, start};
use crate::text::Tokenizer;

/// Adds a hash of every token to a vector: texts that share words lie close.
struct HashEncoder {
    dim: usize,
}

impl PooledEncoder for HashEncoder {
    fn forward(&mut self, ids: &[u32], cu_seqlens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        out.clear();
        for pair in cu_seqlens.windows(2) {
            let mut vector = vec![1e-3_f32; self.dim];
            for id in &ids[pair[0] as usize..pair[1] as usize] {
                for (at, value) in vector.iter_mut().enumerate() {
                    let mut z = (u64::from(*id) << 32 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                    *value += ((z >> 40) as f32 / (1_u64 << 24) as f32) - 0.5;
                }
            }
            let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            out.extend(vector.iter().map(|x| x / norm));
        }
        Ok(())
    }
}

/// An embed thread whose vectors depend on the letters of a text only.
///
/// # Panics
/// When the thread cannot be started.
#[must_use]
pub fn fake_embedder(dim: usize) -> (EmbedHandle, EmbedThread) {
    let info = EmbedderInfo {
        id: "fake".to_owned(),
        sha256: String::new(),
        dim,
        pooling: "mean".to_owned(),
        query_prefix: String::new(),
        passage_prefix: String::new(),
        max_tokens: 512,
    };
    start(EmbedConfig { max_batch_tokens: 64 }, letters(), info, move || Ok(HashEncoder { dim }))
        .expect("starts")
}

/// A byte-level tokenizer without merges: one token a byte.
fn letters() -> Tokenizer {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut moved = 0x100_u32;
    let vocab: serde_json::Map<String, serde_json::Value> = (0..=255_u8)
        .map(|byte| {
            let code = if printable(byte) {
                u32::from(byte)
            } else {
                moved += 1;
                moved - 1
            };
            (char::from_u32(code).unwrap_or(' ').to_string(), json!(byte))
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), None).expect("a valid tokenizer")
}
