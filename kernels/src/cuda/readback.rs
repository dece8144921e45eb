//! Small reads that are waited for one by one, while other work is queued behind them.

use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::{Context, Event, Pinned, Stream, failed};
use crate::device::{READ, READS, Reading};
use crate::error::Result;

/// Places in pinned memory that reads land in, in turn.
#[derive(Debug)]
pub(super) struct Readback {
    places: [Place; READS],
    /// Reads that were queued.
    queued: usize,
}

#[derive(Debug)]
struct Place {
    memory: Pinned,
    /// Behind the last read to it.
    landed: Event,
    /// The number of that read, until it was waited for.
    reading: Option<usize>,
}

impl Readback {
    pub(super) fn new(context: &Arc<Context>) -> Result<Readback> {
        let place = || -> Result<Place> {
            let (memory, landed) = (Pinned::new(context, READ)?, Event::new(context, false)?);
            Ok(Place { memory, landed, reading: None })
        };
        Ok(Readback { places: [place()?, place()?], queued: 0 })
    }

    /// Queues a copy of `bytes` bytes from `from`.
    ///
    /// # Safety
    /// The context is this thread's; there are as many bytes, for as long as the stream runs.
    pub(super) unsafe fn queue(
        &mut self,
        stream: &Stream,
        from: sys::CUdeviceptr,
        bytes: usize,
    ) -> Result<Reading> {
        let reading = Reading::new(self.queued, bytes)?;
        let place = &mut self.places[reading.number % READS];
        // The read that had this place before is ahead of this one in the stream and given up.
        place.reading = None;
        // SAFETY: the place has room (checked); nobody looks at it until this copy was waited for; the caller says that the
        // bytes are there.
        unsafe { sys::cuMemcpyDtoHAsync_v2(place.memory.at(0).cast(), from, bytes, stream.handle) }
            .result()
            .map_err(|error| failed("copying from the GPU", error))?;
        place.landed.record(stream)?;
        place.reading = Some(reading.number);
        self.queued += 1;
        Ok(reading)
    }

    /// Waits for a read; its bytes.
    pub(super) fn finish(&mut self, reading: &Reading) -> Result<Vec<u8>> {
        let place = &mut self.places[reading.number % READS];
        let own = place.reading == Some(reading.number);
        let place = reading.still(own.then_some(place))?;
        place.landed.wait()?;
        place.reading = None;
        // SAFETY: the last copy to the place is this read's, which has been waited for.
        Ok(unsafe { place.memory.bytes_mut() }[..reading.bytes].to_vec())
    }
}
