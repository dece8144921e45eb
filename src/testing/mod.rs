//! Fakes for tests: a runner without a model and an embedder without weights.

mod fake_embedder;
mod fake_runner;

pub use fake_embedder::{fake_embedder, fake_embedder_with_reranker};
pub use fake_runner::{FakeRunner, expected_tokens};
