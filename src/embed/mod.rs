//! The embed thread: texts to vectors.
//!
//! One thread owns the encoder; everyone else holds an [`EmbedHandle`]. Tokenizing happens on the caller's side, the
//! thread only computes. Interactive queries go before bulk passages and wait for at most one forward pass, because a
//! pass takes no more than [`EmbedConfig::max_batch_tokens`] tokens.

mod handle;
mod worker;

pub use handle::{EmbedError, EmbedHandle, EmbedderInfo, InputKind, Priority};
pub use worker::{EmbedConfig, EmbedThread, PooledEncoder, start};
