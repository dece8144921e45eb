//! Untrusted files to chunks in the lake.
//!
//! A file is parsed in a child process ([`worker`]) into a [`document::Document`]: a list of blocks that know where
//! they stand. [`chunk`] cuts blocks to the embedder's size, [`pipeline`] embeds and commits them, [`jobs`] keeps
//! uploads until that is done.

pub mod chunk;
pub mod detect;
pub mod document;
mod error;
mod jobs;
pub mod parse;
mod pipeline;
mod sources;
mod worker;

pub use error::IngestError;
pub use jobs::{FileOutcome, Incoming, JobState, JobStatus, Jobs};
pub use pipeline::{GroupOutcome, IngestOutcome, Pipeline, PipelineConfig, SourceFile};
pub use sources::{files_below, source_uri};
pub use worker::{WorkerLimits, parse_worker_main};
