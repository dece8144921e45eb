//! A GPU, through the driver that is loaded when the program runs.
//!
//! One stream that waits for no other; memory from the driver, at addresses that stay; copies through pinned memory; the
//! kernels of `kernels/cuda`, which are part of the program. It is built on cudarc's lower layer, where nothing tracks
//! events or allocates behind the caller's back, so that what is queued can be captured.
//!
//! What keeps a machine from running it is for [`crate::gpu::find`] to say.

mod driver;
mod graph;
mod module;
mod staging;
#[cfg(all(test, feature = "emulator"))]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{result, sys};

pub(crate) use driver::Libcuda;

use crate::device::{Device, Launch, Ptr, Use};
use crate::error::{KernelError, Result};
use crate::gpu::Gpu;
use driver::{Context, Event, Memory, Stream, failed};
use graph::Graph;
use module::Kernels;
use staging::Staging;

/// Seconds of work that a timing takes at least.
const TIMED: f64 = 0.05;

/// Bytes of a GPU's memory that nobody has taken, while this process has a context there.
///
/// # Errors
/// [`KernelError::Device`].
pub(crate) fn free_memory(gpu: &Gpu) -> Result<u64> {
    let context = Context::of(gpu)?;
    context.enter()?;
    let (free, _) = result::mem_get_info().map_err(|error| failed("asking for free memory", error))?;
    Ok(free as u64)
}

/// A GPU's memory and one stream of its work.
#[derive(Debug)]
pub struct CudaDevice {
    gpu: Gpu,
    /// By address.
    buffers: HashMap<u64, Memory>,
    staging: Staging,
    kernels: Kernels,
    stream: Stream,
    recorded: Vec<Graph>,
    /// Waits after each launch.
    one_by_one: bool,
    context: Arc<Context>,
}

impl CudaDevice {
    /// Opens a GPU that [`crate::gpu::find`] found and loads the kernels.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    pub fn open(gpu: Gpu) -> Result<CudaDevice> {
        let context = Context::of(&gpu)?;
        let stream = Stream::new(&context)?;
        let kernels = Kernels::load(&context)?;
        let staging = Staging::new(&context)?;
        Ok(CudaDevice {
            gpu,
            buffers: HashMap::new(),
            staging,
            kernels,
            stream,
            recorded: Vec::new(),
            one_by_one: false,
            context,
        })
    }

    /// Waits after each launch, so that what goes wrong in a kernel is said of it and not of a later call.
    #[must_use]
    pub fn one_by_one(mut self) -> CudaDevice {
        self.one_by_one = true;
        self
    }

    /// Which GPU it is.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn capture(&mut self, launches: &[Launch]) -> Result<Graph> {
        // Before: loading a function is nothing that a capture may contain.
        launches.iter().try_for_each(|launch| self.kernels.prepare(launch))?;
        Graph::capture(&self.context, &self.stream, || {
            launches.iter().try_for_each(|launch| self.kernels.queue(launch, &self.stream))
        })
    }

    /// Seconds that `queue` keeps the stream busy, of as many as take some time.
    fn timed(&mut self, queue: &dyn Fn(&mut CudaDevice) -> Result<()>) -> Result<f64> {
        let (start, end) = (Event::new(&self.context, true)?, Event::new(&self.context, true)?);
        let mut run = |times: usize| -> Result<f64> {
            start.record(&self.stream)?;
            for _ in 0..times {
                queue(self)?;
            }
            end.record(&self.stream)?;
            end.wait()?;
            Ok(end.since(&start)? / times as f64)
        };
        // The first brings clocks up and code in, the second says how many are enough.
        run(1)?;
        let times = (TIMED / run(1)?.max(1e-7)).ceil().clamp(3.0, 1000.0) as usize;
        run(times)
    }

    /// The driver's address of `len` bytes of a buffer, from `offset` on.
    fn place(&self, buffer: Ptr, offset: usize, len: usize) -> Result<sys::CUdeviceptr> {
        let what = match self.buffers.get(&buffer.0) {
            Some(memory) if offset.checked_add(len).is_some_and(|end| end <= memory.bytes) => {
                return Ok(memory.at + offset as u64);
            }
            Some(memory) => format!("a copy of {len} bytes at {offset} of a buffer of {}", memory.bytes),
            None => "a copy to or from an address that is no buffer".to_owned(),
        };
        Err(KernelError::Device { what })
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // Pinned memory and modules go away with the fields: nothing may use them then. An error has been said before.
        let _ = self.stream.synchronize("closing the GPU");
    }
}

impl Device for CudaDevice {
    fn alloc(&mut self, name: &str, bytes: usize, _use: Use) -> Result<Ptr> {
        let memory = Memory::new(&self.context, name, bytes)?;
        let at = memory.at;
        self.buffers.insert(at, memory);
        Ok(Ptr(at))
    }

    fn upload(&mut self, to: Ptr, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.place(to, offset, bytes.len())?;
        self.context.enter()?;
        // SAFETY: the context is this thread's; `place` found room in a buffer, and freeing one waits for the stream.
        unsafe { self.staging.upload(&self.stream, to, bytes) }
    }

    fn download(&mut self, from: Ptr, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.place(from, offset, bytes.len())?;
        self.context.enter()?;
        // SAFETY: the context is this thread's, and `place` found as many bytes in a buffer.
        unsafe { self.staging.download(&self.stream, from, bytes) }
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        self.kernels.prepare(launch)?;
        self.kernels.queue(launch, &self.stream)?;
        if self.one_by_one { self.stream.synchronize(launch.kernel) } else { Ok(()) }
    }

    fn record(&mut self, launches: Vec<Launch>) -> Result<usize> {
        let graph = self.capture(&launches)?;
        self.recorded.push(graph);
        Ok(self.recorded.len() - 1)
    }

    fn replay(&mut self, list: usize) -> Result<()> {
        let graph = self
            .recorded
            .get(list)
            .ok_or_else(|| KernelError::Device { what: format!("no list {list} was recorded") })?;
        graph.queue(&self.stream)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.stream.synchronize("what was queued on the GPU")
    }
}

impl crate::check::CheckDevice for CudaDevice {
    fn clear(&mut self) {
        // An error of what was queued shows again in the next call.
        let _ = self.synchronize();
        self.buffers.clear();
    }
}

impl crate::check::TimedDevice for CudaDevice {
    fn time(&mut self, launches: &[Launch]) -> Result<f64> {
        let graph = self.capture(launches)?;
        self.timed(&|device| graph.queue(&device.stream))
    }

    fn time_copy(&mut self, from: Ptr, to: Ptr, bytes: usize) -> Result<f64> {
        let (from, to) = (self.place(from, 0, bytes)?, self.place(to, 0, bytes)?);
        self.timed(&|device| {
            device.context.enter()?;
            // SAFETY: `place` found both ranges in buffers, which stay until `clear`; the stream is of this context.
            unsafe { result::memcpy_dtod_async(to, from, bytes, device.stream.handle) }
                .map_err(|error| failed("copying on the GPU", error))
        })
    }
}
