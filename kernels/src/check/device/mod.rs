//! The cases of the device kernels, for whatever device runs them: the emulator here, a GPU elsewhere.
//!
//! Every kernel is alone: its inputs are rounded to the element type first, so that what is compared is its own
//! arithmetic. Expected values are those of the crate's plain references.

mod cache;
mod compare;
mod expert_align;
mod expert_stream;
mod expert_tiles;
mod lora;
mod paged_decode;
mod paged_prefill;
mod rms_norm;
mod rope_kv_write;
mod route_topk;
mod sample;

use crate::device::{Launch, Ptr};

/// What a buffer is to the kernels that get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Read, never written.
    Read = 0,
    /// Written before it is read.
    Write = 1,
    /// Holds values that are read and then overwritten.
    ReadWrite = 2,
}

/// Memory and launches.
pub trait Device {
    /// Forgets all buffers.
    fn clear(&mut self);
    /// A buffer.
    fn alloc(&mut self, name: &str, bytes: usize, r#use: Use) -> Ptr;
    /// Fills a buffer.
    fn upload(&mut self, to: Ptr, bytes: &[u8]);
    /// Reads a whole buffer.
    fn download(&mut self, from: Ptr, bytes: &mut [u8]);
    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// What went wrong in it.
    fn launch(&mut self, launch: &Launch) -> Result<(), String>;
}

/// All cases of one source file of `kernels/cuda`.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    /// The file's name without `.cu`.
    pub file: &'static str,
    /// Runs the cases; `small` leaves out the long shapes. Returns how many ran.
    pub run: fn(device: &mut dyn Device, small: bool) -> Result<usize, String>,
}

/// Every kernel's cases.
#[must_use]
pub fn suites() -> [Suite; 10] {
    [
        Suite { file: "rms_norm", run: rms_norm::run },
        Suite { file: "rope_kv_write", run: rope_kv_write::run },
        Suite { file: "paged_decode", run: paged_decode::run },
        Suite { file: "paged_prefill", run: paged_prefill::run },
        Suite { file: "route_topk", run: route_topk::run },
        Suite { file: "expert_align", run: expert_align::run },
        Suite { file: "expert_stream", run: expert_stream::run },
        Suite { file: "expert_tiles", run: expert_tiles::run },
        Suite { file: "lora", run: lora::run },
        Suite { file: "sample", run: sample::run },
    ]
}
