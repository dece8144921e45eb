//! Which GPU there is, or in words why none can be used.
//!
//! Nothing is linked: a program with the feature `cuda` starts on a machine without a driver, asks here, and goes on
//! with the CPU. The same is asked of cuBLASLt, without which a GPU has only our own kernels.

mod blas;

use std::fmt;

#[cfg(feature = "cuda")]
pub(crate) use blas::Library;
pub use blas::{BlasVersion, NoBlas, find_blas};

/// The toolkit that the kernels are compiled with, and so the least that a driver must know, as the driver counts:
/// 1000 major + 10 minor.
const DRIVER: i32 = 13_000;
/// Least compute capability: `cp.async` and bf16 products.
const CAPABILITY: (i32, i32) = (8, 0);

/// A GPU that kernels run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as the driver counts.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability: major, minor.
    pub capability: (i32, i32),
    /// Bytes of memory, used or not.
    pub memory: u64,
}

/// Whose work a GPU takes first where several devices of one have some waiting; what runs already may run to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Short steps that somebody waits for, one after the other: a generator's.
    Foreground,
    /// Passes that take what the foreground leaves: an encoder's.
    Background,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Gpu { ordinal, name, .. }, (major, minor)) = (self, self.capability);
        let gib = self.memory as f64 / (1_u64 << 30) as f64;
        write!(f, "GPU {ordinal}: {name}, compute capability {major}.{minor}, {gib:.0} GiB")
    }
}

/// Why there is none, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGpu {
    /// The feature `cuda` was not built in.
    #[error("this program was built without GPU support: build it with `make cuda`")]
    NotBuilt,
    /// No libcuda.
    #[error(
        "there is no NVIDIA driver: libcuda.so.1 was not found. Install the driver (580 or newer); in a container start \
         it with GPUs (`--gpus all`)"
    )]
    NoLibrary,
    /// libcuda is there and does not work.
    #[error("the NVIDIA driver does not start: {what}. See whether `nvidia-smi` shows a GPU")]
    Driver {
        /// As the driver says it.
        what: String,
    },
    /// A driver of before the toolkit.
    #[error(
        "the NVIDIA driver is too old: it knows CUDA {}.{}, and the kernels need {}.{}. Install driver 580 or newer",
        found / 1000, found % 1000 / 10, DRIVER / 1000, DRIVER % 1000 / 10
    )]
    OldDriver {
        /// What it knows, as it counts.
        found: i32,
    },
    /// A driver without GPUs.
    #[error(
        "the NVIDIA driver sees no GPU: see whether `nvidia-smi` shows one and CUDA_VISIBLE_DEVICES hides none"
    )]
    NoDevice,
    /// A number that no GPU has.
    #[error(
        "there is no GPU {asked}: the driver sees {devices}, counted from 0 (CUDA_VISIBLE_DEVICES may hide some)"
    )]
    NoSuchDevice {
        /// The number.
        asked: usize,
        /// How many there are.
        devices: usize,
    },
    /// A GPU of before what the kernels need.
    #[error(
        "GPU {} is a {} of compute capability {}.{}, and the kernels need {}.{} (A100, RTX 30 or newer)",
        gpu.ordinal, gpu.name, gpu.capability.0, gpu.capability.1, CAPABILITY.0, CAPABILITY.1
    )]
    OldDevice {
        /// The GPU.
        gpu: Gpu,
    },
}

/// What a driver is asked, in this order.
pub(crate) trait Driver {
    /// Whether its library can be loaded. Nothing else may be asked where it cannot.
    fn present(&self) -> bool;
    /// The CUDA that it knows: 1000 major + 10 minor. Needs no start.
    fn version(&self) -> Result<i32, String>;
    /// Starts it; whether it sees GPUs at all.
    fn start(&self) -> Result<bool, String>;
    /// How many GPUs.
    fn devices(&self) -> Result<usize, String>;
    /// One of them.
    fn device(&self, ordinal: usize) -> Result<Gpu, String>;
}

/// The GPU `ordinal`, if kernels run on it.
///
/// # Errors
/// [`NoGpu`] with what is missing.
pub fn find(ordinal: usize) -> Result<Gpu, NoGpu> {
    #[cfg(feature = "cuda")]
    return ask(&crate::cuda::Libcuda, ordinal);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = ordinal;
        Err(NoGpu::NotBuilt)
    }
}

