//! A model's tokens, as llguidance wants them.

use std::sync::Arc;

use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::text::tokenizer::{PieceStyle, Tokenizer};

struct Tokens {
    tokenizer: Tokenizer,
    trie: TokTrie,
    /// Whether the tokenizer's own way to spell a text in the middle of another is known.
    canonical: bool,
}

/// The tokens of `tokenizer` for a model of `vocab_size` logits. Control tokens match no text.
pub(super) fn token_env(tokenizer: &Tokenizer, vocab_size: usize, eos: &[u32]) -> TokEnv {
    let words: Vec<Vec<u8>> = (0..vocab_size as u32).map(|id| word(tokenizer, id)).collect();
    let eos: Vec<u32> = eos.iter().copied().filter(|id| (*id as usize) < vocab_size).collect();
    let info = TokRxInfo::new(vocab_size as u32, eos.first().copied().unwrap_or(toktrie::INVALID_TOKEN));
    let mut trie = TokTrie::from(&info, &words);
    if !eos.is_empty() {
        trie = trie.with_eos_tokens(&eos);
    }
    let canonical = tokenizer.style() == PieceStyle::ByteLevel;
    Arc::new(Tokens { tokenizer: tokenizer.clone(), trie, canonical })
}

/// What a token stands for: control tokens are marked by a byte that no text has.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.bytes_of(id);
    if bytes.is_empty() {
        return Vec::new();
    }
    if tokenizer.is_special(id) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
    }
    // A byte of no UTF-8 text, and the one that marks control tokens.
    if bytes[0] == TokTrie::SPECIAL_TOKEN_MARKER { Vec::new() } else { bytes.to_vec() }
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        if !self.canonical {
            return self.trie.greedy_tokenize(bytes);
        }
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            let ids = self.tokenizer.encode(text, false).unwrap_or_default();
            // A text that spells a control token is still text.
            let text_only = !ids.is_empty()
                && ids
                    .iter()
                    .all(|id| !self.tokenizer.is_special(*id) && (*id as usize) < self.trie.vocab_size());
            if text_only { ids } else { self.trie.greedy_tokenize(text.as_bytes()) }
        })
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}
