//! Where models compute: what was asked for against what the machine has.

use std::fmt;

use tarn_kernels::gpu::{self, BlasVersion, Gpu, NoBlas, NoGpu, Priority};
use tarn_kernels::{DType, device};

use crate::config::{Device, Settings};
use crate::model::{DeviceAdapters, DeviceFormat, DeviceOptions, DtypeChoice, LoadProgress, ModelSource};

/// Where, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The CPU; because of what, where a GPU would have been taken.
    Cpu(Option<NoGpu>),
    /// A GPU.
    Gpu(Gpu),
    /// The device kernels, on the host.
    Emulated,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Cpu(None) => f.write_str("the CPU"),
            Place::Cpu(Some(why)) => write!(f, "the CPU: {why}"),
            Place::Gpu(gpu) => write!(f, "{gpu}"),
            Place::Emulated => f.write_str("the device kernels on the host"),
        }
    }
}

/// A GPU was asked for by name, and cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--device {asked}: {why} (--device auto takes the CPU where there is no GPU)")]
pub(super) struct NoPlace {
    asked: Device,
    pub(super) why: NoGpu,
}

/// What `asked` means on this machine.
///
/// # Errors
/// [`NoPlace`] with what is missing.
pub(super) fn place(asked: Device) -> Result<Place, NoPlace> {
    place_with(asked, gpu::find)
}

/// What computes the large products of a GPU, in words.
pub(super) fn products(blas: Result<BlasVersion, NoBlas>) -> String {
    match blas {
        Ok(version) => format!("large products by {version}"),
        Err(why) => format!("large products by Tarn's own kernels: {why}"),
    }
}

/// Opens the device of a place that is one, for one model: each has its own memory and order of work, and `priority` says
/// whose goes first (the emulator has no use for it: every kernel runs at once).
pub(super) fn open(place: &Place, priority: Priority) -> anyhow::Result<Box<dyn device::Device>> {
    match (place, priority) {
        #[cfg(feature = "cuda")]
        (Place::Gpu(gpu), priority) => {
            let device = tarn_kernels::cuda::CudaDevice::open(gpu.clone(), priority)?;
            tracing::info!("{}", products(device.blas()));
            Ok(Box::new(device))
        }
        #[cfg(feature = "emulator")]
        (Place::Emulated, _) => {
            Ok(Box::new(tarn_kernels::emulated::Emulator::new(tarn_kernels::emulated::Mode::Plain)?))
        }
        _ => anyhow::bail!("{place}: this program was built without what runs kernels there"),
    }
}

/// The element type of a model's weights and activations on a device.
pub(super) fn dtype(asked: DtypeChoice, source: &ModelSource, dummy_weights: bool) -> anyhow::Result<DType> {
    Ok(match asked {
        DtypeChoice::BF16 => DType::BF16,
        DtypeChoice::F16 => DType::F16,
        // Halves as they are stored; what else there is has the exponents of bf16.
        DtypeChoice::Auto if !dummy_weights && source.inspect()?.dtypes.contains_key("F16") => DType::F16,
        DtypeChoice::Auto | DtypeChoice::Fp8 => DType::BF16,
        DtypeChoice::F32 => {
            anyhow::bail!("--dtype f32: on a device weights are bf16 or f16; --device cpu has f32")
        }
    })
}

/// How the generator is brought to a device, for contexts of up to `max_model_len` tokens.
pub(super) fn options(
    settings: &Settings,
    source: &ModelSource,
    max_model_len: usize,
    progress: Option<Box<dyn Fn(LoadProgress) + Send>>,
) -> anyhow::Result<DeviceOptions> {
    let dummy_weights = settings.need_model()?.dummy_weights;
    let adapters = settings.lora.possible();
    let adapters = adapters
        .then_some(DeviceAdapters { slots: settings.lora.max_loras, max_rank: settings.lora.max_rank });
    let projections =
        if settings.dtype == DtypeChoice::Fp8 { DeviceFormat::Fp8 } else { DeviceFormat::Plain };
    Ok(DeviceOptions {
        dtype: dtype(settings.dtype, source, dummy_weights)?,
        projections,
        max_num_batched_tokens: settings.engine.max_num_batched_tokens,
        max_num_seqs: settings.engine.max_num_seqs,
        max_model_len,
        adapters,
        dummy_weights,
        progress,
    })
}

fn place_with(asked: Device, find: impl Fn(usize) -> Result<Gpu, NoGpu>) -> Result<Place, NoPlace> {
    match asked {
        Device::Cpu => Ok(Place::Cpu(None)),
        Device::Emulated => Ok(Place::Emulated),
        Device::Auto => Ok(find(0).map_or_else(|why| Place::Cpu(Some(why)), Place::Gpu)),
        Device::Cuda(number) => find(number).map(Place::Gpu).map_err(|why| NoPlace { asked, why }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_taken_where_there_is_one_and_missed_only_where_it_was_named() {
        let gpu = |ordinal| Gpu { ordinal, name: "Test".to_owned(), capability: (9, 0), memory: 1 << 30 };
        let one =
            |asked| if asked == 0 { Ok(gpu(0)) } else { Err(NoGpu::NoSuchDevice { asked, devices: 1 }) };
        let none = |_| Err(NoGpu::NoLibrary);
        assert_eq!(place_with(Device::Auto, one), Ok(Place::Gpu(gpu(0))));
        assert_eq!(place_with(Device::Auto, none), Ok(Place::Cpu(Some(NoGpu::NoLibrary))));
        assert_eq!(place_with(Device::Cpu, one), Ok(Place::Cpu(None)));
        assert_eq!(place_with(Device::Cuda(0), one), Ok(Place::Gpu(gpu(0))));
        for (asked, said) in [
            (
                place_with(Device::Cuda(0), none),
                ["--device cuda:0: there is no NVIDIA driver", "--device auto"],
            ),
            (place_with(Device::Cuda(1), one), ["--device cuda:1: there is no GPU 1", "sees 1"]),
        ] {
            let message = asked.expect_err("refused").to_string();
            for part in said {
                assert!(message.contains(part), "`{part}` is not in: {message}");
            }
        }
    }

    #[test]
    fn what_computes_large_products_is_said_with_why() {
        let version = BlasVersion { major: 13, minor: 0, patch: 2 };
        assert_eq!(products(Ok(version)), "large products by cuBLASLt 13.0.2");
        let own = products(Err(NoBlas::NoLibrary));
        assert!(own.contains("Tarn's own kernels: libcublasLt.so.13 was not found"), "{own}");
    }
}
