//! The device's ops: what to launch, for the driver and for the emulator alike.
//!
//! An op here is a pure function from shapes and addresses to a [`Launch`]: kernel, grid, block, shared bytes and
//! arguments. Whoever owns a [`Device`] carries launches out. Lengths and counts that change from step to step are read
//! from device memory; the numbers given here are upper bounds, so that a captured graph stays valid. A launch that is a
//! [`Product`] says so, for devices that have a library for them.
//!
//! | file | kernel | what |
//! |---|---|---|
//! | [`dense`] | `dense.cu`, `dense_tiles.cu` | products with weights, of few and of many tokens |
//! | [`embed_rows`] | `embed_rows.cu` | rows of a table |
//! | [`gather_rows`] | `gather_rows.cu` | some rows, with their residual |
//! | [`rms_norm`] | `rms_norm.cu` | residual sum and RMS norm |
//! | [`rope_kv_write`] | `rope_kv_write.cu` | rotary embedding and the write to the paged cache |
//! | [`kv_copy`] | `kv_copy.cu` | blocks of the cache to other places of it |
//! | [`paged_decode`] | `paged_decode.cu` | split-KV attention of one token a sequence |
//! | [`paged_prefill`] | `paged_prefill.cu` | flash attention of many tokens a sequence |
//! | [`route_topk`] | `route_topk.cu` | softmax, top k, renormalised |
//! | [`expert_align`] | `expert_align.cu` | pairs sorted by expert |
//! | [`expert_stream`] | `expert_stream.cu` | the products of few tokens, and the weighted sum |
//! | [`expert_tiles`] | `expert_tiles.cu` | the products of many tokens |
//! | [`encoder_embed`] | `encoder_embed.cu` | word, position and type rows, summed |
//! | [`layer_norm`] | `layer_norm.cu` | residual sum and layer norm |
//! | [`encoder_attention`] | `encoder_attention.cu` | flash attention both ways over packed sequences |
//! | [`gelu`] | `gelu.cu` | bias and activation |
//! | [`pool`] | `pool.cu` | one vector a sequence |
//! | [`scan_topk`] | `scan_topk.cu` | exact nearest rows of a matrix |
//! | [`lora`] | `lora.cu` | the shrink and expand of adapters |
//! | [`fill`] | `fill.cu` | random weights of real shapes |
//! | [`sample`] | `sample.cu` | penalties, truncation and the draw |

mod launch;
mod memory;
mod product;
mod weights;

pub mod dense;
pub mod embed_rows;
pub mod encoder_attention;
pub mod encoder_embed;
pub mod expert_align;
pub mod expert_stream;
pub mod expert_tiles;
pub mod fill;
pub mod gather_rows;
pub mod gelu;
pub mod kv_copy;
pub mod layer_norm;
pub mod lora;
pub mod paged_decode;
pub mod paged_prefill;
pub mod pool;
pub mod rms_norm;
pub mod rope_kv_write;
pub mod route_topk;
pub mod sample;
pub mod scan_topk;

#[cfg(feature = "cuda")]
pub(crate) use launch::MAX_ARGS;
pub use launch::{Arg, Launch, Ptr};
pub use memory::{Copier, Device, READ, READS, Reading, Use};
pub use product::{Product, ProductShape};
pub use weights::Weights;

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

/// A launch with rows along x and a pack of a row's 16 bytes a thread, of the kernels for bf16, f16 and f32; where rows are
/// no whole packs, an element a thread.
fn packs_of_rows(
    op: &'static str,
    dtype: DType,
    max_rows: usize,
    h: usize,
    wide: [&'static str; 3],
    odd: [&'static str; 3],
) -> Result<Launch> {
    let width = 16 / dtype.size();
    let (names, packs) = if h.is_multiple_of(width) { (wide, h / width) } else { (odd, h) };
    let kernel = by_type(op, dtype, names.map(Some))?;
    let threads = packs.next_multiple_of(32).clamp(32, 256);
    let grid = [extent(op, "rows", max_rows)?, extent(op, "a width", packs.div_ceil(threads))?, 1];
    Ok(Launch::new(kernel, grid, threads, 0))
}

/// A block for each row, whose threads keep it in registers: up to four packs of 16 bytes each (`kPacks`), or of one element
/// where `h` is no whole number of packs.
fn a_block_a_row(
    op: &'static str,
    dtype: DType,
    max_rows: usize,
    h: usize,
    wide: [&'static str; 3],
    odd: [&'static str; 3],
) -> Result<Launch> {
    const PACKS: usize = 4;
    let elements = 16 / dtype.size();
    let (names, width) = if h.is_multiple_of(elements) { (wide, elements) } else { (odd, 1) };
    let packs = h.div_ceil(width);
    // A warp at least; as many as leave a thread one pack, up to the largest block.
    let threads = packs.next_multiple_of(32).clamp(32, 1024);
    if packs > threads * PACKS || h == 0 {
        return Err(KernelError::Unsupported { op, what: "a width", value: h });
    }
    let kernel = by_type(op, dtype, names.map(Some))?;
    Ok(Launch::new(kernel, [extent(op, "rows", max_rows)?, 1, 1], threads, 0))
}
