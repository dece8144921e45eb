//! Words and token ids: tokenizers, incremental detokenization, chat templates, stop texts, analysis for full text.
//!
//! Imports nothing of ours; the engine knows ids only, and this module is what turns them into text and back.

pub mod analyze;
mod chat_template;
mod detokenizer;
mod error;
pub mod language;
mod pair;
mod stop_strings;
mod tokenizer;
mod vocab;

pub use chat_template::ChatTemplate;
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use pair::EncoderInput;
pub use stop_strings::{StopOutcome, StopStrings};
pub use tokenizer::Tokenizer;
pub use vocab::{Vocab, VocabKind};
