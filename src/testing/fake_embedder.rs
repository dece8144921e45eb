//! An embedder without weights: vectors by hashing words.

use serde_json::json;

use crate::embed::{
    EmbedConfig, EmbedHandle, EmbedThread, EmbedderInfo, PairScorer, PooledEncoder, RerankerInfo,
    RerankerParts, start, start_with_reranker,
};
use crate::model::ScoreScale;
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
    start(EmbedConfig { max_batch_tokens: 64 }, letters(), info(dim), move || Ok(HashEncoder { dim }))
        .expect("starts")
}

/// As [`fake_embedder`], with a reranker whose logit is the number of the document's letters that the query has.
///
/// # Panics
/// When the thread cannot be started.
#[must_use]
pub fn fake_embedder_with_reranker(dim: usize) -> (EmbedHandle, EmbedThread) {
    let reranker = RerankerParts {
        info: RerankerInfo {
            id: "fake-reranker".to_owned(),
            max_tokens: 64,
            template: Some("{query}|{document}".to_owned()),
            scale: ScoreScale::Logit,
        },
        tokenizer: letters(),
        build: Box::new(|| Ok(Box::new(CommonLetters))),
    };
    let config = EmbedConfig { max_batch_tokens: 64 };
    start_with_reranker(config, letters(), info(dim), move || Ok(HashEncoder { dim }), Some(reranker))
        .expect("starts")
}

/// Counts what a document has of its query's letters.
struct CommonLetters;

impl PairScorer for CommonLetters {
    fn score(
        &mut self,
        ids: &[u32],
        _types: &[u32],
        cu_seqlens: &[u32],
        out: &mut Vec<f32>,
    ) -> Result<(), String> {
        for pair in cu_seqlens.windows(2) {
            let text = &ids[pair[0] as usize..pair[1] as usize];
            let bar = text.iter().position(|id| *id == u32::from(b'|')).ok_or("no query")?;
            let (query, document) = (&text[..bar], &text[bar + 1..]);
            out.push(document.iter().filter(|id| query.contains(id)).count() as f32);
        }
        Ok(())
    }
}

fn info(dim: usize) -> EmbedderInfo {
    EmbedderInfo {
        id: "fake".to_owned(),
        sha256: String::new(),
        dim,
        pooling: "mean".to_owned(),
        query_prefix: String::new(),
        passage_prefix: String::new(),
        max_tokens: 512,
    }
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
