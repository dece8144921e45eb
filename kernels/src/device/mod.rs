//! The device's ops: what to launch, for the driver and for the emulator alike.
//!
//! An op here is a pure function from shapes and addresses to a [`Launch`]: kernel, grid, block, shared bytes and
//! arguments. Whoever owns a device carries launches out. Lengths and counts that change from step to step are read
//! from device memory; the numbers given here are upper bounds, so that a captured graph stays valid.
//!
//! | file | kernel | what |
//! |---|---|---|
//! | [`rms_norm`] | `rms_norm.cu` | residual sum and RMS norm |
//! | [`rope_kv_write`] | `rope_kv_write.cu` | rotary embedding and the write to the paged cache |
//! | [`paged_decode`] | `paged_decode.cu` | split-KV attention of one token a sequence |
//! | [`paged_prefill`] | `paged_prefill.cu` | flash attention of many tokens a sequence |
//! | [`route_topk`] | `route_topk.cu` | softmax, top k, renormalised |
//! | [`expert_align`] | `expert_align.cu` | pairs sorted by expert |
//! | [`expert_stream`] | `expert_stream.cu` | the products of few tokens, and the weighted sum |
//! | [`expert_tiles`] | `expert_tiles.cu` | the products of many tokens |
//! | [`lora`] | `lora.cu` | the shrink and expand of adapters |
//! | [`sample`] | `sample.cu` | penalties, truncation and the draw |

mod launch;

pub mod expert_align;
pub mod expert_stream;
pub mod expert_tiles;
pub mod lora;
pub mod paged_decode;
pub mod paged_prefill;
pub mod rms_norm;
pub mod rope_kv_write;
pub mod route_topk;
pub mod sample;

pub use launch::{Arg, Launch, Ptr};

use crate::DType;
use crate::error::{KernelError, Result};

/// Most shared memory that a launch asks for: two blocks fit on an sm_80 multiprocessor.
const SHARED_LIMIT: usize = 80 * 1024;

/// The name for the element type, of those for bf16, f16 and f32.
fn by_type(op: &'static str, dtype: DType, names: [Option<&'static str>; 3]) -> Result<&'static str> {
    let name = match dtype {
        DType::BF16 => names[0],
        DType::F16 => names[1],
        DType::F32 => names[2],
        DType::U32 | DType::U8 => None,
    };
    name.ok_or(KernelError::DType { op, found: dtype, expected: DType::BF16 })
}

/// A number as the `int` that kernels take.
fn int(op: &'static str, what: &'static str, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| KernelError::Unsupported { op, what, value })
}

/// A number as the extent of a grid.
fn extent(op: &'static str, what: &'static str, value: usize) -> Result<u32> {
    int(op, what, value).map(|value| value as u32)
}
