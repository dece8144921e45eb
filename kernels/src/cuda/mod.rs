//! A GPU, through the driver that is loaded when the program runs.
//!
//! One stream that waits for no other; memory from the driver, at addresses that stay; copies through pinned memory; the
//! kernels of `kernels/cuda`, which are part of the program; cuBLASLt for large products, where it is installed. It is built
//! on cudarc's lower layer, where nothing tracks events or allocates behind the caller's back, so that what is queued can be
//! captured.
//!
//! What keeps a machine from running it is for [`crate::gpu::find`] to say.

mod blas;
mod copier;
mod driver;
mod graph;
mod module;
mod readback;
mod staging;
#[cfg(all(test, feature = "emulator"))]
mod tests;

use std::sync::Arc;

use cudarc::driver::result;

pub(crate) use blas::LibcublasLt;
use copier::{Buffers, CudaCopier};
pub(crate) use driver::Libcuda;

use crate::device::{Copier, Device, Launch, Ptr, Reading, Use};
use crate::error::{KernelError, Result};
use crate::gpu::{BlasVersion, Gpu, NoBlas, Priority};
use blas::Blas;
use driver::{Context, Event, Memory, Stream, failed};
use graph::Graph;
use module::Kernels;
use readback::Readback;
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
    buffers: Buffers,
    staging: Staging,
    readback: Readback,
    kernels: Kernels,
    /// For launches that are products, or why only kernels run.
    blas: std::result::Result<Blas, NoBlas>,
    stream: Stream,
    recorded: Vec<Graph>,
    /// Waits after each launch.
    one_by_one: bool,
    context: Arc<Context>,
}

impl CudaDevice {
    /// Opens a GPU that [`crate::gpu::find`] found, loads the kernels, and cuBLASLt where there is one. A GPU may be opened
    /// several times: each device has memory and a stream of its own, and `priority` says whose work goes first.
    ///
    /// # Errors
    /// [`KernelError::Device`].
    pub fn open(gpu: Gpu, priority: Priority) -> Result<CudaDevice> {
        let mut device = CudaDevice::with_kernels(gpu, priority)?;
        device.blas = Blas::open(&device.context);
        Ok(device)
    }

    /// As on a machine without cuBLASLt.
    fn with_kernels(gpu: Gpu, priority: Priority) -> Result<CudaDevice> {
        let context = Context::of(&gpu)?;
        let stream = Stream::new(&context, priority)?;
        let kernels = Kernels::load(&context)?;
        let (staging, readback) = (Staging::new(&context)?, Readback::new(&context)?);
        Ok(CudaDevice {
            gpu,
            buffers: Buffers::default(),
            staging,
            readback,
            kernels,
            blas: Err(NoBlas::NoLibrary),
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

    /// What computes large products beside the kernels, or why nothing does.
    ///
    /// # Errors
    /// [`NoBlas`] with what is missing.
    pub fn blas(&self) -> std::result::Result<BlasVersion, NoBlas> {
        self.blas.as_ref().map(|blas| blas.version).map_err(Clone::clone)
    }

    /// Makes a launch ready: what loads, allocates or chooses is done here.
    fn prepare(&mut self, launch: &Launch) -> Result<()> {
        if let (Ok(blas), Some(product)) = (&mut self.blas, &launch.product)
            && blas.prepare(product)?
        {
            return Ok(());
        }
        self.kernels.prepare(launch)
    }

    /// Queues a launch that was prepared; the name of what runs.
    fn queue(&self, launch: &Launch) -> Result<&'static str> {
        if let (Ok(blas), Some(product)) = (&self.blas, &launch.product)
            && blas.queue(product, &self.stream)?
        {
            return Ok("cublasLtMatmul");
        }
        self.kernels.queue(launch, &self.stream)?;
        Ok(launch.kernel)
    }

    fn capture(&mut self, launches: &[Launch]) -> Result<Graph> {
        // Before: preparing is nothing that a capture may contain.
        launches.iter().try_for_each(|launch| self.prepare(launch))?;
        Graph::capture(&self.context, &self.stream, || {
            launches.iter().try_for_each(|launch| self.queue(launch).map(|_| ()))
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
        self.buffers.0.insert(at, Arc::new(memory));
        Ok(Ptr(at))
    }

    fn upload(&mut self, to: Ptr, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.buffers.place(to, offset, bytes.len())?;
        self.context.enter()?;
        // SAFETY: the context is this thread's; `place` found room in a buffer, and freeing one waits for the stream.
        unsafe { self.staging.upload(&self.stream, to, bytes) }
    }

    fn download(&mut self, from: Ptr, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.buffers.place(from, offset, bytes.len())?;
        self.context.enter()?;
        // SAFETY: the context is this thread's, and `place` found as many bytes in a buffer.
        unsafe { self.staging.download(&self.stream, from, bytes) }
    }

    fn read(&mut self, from: Ptr, offset: usize, bytes: usize) -> Result<Reading> {
        let from = self.buffers.place(from, offset, bytes)?;
        self.context.enter()?;
        // SAFETY: the context is this thread's; `place` found the bytes in a buffer, and freeing one waits for the stream.
        unsafe { self.readback.queue(&self.stream, from, bytes) }
    }

    fn finish(&mut self, reading: Reading) -> Result<Vec<u8>> {
        self.readback.finish(&reading)
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        self.prepare(launch)?;
        let queued = self.queue(launch)?;
        if self.one_by_one { self.stream.synchronize(queued) } else { Ok(()) }
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

    fn copier(&self) -> Result<Box<dyn Copier>> {
        Ok(Box::new(CudaCopier::new(&self.context, self.buffers.clone())?))
    }
}

impl crate::check::CheckDevice for CudaDevice {
    fn clear(&mut self) {
        // An error of what was queued shows again in the next call.
        let _ = self.synchronize();
        self.buffers.0.clear();
    }

    fn has_library(&self) -> bool {
        self.blas.is_ok()
    }
}

impl crate::check::TimedDevice for CudaDevice {
    fn time(&mut self, launches: &[Launch]) -> Result<f64> {
        let graph = self.capture(launches)?;
        self.timed(&|device| graph.queue(&device.stream))
    }

    fn time_copy(&mut self, from: Ptr, to: Ptr, bytes: usize) -> Result<f64> {
        let (from, to) = (self.buffers.place(from, 0, bytes)?, self.buffers.place(to, 0, bytes)?);
        self.timed(&|device| {
            device.context.enter()?;
            // SAFETY: `place` found both ranges in buffers, which stay until `clear`; the stream is of this context.
            unsafe { result::memcpy_dtod_async(to, from, bytes, device.stream.handle) }
                .map_err(|error| failed("copying on the GPU", error))
        })
    }
}
