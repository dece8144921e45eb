//! The embed thread: texts to vectors, pairs to scores.
//!
//! One thread owns the encoder and the reranker; everyone else holds an [`EmbedHandle`]. Tokenizing happens on the caller's side, the
//! thread only computes. Interactive queries go before bulk passages and wait for at most one forward pass, because a
//! pass takes no more than [`EmbedConfig::max_batch_tokens`] tokens.

mod handle;
mod rerank;
mod worker;

pub use handle::{EmbedError, EmbedHandle, EmbedderInfo, InputKind, Priority};
pub use rerank::{BuildScorer, Pair, PairScorer, RerankerInfo, RerankerParts, Scores};
pub use worker::{EmbedConfig, EmbedThread, PooledEncoder, start, start_with_reranker};
