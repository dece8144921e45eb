//! Copies between host and device through pinned memory.

use std::sync::Arc;

use cudarc::driver::sys;
use rayon::prelude::*;

use super::driver::{Context, Event, Pinned, Stream, failed};
use crate::error::Result;

/// Bytes of a half for uploads: large enough for the bus's full rate, while the other half is filled.
const HALF: usize = 16 << 20;
/// Where a copy starts in it; a half is a multiple.
const LINE: usize = 256;
/// Bytes that come back at once.
const LANDING: usize = 4 << 20;

/// Bytes that a thread copies at a time.
const PIECE: usize = 1 << 20;

/// Copies with all threads what is more than a piece: one thread is slower than the bus, all the more where it is the first
/// to touch the pages of a mapped file.
fn copy(to: &mut [u8], from: &[u8]) {
    if to.len() <= PIECE {
        return to.copy_from_slice(from);
    }
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| to.copy_from_slice(from));
}

/// Two halves that take turns for uploads, and one place for downloads.
#[derive(Debug)]
pub(super) struct Staging {
    halves: [Half; 2],
    current: usize,
    /// Bytes of the current half that copies may still read.
    used: usize,
    landing: Pinned,
}

#[derive(Debug)]
struct Half {
    memory: Pinned,
    /// Behind the last copy from it.
    free: Event,
}

impl Staging {
    pub(super) fn new(context: &Arc<Context>) -> Result<Staging> {
        let half = || -> Result<Half> {
            Ok(Half { memory: Pinned::new(context, HALF)?, free: Event::new(context, false)? })
        };
        let halves = [half()?, half()?];
        Ok(Staging { halves, current: 0, used: 0, landing: Pinned::new(context, LANDING)? })
    }

    /// Queues copies to `to`; returns when `bytes` are in pinned memory.
    ///
    /// # Safety
    /// The context is this thread's; `to` has room for `bytes`, for as long as the stream runs.
    pub(super) unsafe fn upload(
        &mut self,
        stream: &Stream,
        to: sys::CUdeviceptr,
        bytes: &[u8],
    ) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            if self.used == HALF {
                self.halves[self.current].free.record(stream)?;
                self.current = 1 - self.current;
                self.halves[self.current].free.wait()?;
                self.used = 0;
            }
            let len = (bytes.len() - done).min(HALF - self.used);
            let memory = &mut self.halves[self.current].memory;
            // SAFETY: copies in flight read below `used` only, or were waited for when the halves took turns.
            let place = unsafe { memory.bytes_mut() };
            copy(&mut place[self.used..self.used + len], &bytes[done..done + len]);
            let from = memory.at(self.used).cast_const().cast();
            // SAFETY: `len` bytes at `from` stay as they are until the halves have taken turns and `free` was waited
            // for; the caller says that `to` has room.
            unsafe { sys::cuMemcpyHtoDAsync_v2(to + done as u64, from, len, stream.handle) }
                .result()
                .map_err(|error| failed("copying to the GPU", error))?;
            self.used = (self.used + len).next_multiple_of(LINE);
            done += len;
        }
        Ok(())
    }

    /// Waits for the stream and copies from `from`.
    ///
    /// # Safety
    /// The context is this thread's; `from` has as many bytes as `bytes`.
    pub(super) unsafe fn download(
        &mut self,
        stream: &Stream,
        from: sys::CUdeviceptr,
        bytes: &mut [u8],
    ) -> Result<()> {
        for (number, part) in bytes.chunks_mut(LANDING).enumerate() {
            let at = from + (number * LANDING) as u64;
            // SAFETY: the landing place has room for a chunk and nothing else uses it until the stream was waited for;
            // the caller says that the bytes are there.
            unsafe { sys::cuMemcpyDtoHAsync_v2(self.landing.at(0).cast(), at, part.len(), stream.handle) }
                .result()
                .map_err(|error| failed("copying from the GPU", error))?;
            stream.synchronize("what was queued on the GPU")?;
            // SAFETY: the only copy to it has been waited for.
            let landed = unsafe { self.landing.bytes_mut() };
            part.copy_from_slice(&landed[..part.len()]);
        }
        Ok(())
    }
}
