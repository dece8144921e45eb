//! What a device does for whoever owns it: memory, copies and launches.

use super::{Launch, Ptr};
use crate::error::Result;

/// What a buffer is to the kernels that get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Uploaded, never written by a kernel.
    Read = 0,
    /// Written by a kernel before one reads it.
    Write = 1,
    /// Read and written by kernels in any order.
    ReadWrite = 2,
}

/// Memory and launches of one device, in the order of one stream.
pub trait Device: Send {
    /// A buffer that lives as long as the device. `name` is for errors. Not initialised.
    ///
    /// # Errors
    /// [`crate::KernelError::OutOfMemory`], or [`crate::KernelError::Device`].
    fn alloc(&mut self, name: &str, bytes: usize, r#use: Use) -> Result<Ptr>;

    /// Writes bytes of a buffer, from `offset` on. They may be changed or freed once this returns.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`], also for bytes outside of a buffer.
    fn upload(&mut self, to: Ptr, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Waits for all that was queued and reads bytes of a buffer, from `offset` on.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`]: of this or of what was queued before, also for bytes outside of a buffer.
    fn download(&mut self, from: Ptr, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// Queues a kernel (the emulator runs it).
    ///
    /// # Errors
    /// [`crate::KernelError::Device`]: what is wrong with it, or went wrong in it.
    fn launch(&mut self, launch: &Launch) -> Result<()>;

    /// Keeps a list that comes again and again, so that it is queued as one (a GPU captures a graph); its number. Addresses
    /// and numbers are as they are now; what they point to may change.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`]: what is wrong with a launch.
    fn record(&mut self, launches: Vec<Launch>) -> Result<usize>;

    /// Queues a list that was recorded.
    ///
    /// # Errors
    /// As [`Device::launch`], also for a number that no list has.
    fn replay(&mut self, list: usize) -> Result<()>;

    /// Waits for all that was queued.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`]: of what was queued before.
    fn synchronize(&mut self) -> Result<()>;
}
