//! Fakes for tests: a runner without a model and an embedder without weights.

mod fake_embedder;
mod fake_runner;
mod tiny_adapters;

pub use fake_embedder::{fake_embedder, fake_embedder_with_reranker};
pub use fake_runner::{Draw, FakeRunner, expected_answer, expected_tokens};
pub use tiny_adapters::tiny_adapters;
