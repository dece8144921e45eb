//! Tarn's numeric operations on the CPU: packed weights, paged attention, and the vector code under them.
//!
//! An operation is one function: it checks dtypes, shapes and index ranges, then runs the way its [`Exec`] says:
//! `Reference` (plain loops, in the operation's file) or `Simd` (in `cpu`). It never allocates, never reads a global and never
//! panics on its arguments. This crate holds all of Tarn's `unsafe` code; each block names the check that makes it sound.
//!
//! Every output element is reduced in one fixed order, whatever the batch, the chunking or the number of threads: a
//! sequence alone equals the sequence in a batch, bit for bit.
//!
//! Read first: [`pack`] and [`Packed`] (how weights lie in memory), [`matmul`], [`paged_attention`], [`Team`].

mod buf;
pub mod check;
mod cpu;
mod dtype;
mod embed_rows;
mod encoder_attention;
mod error;
mod exec;
mod expert_down;
mod expert_groups;
mod gated_up;
mod gelu;
mod gguf;
mod kv_cache;
mod layer_norm;
mod mapped_file;
mod matmul;
pub mod pack;
mod packed;
mod paged_attention;
mod pool;
mod quantize;
mod rms_norm;
mod rope_kv_write;
mod route_topk;
mod scan_topk;
mod team;
mod view;
mod weight_data;
mod workspace;

pub use buf::Buf;
pub use dtype::DType;
pub use embed_rows::{EmbeddingTable, embed_rows};
pub use encoder_attention::encoder_attention;
pub use error::{KernelError, Result};
pub use exec::Exec;
pub use expert_down::expert_down;
pub use expert_groups::ExpertGroups;
pub use gated_up::{Activation, gated_up};
pub use gelu::{GeluKind, gelu};
pub use kv_cache::{BLOCK, KvCacheBuf, KvLayer, KvLayerMut};
pub use layer_norm::layer_norm;
pub use mapped_file::MappedFile;
pub use matmul::matmul;
pub use packed::{Packed, PackedExperts, WeightFormat};
pub use paged_attention::{SeqSpan, paged_attention};
pub use pool::{Pooling, pool};
pub use rms_norm::rms_norm;
pub use rope_kv_write::{HeadLayout, RopeTable, rope_kv_write};
pub use route_topk::route_topk;
pub use scan_topk::scan_topk;
pub use team::Team;
pub use view::{View, ViewMut};
pub use weight_data::WeightData;
pub use workspace::Workspace;
