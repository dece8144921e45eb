//! The driver's handles, each owned by a value that gives it back.
//!
//! A context is current for a thread, not for the process: whatever calls the driver enters it first, so that a device
//! may go from the thread that opened it to the one that owns it.

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::error::{KernelError, Result};
use crate::gpu::{Driver, Gpu, Priority};

/// What a call of the driver said.
pub(super) fn failed(what: &str, error: DriverError) -> KernelError {
    KernelError::Device { what: format!("{what}: {}", words(error)) }
}

fn words(error: DriverError) -> String {
    let text = |found: std::result::Result<&std::ffi::CStr, DriverError>| {
        found.map_or_else(|_| "?".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

/// The driver of this machine, if it has one.
#[derive(Debug)]
pub(crate) struct Libcuda;

impl Driver for Libcuda {
    fn present(&self) -> bool {
        // SAFETY: loading runs the library's initialisers: those of the driver that the machine's administrator
        // installed under this name.
        unsafe { sys::is_culib_present() }
    }

    fn version(&self) -> std::result::Result<i32, String> {
        let mut version = 0;
        // SAFETY: `present` came first (the trait's order), the pointer is to a live int.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(words)?;
        Ok(version)
    }

    fn start(&self) -> std::result::Result<bool, String> {
        match result::init() {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(false),
            Err(error) => Err(words(error)),
        }
    }

    fn devices(&self) -> std::result::Result<usize, String> {
        result::device::get_count().map(|count| count as usize).map_err(words)
    }

    fn device(&self, ordinal: usize) -> std::result::Result<Gpu, String> {
        use sys::CUdevice_attribute as Attribute;
        let device = result::device::get(ordinal as i32).map_err(words)?;
        // SAFETY: the driver gave this device.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map_err(words);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        // SAFETY: as above.
        let memory = unsafe { result::device::total_mem(device) }.map_err(words)? as u64;
        let name = result::device::get_name(device).map_err(words)?;
        Ok(Gpu { ordinal, name, capability, memory })
    }
}

/// A device's primary context.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: the handle is a token that the driver looks up under its own locks; any thread may pass it.
unsafe impl Send for Context {}
// SAFETY: as above; no method changes the value.
unsafe impl Sync for Context {}

impl Context {
    /// That of a device that [`crate::gpu::find`] found: the driver has been started.
    pub(super) fn of(gpu: &Gpu) -> Result<Arc<Context>> {
        let device =
            result::device::get(gpu.ordinal as i32).map_err(|error| failed("opening the GPU", error))?;
        // SAFETY: the driver gave this device.
        let handle = unsafe { result::primary_ctx::retain(device) }
            .map_err(|error| failed("opening the GPU", error))?;
        Ok(Arc::new(Context { device, handle }))
    }

    /// Makes it this thread's.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until `drop`.
        unsafe { result::ctx::set_current(self.handle) }
            .map_err(|error| failed("entering the GPU's context", error))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, released once, after all that hold this value in an `Arc`. A failure leaves a context
        // that ends with the process.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A stream of its own, which does not wait for others.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) handle: sys::CUstream,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>, priority: Priority) -> Result<Stream> {
        context.enter()?;
        let error = |error| failed("making a stream", error);
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: the context is this thread's, the pointers are to live numbers.
        unsafe { sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest) }
            .result()
            .map_err(error)?;
        let priority = match priority {
            Priority::Foreground => greatest,
            Priority::Background => least,
        };
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut handle = std::ptr::null_mut();
        // SAFETY: as above, to a live handle.
        unsafe { sys::cuStreamCreateWithPriority(&raw mut handle, flags, priority) }
            .result()
            .map_err(error)?;
        Ok(Stream { handle, context: context.clone() })
    }

    /// Waits for all that was queued; `what` was.
    pub(super) fn synchronize(&self, what: &str) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.handle) }.map_err(|error| failed(what, error))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made by `new`, destroyed once. What is still queued runs to its end.
            let _ = unsafe { result::stream::destroy(self.handle) };
        }
    }
}

