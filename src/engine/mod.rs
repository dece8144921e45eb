//! The engine thread: continuous batching over a paged KV cache. Token ids only, no words.
//!
//! One thread owns the runner (and through it the weights and the KV cache) and the [`Scheduler`](scheduler); there
//! are no locks inside. Everyone else holds an [`EngineHandle`]. A step is
//! `schedule() → StepPlan → launch → collect → StepOutput → update() → events` ([`engine_loop`]).
//!
//! | file | what |
//! |---|---|
//! | `request`, `handle` | what goes in and comes out |
//! | `adapters` | LoRA adapters by name, in memory and on disk |
//! | `block_pool`, `sequence`, `queues`, `scheduler`, `drafts` | which tokens are computed next, and where their keys go |
//! | `step`, `runner`, `device_runner` | carrying a step out |
//! | `draws`, `sampler`, `constraint` | from logits to tokens |
//!
//! Invariant: every admitted request gets exactly one terminal event ([`Event::Done`] or [`Event::Failed`]).

mod adapters;
mod block_pool;
mod constraint;
mod device_runner;
mod drafts;
mod draws;
mod engine_loop;
mod handle;
mod queues;
mod request;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod stats;
mod step;
mod token_counts;

pub use adapters::{AdapterError, AdapterInfo, AdapterLease, Adapters};
pub use block_pool::{BlockHash, BlockPool, BlockState};
pub use constraint::{BitMask, Constraint, Grammar};
pub use device_runner::DeviceRunner;
pub use drafts::SpeculationConfig;
pub use engine_loop::{EngineConfig, EngineThread, start};
pub use handle::{EngineHandle, EngineLimits, EventStream, SubmitError};
pub use request::{
    EngineError, Event, FinishReason, Priority, Request, RequestId, SampleError, SampledToken,
    SamplingParams, TokenLogprobs, Usage,
};
pub use runner::{ModelRunner, RunnerError, StepRunner};
pub use sampler::Sampler;
pub use stats::EngineStats;
pub use step::{Banned, InputIds, SampleSpec, StepOutput, StepPlan, Ticket};
pub use token_counts::TokenCounts;
