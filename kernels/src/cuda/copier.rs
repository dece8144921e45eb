//! A device's memory, and copies to it on a stream of their own.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Context, Memory, Stream};
use super::staging::Staging;
use crate::device::{Copier, Ptr};
use crate::error::{KernelError, Result};
use crate::gpu::Priority;

/// A device's buffers by address; they live as long as one who knows them.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(pub(super) HashMap<u64, Arc<Memory>>);

impl Buffers {
    /// The driver's address of `len` bytes of a buffer, from `offset` on.
    pub(super) fn place(&self, buffer: Ptr, offset: usize, len: usize) -> Result<sys::CUdeviceptr> {
        let what = match self.0.get(&buffer.0) {
            Some(memory) if offset.checked_add(len).is_some_and(|end| end <= memory.bytes) => {
                return Ok(memory.at + offset as u64);
            }
            Some(memory) => format!("a copy of {len} bytes at {offset} of a buffer of {}", memory.bytes),
            None => "a copy to or from an address that is no buffer".to_owned(),
        };
        Err(KernelError::Device { what })
    }
}

/// A stream for copies, with pinned memory of its own.
#[derive(Debug)]
pub(super) struct CudaCopier {
    staging: Staging,
    stream: Stream,
    buffers: Buffers,
    context: Arc<Context>,
}

impl CudaCopier {
    pub(super) fn new(context: &Arc<Context>, buffers: Buffers) -> Result<CudaCopier> {
        let (staging, stream) = (Staging::new(context)?, Stream::new(context, Priority::Background)?);
        Ok(CudaCopier { staging, stream, buffers, context: context.clone() })
    }
}

impl Copier for CudaCopier {
    fn upload(&mut self, to: Ptr, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.buffers.place(to, offset, bytes.len())?;
        self.context.enter()?;
        // SAFETY: the context is this thread's; `place` found room in a buffer, which this value holds until it has waited
        // for its stream.
        unsafe { self.staging.upload(&self.stream, to, bytes) }
    }

    fn synchronize(&mut self) -> Result<()> {
        self.stream.synchronize("copies to the GPU")
    }
}

impl Drop for CudaCopier {
    fn drop(&mut self) {
        // Buffers and pinned memory go away with the fields: nothing may use them then. An error has been said before.
        let _ = self.stream.synchronize("closing a stream");
    }
}
