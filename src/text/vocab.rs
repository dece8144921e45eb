//! From a bare vocabulary (GGUF's metadata) to a tokenizer.
//!
//! The vocabulary is written as the `tokenizer.json` that Hugging Face would have, so that there is one way to build
//! a tokenizer.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::error::TextError;

/// Which algorithm a vocabulary is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VocabKind {
    /// Byte-level BPE with merges (`gpt2`).
    ByteLevel,
    /// SentencePiece BPE with scores and byte fallback (`llama`).
    SentencePiece,
}

impl VocabKind {
    /// Whether a text begins with the beginning token where the file does not say, as llama.cpp has it.
    #[must_use]
    pub fn begins(self, pre: &str) -> bool {
        self == VocabKind::SentencePiece || takes_whole_words(pre)
    }
}

/// Llama 3 and Tekken: a word that is a token is that token, whether merges lead to it or not.
fn takes_whole_words(pre: &str) -> bool {
    matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | "tekken")
}

/// A bare vocabulary.
#[derive(Debug, Clone)]
pub struct Vocab {
    /// The algorithm.
    pub kind: VocabKind,
    /// The pre-tokenizer's name, for byte-level BPE.
    pub pre: String,
    /// Pieces by id.
    pub tokens: Vec<String>,
    /// Merges, best first, for byte-level BPE: what stands left and what stands right.
    pub merges: Vec<(String, String)>,
    /// Scores by id, for SentencePiece.
    pub scores: Vec<f32>,
    /// Ids of control tokens, which are matched as they stand and left out of text.
    pub control: Vec<u32>,
    /// Ids of user-defined tokens, which are matched as they stand and belong to the text.
    pub user_defined: Vec<u32>,
    /// The token that begins a sequence, if one is to be added.
    pub bos: Option<u32>,
    /// The unknown token.
    pub unk: Option<u32>,
    /// Whether a space is put before a text, for SentencePiece.
    pub space_prefix: bool,
}

impl Vocab {
    /// The same as `tokenizer.json`.
    pub(super) fn to_json(&self) -> Result<Value, TextError> {
        let ids: HashMap<&str, u32> = self.tokens.iter().map(String::as_str).zip(0..).collect();
        let added: Vec<Value> = self
            .control
            .iter()
            .map(|id| (*id, true))
            .chain(self.user_defined.iter().map(|id| (*id, false)))
            .filter_map(|(id, special)| {
                let content = self.tokens.get(id as usize)?;
                Some(json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special}))
            })
            .collect();
        let post_processor = self.bos.and_then(|id| Some((id, self.tokens.get(id as usize)?))).map(|(id, token)| {
            json!({"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
        });
        let (normalizer, pre_tokenizer, decoder, merges) = match self.kind {
            VocabKind::ByteLevel => {
                let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
                (Value::Null, pre_tokenizer(&self.pre)?, byte_level, self.merges.clone())
            }
            VocabKind::SentencePiece => {
                let mut steps = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
                let mut decode = vec![
                    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                    json!({"type": "ByteFallback"}),
                    json!({"type": "Fuse"}),
                ];
                if self.space_prefix {
                    steps.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
                    decode.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                let normalizer = json!({"type": "Sequence", "normalizers": steps});
                (
                    normalizer,
                    Value::Null,
                    json!({"type": "Sequence", "decoders": decode}),
                    self.merges_by_score(&ids),
                )
            }
        };
        let sentence_piece = self.kind == VocabKind::SentencePiece;
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor,
            "decoder": decoder,
            "model": {
                "type": "BPE", "dropout": null,
                "unk_token": self.unk.filter(|_| sentence_piece).and_then(|id| self.tokens.get(id as usize)),
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": sentence_piece,
                "byte_fallback": sentence_piece, "ignore_merges": !sentence_piece && takes_whole_words(&self.pre), "vocab": ids, "merges": merges,
            },
        }))
    }

    /// SentencePiece merges the pair whose result has the best score; as a merge list that is every split of every
    /// piece into two pieces, by the score of the whole.
    fn merges_by_score(&self, ids: &HashMap<&str, u32>) -> Vec<(String, String)> {
        let mut merges: Vec<(f32, u32, u32, (String, String))> = Vec::new();
        for (id, piece) in self.tokens.iter().enumerate() {
            for (at, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(at);
                if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                    let score = self.scores.get(id).copied().unwrap_or(0.0);
                    merges.push((score, *l, *r, (left.to_owned(), right.to_owned())));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        merges.into_iter().map(|(_, _, _, merge)| merge).collect()
    }
}

/// GPT-2's words.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// GGUF's names of pre-tokenizers.
fn pre_tokenizer(name: &str) -> Result<Value, TextError> {
    let split = |pattern: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
    };
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    Ok(match name {
        "smollm" | "starcoder" | "refact" | "command-r" => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, byte_level]}),
        "gpt-2" | "gpt2" | "phi-2" | "jina-en" => byte_level,
        // What llama.cpp does where a file names none: punctuation apart, digits by three.
        "default" => {
            let isolated = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [isolated(r"[\p{P}\$\+<=>\^~\|]+"), isolated(GPT2), isolated(r"\p{N}+"),
                isolated("[0-9][0-9][0-9]"), {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
        }
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" => split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        "qwen2" => split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        "tekken" => split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        other => {
            return Err(TextError::Tokenizer {
                message: format!(
                    "the pre-tokenizer `{other}` is not known: use the model's Hugging Face folder instead of the GGUF"
                ),
            });
        }
    })
}
