//! The one integration binary: each file below is a subject.

mod adapters;
mod architecture;
mod bad_input;
mod constraints;
mod corpora;
mod crash;
#[cfg(feature = "emulator")]
mod device_decoder;
#[cfg(feature = "emulator")]
mod device_encoder;
mod doctor;
mod engines;
mod forward;
mod mixed_adapters;
mod models;
mod reranker;
mod sampling;
mod seeded;
mod speculation;
mod support;
