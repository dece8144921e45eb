//! What a device does for whoever owns it: memory, copies and launches.

use super::{Launch, Ptr};
use crate::error::{KernelError, Result};

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

/// Bytes that [`Device::read`] reads at most.
pub const READ: usize = 64 << 10;
/// Reads that may be waited for at a time; of more, the first are given up.
pub const READS: usize = 2;

/// A read that was queued.
#[derive(Debug)]
#[must_use = "a read is for somebody who waits for it"]
pub struct Reading {
    /// How many the device had queued before.
    pub number: usize,
    /// How many bytes.
    pub bytes: usize,
}

impl Reading {
    /// Read `number` of a device.
    ///
    /// # Errors
    /// [`KernelError::Device`] for more than [`READ`] bytes.
    pub fn new(number: usize, bytes: usize) -> Result<Reading> {
        if bytes > READ {
            return Err(KernelError::Device { what: format!("a read of {bytes} bytes, at most {READ}") });
        }
        Ok(Reading { number, bytes })
    }

    /// What was found of it, which is nothing once it was given up.
    ///
    /// # Errors
    /// [`KernelError::Device`] where nothing was.
    pub fn still<T>(&self, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| KernelError::Device {
            what: format!("read {} was given up for later ones", self.number),
        })
    }
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

    /// Queues a read of up to [`READ`] bytes of a buffer, from `offset` on: as they are when what was queued before has
    /// run. What is queued after it changes nothing in it.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`], also for bytes outside of a buffer.
    fn read(&mut self, from: Ptr, offset: usize, bytes: usize) -> Result<Reading>;

    /// Waits for a read, not for what was queued after it; its bytes.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`]: of this or of what was queued before, also when [`READS`] later ones were queued.
    fn finish(&mut self, reading: Reading) -> Result<Vec<u8>>;

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

    /// What copies to the buffers that there are now, from any thread and beside what is queued.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`].
    fn copier(&self) -> Result<Box<dyn Copier>>;
}

/// Copies to a device's buffers beside what the device computes: for bytes that nothing of what is queued reads.
pub trait Copier: Send {
    /// Queues a copy of bytes to a buffer, from `offset` on. They may be changed or freed once this returns.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`], also for bytes outside of a buffer.
    fn upload(&mut self, to: Ptr, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Waits for the copies: what is queued on the device from now on finds them.
    ///
    /// # Errors
    /// [`crate::KernelError::Device`].
    fn synchronize(&mut self) -> Result<()>;
}