/// Bytes of `gpu`'s memory that nobody has taken.
///
/// # Errors
/// [`NoGpu::Driver`].
pub fn free_memory(gpu: &Gpu) -> Result<u64, NoGpu> {
    #[cfg(feature = "cuda")]
    return crate::cuda::free_memory(gpu).map_err(|error| NoGpu::Driver { what: error.to_string() });
    #[cfg(not(feature = "cuda"))]
    {
        let _ = gpu;
        Err(NoGpu::NotBuilt)
    }
}

#[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "nobody to ask"))]
fn ask(driver: &dyn Driver, ordinal: usize) -> Result<Gpu, NoGpu> {
    let failed = |what| NoGpu::Driver { what };
    if !driver.present() {
        return Err(NoGpu::NoLibrary);
    }
    let found = driver.version().map_err(failed)?;
    // A library of version 0 is there for linking only; starting it says so.
    if found != 0 && found < DRIVER {
        return Err(NoGpu::OldDriver { found });
    }
    if !driver.start().map_err(failed)? {
        return Err(NoGpu::NoDevice);
    }
    let devices = driver.devices().map_err(failed)?;
    if devices == 0 {
        return Err(NoGpu::NoDevice);
    }
    if ordinal >= devices {
        return Err(NoGpu::NoSuchDevice { asked: ordinal, devices });
    }
    let gpu = driver.device(ordinal).map_err(failed)?;
    if gpu.capability < CAPABILITY {
        return Err(NoGpu::OldDevice { gpu });
    }
    Ok(gpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as told.
    struct Told {
        present: bool,
        version: i32,
        start: Result<bool, &'static str>,
        gpus: Vec<(i32, i32)>,
    }

    impl Driver for Told {
        fn present(&self) -> bool {
            self.present
        }

        fn version(&self) -> Result<i32, String> {
            assert!(self.present, "nothing is asked of a library that is not there");
            Ok(self.version)
        }

        fn start(&self) -> Result<bool, String> {
            assert!(self.version >= DRIVER || self.version == 0, "an old driver is not started");
            self.start.map_err(str::to_owned)
        }

        fn devices(&self) -> Result<usize, String> {
            assert_eq!(self.start, Ok(true), "a driver that does not start has no devices");
            Ok(self.gpus.len())
        }

        fn device(&self, ordinal: usize) -> Result<Gpu, String> {
            let capability = *self.gpus.get(ordinal).ok_or("no such device")?;
            Ok(Gpu { ordinal, name: "Test".to_owned(), capability, memory: 1 << 30 })
        }
    }

    fn well() -> Told {
        Told { present: true, version: 13_010, start: Ok(true), gpus: vec![(9, 0), (7, 5)] }
    }

    #[test]
    fn a_gpu_is_found_by_its_number() {
        let gpu = ask(&well(), 0).expect("found");
        assert_eq!((gpu.ordinal, gpu.capability), (0, (9, 0)));
        let least = Told { version: DRIVER, gpus: vec![CAPABILITY], ..well() };
        assert!(ask(&least, 0).is_ok());
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        for (told, ordinal, words) in [
            (Told { present: false, ..well() }, 0, &["libcuda.so.1", "Install the driver"][..]),
            (Told { version: 12_090, ..well() }, 0, &["too old", "CUDA 12.9", "need 13.0", "580"]),
            (
                Told { start: Err("stub library"), version: 0, ..well() },
                0,
                &["does not start", "stub library"],
            ),
            (Told { start: Ok(false), ..well() }, 0, &["sees no GPU", "CUDA_VISIBLE_DEVICES"]),
            (Told { gpus: vec![], ..well() }, 0, &["sees no GPU"]),
            (well(), 2, &["no GPU 2", "sees 2"]),
            (well(), 1, &["GPU 1 is a Test", "capability 7.5", "need 8.0"]),
        ] {
            let said = ask(&told, ordinal).expect_err("none").to_string();
            for part in words {
                assert!(said.contains(part), "`{part}` is not in: {said}");
            }
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_program_without_gpu_support_says_how_to_build_it() {
        assert!(find(0).expect_err("none").to_string().contains("make cuda"));
    }
}
