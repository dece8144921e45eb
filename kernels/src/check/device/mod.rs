//! The cases of the device kernels, for whatever device runs them: the emulator here, a GPU elsewhere.
//!
//! Every kernel is alone: its inputs are rounded to the element type first, so that what is compared is its own
//! arithmetic. Expected values are those of the crate's plain references.

mod cache;
mod compare;
mod dense;
mod embed_rows;
mod encoder_attention;
mod encoder_embed;
mod expert_align;
mod expert_stream;
mod expert_tiles;
mod fill;
mod gather_rows;
mod gelu;
mod kv_copy;
mod layer_norm;
mod lora;
mod paged_decode;
mod paged_prefill;
mod pool;
mod rms_norm;
mod rope_kv_write;
mod route_topk;
mod sample;
mod scan_topk;
mod weights;

use crate::device::Device;
use crate::error::KernelError;

/// A device for one case after another.
pub trait CheckDevice: Device {
    /// Forgets all buffers.
    fn clear(&mut self);

    /// Whether a library may take a launch that is a product in the kernel's place.
    fn has_library(&self) -> bool;
}

/// What a case says of an error.
impl From<KernelError> for String {
    fn from(error: KernelError) -> String {
        error.to_string()
    }
}

/// All cases of one source file of `kernels/cuda`.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    /// The file's name without `.cu`.
    pub file: &'static str,
    /// Runs the cases; `small` leaves out the long shapes. Returns how many ran.
    pub run: fn(device: &mut dyn CheckDevice, small: bool) -> Result<usize, String>,
}

/// Every kernel's cases.
#[must_use]
pub fn suites() -> [Suite; 22] {
    [
        Suite { file: "dense", run: dense::run },
        Suite { file: "dense_tiles", run: dense::run_tiles },
        Suite { file: "embed_rows", run: embed_rows::run },
        Suite { file: "gather_rows", run: gather_rows::run },
        Suite { file: "kv_copy", run: kv_copy::run },
        Suite { file: "rms_norm", run: rms_norm::run },
        Suite { file: "rope_kv_write", run: rope_kv_write::run },
        Suite { file: "paged_decode", run: paged_decode::run },
        Suite { file: "paged_prefill", run: paged_prefill::run },
        Suite { file: "route_topk", run: route_topk::run },
        Suite { file: "expert_align", run: expert_align::run },
        Suite { file: "expert_stream", run: expert_stream::run },
        Suite { file: "expert_tiles", run: expert_tiles::run },
        Suite { file: "encoder_embed", run: encoder_embed::run },
        Suite { file: "layer_norm", run: layer_norm::run },
        Suite { file: "encoder_attention", run: encoder_attention::run },
        Suite { file: "gelu", run: gelu::run },
        Suite { file: "pool", run: pool::run },
        Suite { file: "lora", run: lora::run },
        Suite { file: "fill", run: fill::run },
        Suite { file: "sample", run: sample::run },
        Suite { file: "scan_topk", run: scan_topk::run },
    ]
}
