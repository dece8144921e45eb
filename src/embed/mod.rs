//! The embed thread: texts to vectors, pairs to scores.
//!
//! One thread owns the encoder and the reranker; everyone else holds an [`EmbedHandle`]. Tokenizing happens on the
//! caller's side, the thread only computes. Interactive jobs go before bulk ones and wait for at most one forward pass
//! of each interactive job before them, because a pass takes no more than [`EmbedConfig::max_batch_tokens`] tokens and
//! jobs take turns.

mod handle;
mod rerank;
mod worker;

pub use handle::{EmbedError, EmbedHandle, EmbedderInfo, InputKind, Priority};
pub use rerank::{BuildScorer, Pair, PairScorer, RerankerInfo, RerankerParts, Scores};
pub use worker::{EmbedConfig, EmbedThread, PooledEncoder, start, start_with_reranker};
