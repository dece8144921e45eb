//! Retrieve, pack the context, generate, cite.
//!
//! A question becomes an answer in five steps, one file each: [`retrieve`] asks one lake
//! snapshot by meaning and by words, [`fuse`] merges the two rankings, [`dedupe`] drops
//! passages that say the same twice (`rerank` then orders what is left by a cross-encoder,
//! where that was asked for), [`prompt`] packs what fits the model's window, and
//! [`cite`] ties the generated words back to verbatim quotes. [`RagService`] runs them.
//!
//! [`Generator`] is the door from words to the engine (which knows token ids only) and
//! back; the OpenAI endpoints of `server` are built on it as well. It lives here and not
//! in `text`, because `text` imports nothing of ours, and not in `server`, because the
//! command line generates without a server.

pub mod answer;
pub mod cite;
mod constraint;
pub mod dedupe;
mod error;
#[cfg(test)]
mod fixture;
pub mod fuse;
mod generate_stream;
mod generation;
mod generator;
mod grammars;
pub mod marker;
mod place;
pub mod prompt;
mod rerank;
pub mod retrieve;

pub use answer::{
    Answer, AnswerEvent, AnswerStream, RagConfig, RagRequest, RagService, RagTimings, RagUsage,
};
pub use cite::{Citation, Place};
pub use error::{GenerateError, RagError};
pub use generate_stream::GenerateStream;
pub use generation::{
    Choice, Finish, GenerateEvent, GenerateRequest, Generated, GrammarField, Prompt, StopCause, TokenText,
    TopToken,
};
pub use generator::{Generator, GeneratorConfig};
pub use grammars::{GRAMMAR_BYTES, GrammarStats};
pub use prompt::Citing;
pub use retrieve::{Mode, Retrieval, RetrieveRequest, RetrieveTimings};
