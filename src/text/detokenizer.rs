//! Token ids to text, one at a time, byte for byte.
//!
//! A character may be spread over several tokens: bytes are held back until they are whole. Bytes that can never
//! become a character turn into U+FFFD at once.

use super::tokenizer::{PieceStyle, Tokenizer};

/// Turns a sequence of ids into text as they come.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Bytes that are not yet a whole character.
    held: Vec<u8>,
    /// The next piece begins the text.
    at_start: bool,
}

impl Detokenizer {
    /// A fresh text; with `skip_special` control tokens are left out.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Detokenizer {
        Detokenizer { tokenizer: tokenizer.clone(), skip_special, held: Vec::new(), at_start: true }
    }

    /// Text that goes on after other text, as an answer after its prompt: a space at its beginning belongs to it.
    #[must_use]
    pub fn continuing(tokenizer: &Tokenizer, skip_special: bool) -> Detokenizer {
        Detokenizer { at_start: false, ..Detokenizer::new(tokenizer, skip_special) }
    }

    /// The text that `id` makes certain, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return None;
        }
        let mut bytes = self.tokenizer.bytes_of(id);
        // Whatever stands first is the beginning, a control token that is shown included.
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            if self.tokenizer.style() == (PieceStyle::SentencePiece { strip: true }) {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.held.extend_from_slice(bytes);
        let text = self.take_whole();
        (!text.is_empty()).then_some(text)
    }

    /// What is left: bytes that never became a character, as U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }

    fn take_whole(&mut self) -> String {
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(all) => {
                    text.push_str(all);
                    self.held.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, rest) = self.held.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(bad) => {
                            text.push('\u{fffd}');
                            self.held = rest[bad..].to_vec();
                        }
                        None => {
                            self.held = rest.to_vec();
                            return text;
                        }
                    }
                }
            }
        }
    }
}
