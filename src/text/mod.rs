//! Words and token ids: tokenizers, incremental detokenization, chat templates, stop texts, analysis for full text.
//!
//! Imports nothing of ours; the engine knows ids only, and this module is what turns them into text and back.

pub mod analyze;
mod chat_template;
mod detokenizer;
mod error;
mod grammar;
pub mod language;
mod pair;
mod stop_strings;
mod tokenizer;
mod tool_calls;
mod vocab;

pub use chat_template::{ChatTemplate, cut_after_final};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use grammar::{Grammar, GrammarCompiler, GrammarError, GrammarMatcher};
pub use pair::EncoderInput;
pub use stop_strings::{StopOutcome, StopStrings};
pub use tokenizer::Tokenizer;
pub use tool_calls::{ForcedCalls, Otherwise, ToolCall, ToolCallParser, ToolEvent, ToolFormat, forced_calls};
pub use vocab::{Vocab, VocabKind};
