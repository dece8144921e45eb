//! Where to compute, as people write it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// `auto`, `cpu` or one GPU, `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The first GPU that kernels run on, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number, as the driver counts; nothing else will do.
    Cuda(usize),
    /// The device kernels on the host, for tests of them.
    Emulated,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let number = match text.trim() {
            "auto" => return Ok(Device::Auto),
            "cpu" => return Ok(Device::Cpu),
            "emulated" => return Ok(Device::Emulated),
            "cuda" => "0",
            other => other.strip_prefix("cuda:").unwrap_or(""),
        };
        if number.contains(',') {
            let first = number.split(',').next().unwrap_or("0");
            return Err(format!("`{text}` names several GPUs: a model runs on one, such as cuda:{first}"));
        }
        number
            .parse()
            .map(Device::Cuda)
            .map_err(|_| format!("`{text}` is not auto, cpu, cuda or the number of a GPU, such as cuda:0"))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
            Device::Emulated => f.write_str("emulated"),
        }
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Device, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_as_elsewhere_and_there_is_one() {
        let read = |text: &str| text.parse::<Device>();
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(3), Device::Emulated] {
            assert_eq!(read(&device.to_string()), Ok(device));
        }
        assert_eq!(read(" cuda"), Ok(Device::Cuda(0)));
        for (wrong, said) in [
            ("cuda:0,1", "such as cuda:0"),
            ("cuda:", "not auto, cpu, cuda"),
            ("gpu", "not auto, cpu, cuda"),
            ("cuda:-1", "not auto, cpu, cuda"),
            ("", "not auto, cpu, cuda"),
        ] {
            let message = read(wrong).expect_err("refused");
            assert!(message.contains(said), "{wrong}: {message}");
        }
    }
}
