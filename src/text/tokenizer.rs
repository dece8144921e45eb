//! Texts to token ids and back.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;

use super::detokenizer::Detokenizer;
use super::error::TextError;
use super::vocab::Vocab;

/// How pieces spell their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceStyle {
    /// Each character stands for a byte (GPT-2's table).
    ByteLevel,
    /// `▁` is a space, `<0xNN>` a byte; one space at the start of a text is not part of it if `strip`.
    SentencePiece {
        /// Whether a space was put before the text.
        strip: bool,
    },
    /// `##` continues a word.
    WordPiece,
}

/// A tokenizer; cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    style: PieceStyle,
    special: HashSet<u32>,
    bytes: Vec<Arc<[u8]>>,
    longest: usize,
    bos: Option<String>,
    eos: Option<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens, {:?})", self.inner.bytes.len(), self.inner.style)
    }
}

impl Tokenizer {
    /// From `tokenizer.json`, with `tokenizer_config.json` for the names of special tokens.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    pub fn from_json(json: &[u8], config: Option<&Value>) -> Result<Tokenizer, TextError> {
        let value: Value = serde_json::from_slice(json).map_err(|err| broken(&err))?;
        let named = |field: &str| {
            let token = config?.get(field)?;
            token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
        };
        Tokenizer::build(&value, named("bos_token"), named("eos_token"))
    }

    /// From a bare vocabulary; `eos` is the id of its end token.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`].
    pub fn from_vocab(vocab: &Vocab, bos: Option<u32>, eos: Option<u32>) -> Result<Tokenizer, TextError> {
        let name = |id: Option<u32>| vocab.tokens.get(id? as usize).cloned();
        Tokenizer::build(&vocab.to_json()?, name(bos), name(eos))
    }

    fn build(json: &Value, bos: Option<String>, eos: Option<String>) -> Result<Tokenizer, TextError> {
        let mut tokenizer: tokenizers::Tokenizer =
            serde_json::from_value(json.clone()).map_err(|err| broken(&err))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|err| broken(&*err))?;
        let style = style(json);
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let added: HashSet<u32> = added.keys().copied().collect();
        let size = tokenizer.get_vocab_size(true).max(added.iter().max().map_or(0, |id| *id as usize + 1));
        let bytes: Vec<Arc<[u8]>> = (0..size as u32)
            .map(|id| match tokenizer.id_to_token(id) {
                None => Arc::from([]),
                Some(piece) if added.contains(&id) => Arc::from(piece.as_bytes()),
                Some(piece) => Arc::from(piece_bytes(&piece, style)),
            })
            .collect();
        let longest = bytes.iter().map(|bytes| bytes.len()).max().unwrap_or(0).max(64);
        Ok(Tokenizer { inner: Arc::new(Inner { tokenizer, style, special, bytes, longest, bos, eos }) })
    }

    /// Token ids of `text`; with `add_special` the model's own beginning (and end) tokens.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .inner
            .tokenizer
            .encode_fast(text, add_special)
            .map_err(|err| TextError::Encode { message: err.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Number of tokens of `text`, without special ones; a text that cannot be encoded counts by its bytes.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        self.inner.tokenizer.encode_fast(text, false).map_or(text.len(), |encoding| encoding.get_ids().len())
    }

    /// The text of `ids`; bytes that are no whole characters become U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        if self.inner.style == PieceStyle::WordPiece {
            return self.inner.tokenizer.decode(ids, skip_special).unwrap_or_default();
        }
        let mut detokenizer = Detokenizer::new(self, skip_special);
        let mut text: String = ids.iter().filter_map(|id| detokenizer.push(*id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// The bytes that a token stands for; empty for an unknown id.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.inner.bytes.get(id as usize).map(|bytes| bytes.to_vec()).unwrap_or_default()
    }

    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner.tokenizer
    }

    pub(super) fn bytes_of(&self, id: u32) -> &[u8] {
        self.inner.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    pub(super) fn style(&self) -> PieceStyle {
        self.inner.style
    }

    /// The token's own spelling, as in the vocabulary.
    #[must_use]
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// The id of a token by its spelling.
    #[must_use]
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(piece)
    }

    /// Whether `id` is control and not text.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special.contains(&id)
    }

    /// Most bytes of a text that one token stands for, at least 64: a text of `n` times as many has more than `n` tokens.
    #[must_use]
    pub fn longest_token(&self) -> usize {
        self.inner.longest
    }

    /// All control tokens.
    #[must_use]
    pub fn special_ids(&self) -> Vec<u32> {
        self.inner.special.iter().copied().collect()
    }

    /// Tokens that it knows, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.bytes.len()
    }

    /// The beginning token's spelling.
    #[must_use]
    pub fn bos(&self) -> Option<&str> {
        self.inner.bos.as_deref()
    }

    /// The end token's spelling.
    #[must_use]
    pub fn eos(&self) -> Option<&str> {
        self.inner.eos.as_deref()
    }
}

fn broken(error: &(impl std::fmt::Display + ?Sized)) -> TextError {
    TextError::Tokenizer { message: error.to_string() }
}

fn style(json: &Value) -> PieceStyle {
    let decoder = json.get("decoder").map(Value::to_string).unwrap_or_default();
    let model = json.pointer("/model/type").and_then(Value::as_str).unwrap_or("");
    if decoder.contains("\"ByteLevel\"") {
        PieceStyle::ByteLevel
    } else if model == "WordPiece" || decoder.contains("\"WordPiece\"") {
        PieceStyle::WordPiece
    } else {
        let prefixed = decoder.contains("\"Strip\"") || decoder.contains("\"Metaspace\"");
        PieceStyle::SentencePiece { strip: prefixed && !decoder.contains("\"prepend_scheme\":\"never\"") }
    }
}

fn piece_bytes(piece: &str, style: PieceStyle) -> Vec<u8> {
    match style {
        PieceStyle::ByteLevel => {
            // GPT-2's table: printable bytes are themselves, the others follow from U+0100 on.
            let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let moved: Vec<u8> = (0..=255_u8).filter(|byte| !printable(*byte)).collect();
            let mut out = Vec::with_capacity(piece.len());
            for c in piece.chars() {
                match u32::from(c) {
                    code @ 0..=0xff if printable(code as u8) => out.push(code as u8),
                    code @ 0x100..=0x143 => out.push(moved[(code - 0x100) as usize]),
                    _ => out.extend(c.to_string().bytes()),
                }
            }
            out
        }
        PieceStyle::SentencePiece { .. } => {
            let byte = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            if let Some(byte) = byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                return vec![byte];
            }
            piece.replace('▁', " ").into_bytes()
        }
        PieceStyle::WordPiece => piece.strip_prefix("##").unwrap_or(piece).as_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests;
