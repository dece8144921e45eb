//! Tarn: an LLM runtime, an OpenAI-compatible server and a lakehouse in one process.
//!
//! The map, in reading order:
//!
//! | module | what it is |
//! |---|---|
//! | [`engine`] | the engine thread: scheduler, paged KV cache, sampling; token ids only |
//! | [`model`] | weights and forward passes: one decoder, one encoder |
//! | [`text`] | tokenizers, incremental detokenization, chat templates, text analysis |
//! | [`embed`] | the embed thread: batches of queries and passages to vectors |
//! | [`lake`] | Delta tables and a Lance dataset under one commit and one snapshot |
//! | [`ingest`] | untrusted files to chunks, in child processes |
//! | [`rag`] | retrieve, pack the context, generate, cite |
//! | [`server`] | HTTP: the OpenAI surface, RAG, lake and operations |
//! | [`cli`] | the commands; [`config`] resolves their settings |
//!
//! `docs/ARCHITECTURE.md` says who may import whom; `tests/architecture.rs` enforces it.
#![forbid(unsafe_code)]

#[cfg(feature = "lake")]
pub mod cli;
#[cfg(feature = "lake")]
pub mod config;
pub mod customers;
pub mod embed;
pub mod engine;
#[cfg(feature = "lake")]
pub mod ingest;
#[cfg(feature = "lake")]
pub mod lake;
pub mod model;
#[cfg(feature = "lake")]
pub mod rag;
#[cfg(feature = "lake")]
pub mod server;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