/// A point in a stream.
#[derive(Debug)]
pub(super) struct Event {
    handle: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Event {}

impl Event {
    /// `timed`: for [`Event::since`]; otherwise only for [`Event::wait`].
    pub(super) fn new(context: &Arc<Context>, timed: bool) -> Result<Event> {
        context.enter()?;
        let flags = if timed {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let handle = result::event::create(flags).map_err(|error| failed("making an event", error))?;
        Ok(Event { handle, context: context.clone() })
    }

    /// Puts it behind all that was queued.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        self.context.enter()?;
        // SAFETY: event and stream live, and are of one context (a device makes both).
        unsafe { result::event::record(self.handle, stream.handle) }
            .map_err(|error| failed("recording an event", error))
    }

    /// Waits until the stream has come to it; at once where it was never recorded.
    pub(super) fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event lives.
        unsafe { result::event::synchronize(self.handle) }
            .map_err(|error| failed("waiting for the GPU", error))
    }

    /// Seconds from `start` on; both have been waited for.
    pub(super) fn since(&self, start: &Event) -> Result<f64> {
        self.context.enter()?;
        // SAFETY: both events live and were made with timing (only timed ones are asked).
        let milliseconds = unsafe { result::event::elapsed(start.handle, self.handle) }
            .map_err(|error| failed("timing", error))?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made by `new`, destroyed once.
            let _ = unsafe { result::event::destroy(self.handle) };
        }
    }
}

/// Device memory.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) at: sys::CUdeviceptr,
    pub(super) bytes: usize,
    context: Arc<Context>,
}

impl Memory {
    pub(super) fn new(context: &Arc<Context>, name: &str, bytes: usize) -> Result<Memory> {
        context.enter()?;
        // SAFETY: the content is not initialised, which is what `Device::alloc` says; only kernels and copies of bytes
        // touch it. The driver refuses 0.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(at) => Ok(Memory { at, bytes, context: context.clone() }),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let free = result::mem_get_info().map_or(0, |(free, _)| free);
                let what = format!(
                    "`{name}` needs {} MiB of the GPU's memory, and {} MiB are free",
                    bytes >> 20,
                    free >> 20
                );
                Err(KernelError::Device { what })
            }
            Err(error) => Err(failed(&format!("allocating {bytes} bytes for `{name}`"), error)),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: allocated by `new`, freed once; a device waits for its stream before it drops buffers.
            let _ = unsafe { result::free_sync(self.at) };
        }
    }
}

/// Host memory that the device copies from and to by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    at: NonNull<u8>,
    bytes: usize,
    context: Arc<Context>,
}

// SAFETY: the memory is this value's own; the driver maps it for all threads.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Pinned> {
        context.enter()?;
        // SAFETY: what it points to is set to zero before anything reads it.
        let at =
            unsafe { result::malloc_host(bytes, 0) }.map_err(|error| failed("pinning host memory", error))?;
        let at = NonNull::new(at.cast::<u8>())
            .ok_or_else(|| KernelError::Device { what: "the driver pinned no memory".to_owned() })?;
        // SAFETY: the driver gave `bytes` bytes.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Pinned { at, bytes, context: context.clone() })
    }

    /// All of it.
    ///
    /// # Safety
    /// No copy of the device from or to it is in flight.
    pub(super) unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `bytes` initialised bytes of this value's own; the caller sees to the device.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.bytes) }
    }

    /// The address of the byte at `offset`, for copies of the device.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes, "inside: this is a bug");
        // SAFETY: inside of the allocation, or one past its end (asserted).
        unsafe { self.at.as_ptr().add(offset) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: pinned by `new`, freed once; a device waits for its stream before it drops what is copied from.
            let _ = unsafe { result::free_host(self.at.as_ptr().cast()) };
        }
    }
}
