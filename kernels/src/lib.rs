//! Tarn's numeric operations: the only crate with `unsafe` code.
//!
//! | file | what |
//! |---|---|
//! | [`buf`] | [`Buf`], [`View`], [`ViewMut`]: owned aligned memory and typed windows into it |
//! | [`exec`], [`team`] | how an op runs: the plain reference, or SIMD over a [`Team`] of threads |
//! | [`gate`] | lets latency-bound work go before bulk work |
//! | [`pack`], [`blocks`] | weights from any source to panels of 16 rows; the only writer of packed weights |
//! | [`fp8`] | weights as 8-bit floats with a scale a row |
//! | [`mod@matmul`], [`expert_mlp`] | dense and grouped products |
//! | [`lora`] | what adapters add to products |
//! | [`kv`], [`mod@paged_attention`], [`mod@encoder_attention`] | the KV cache and attention over it |
//! | [`device`] | what the kernels of `cuda/` are launched with |
//! | [`gpu`] | which GPU there is, or why none; with the feature `cuda`, `cuda` runs launches on it |
//! | the rest | one op a file |
//!
//! Every op takes an [`Exec`] first, checks shapes and index ranges, and never allocates, synchronises or reads
//! a global. Activations are f32 on the CPU.
//!
//! **Invariance.** Every output element is reduced in one fixed order, whatever the number of rows, the
//! chunking or the number of threads: a sequence alone equals the same sequence in a batch, bit for bit.

#![allow(clippy::needless_range_loop, reason = "one index runs over several arrays of registers at once")]
#![allow(clippy::too_many_arguments, reason = "an op lists its operands")]

pub mod blocks;
pub mod buf;
#[cfg(any(test, feature = "emulator", feature = "cuda"))]
pub mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
pub mod embed_rows;
#[cfg(feature = "emulator")]
pub mod emulated;
pub mod encoder_attention;
pub mod error;
pub mod exec;
pub mod expert_groups;
pub mod expert_mlp;
pub mod fp8;
pub mod gate;
pub mod gelu;
pub mod gpu;
pub mod kv;
pub mod layer_norm;
pub mod logits;
pub mod lora;
pub mod mapped_file;
pub mod matmul;
pub mod pack;
pub mod paged_attention;
pub mod philox;
pub mod pool;
pub mod rms_norm;
pub mod rope;
pub mod route_topk;
pub mod scan_topk;
pub mod team;
pub mod workspace;

pub use buf::{Buf, DType, View, ViewMut, cast};
pub use cpu::level_name;
pub use embed_rows::{EmbeddingTable, embed_rows};
pub use encoder_attention::encoder_attention;
pub use error::{KernelError, Result};
pub use exec::Exec;
pub use expert_groups::ExpertGroups;
pub use expert_mlp::{expert_down, gated_up};
pub use fp8::Fp8Rows;
pub use gate::{Gate, Held};
pub use gelu::{GeluKind, gelu};
pub use kv::{BLOCK, KvCacheBuf, KvDType, KvLayer, KvLayerMut};
pub use layer_norm::layer_norm;
pub use logits::{SOFTMAX_BLOCK, SoftmaxStats, argmax, softmax_stats, softmax_weight};
pub use lora::{AdapterRows, Deltas, Factors, LowRank, NO_ADAPTER, RowsOf, shrink};
pub use mapped_file::MappedFile;
pub use matmul::{matmul, matmul_adapted};
pub use pack::{Packed, PackedExperts, WeightData, WeightFormat};
pub use paged_attention::{SeqSpan, paged_attention};
pub use philox::{philox, philox_uniform};
pub use pool::{Pooling, pool};
pub use rms_norm::rms_norm;
pub use rope::{HeadLayout, RopeTable, rope_kv_write};
pub use route_topk::route_topk;
pub use scan_topk::scan_topk;
pub use team::Team;
pub use workspace::Workspace;
