//! Inputs that tests share, seeded, without a dependency; and the cases of the device kernels.

#[cfg(test)]
use crate::blocks::BlockFormat;
#[cfg(test)]
use crate::cpu::Level;
pub(crate) use crate::device::fill::hash;
use crate::device::fill::value;

#[cfg(any(feature = "emulator", feature = "cuda"))]
mod device;
#[cfg(any(feature = "emulator", feature = "cuda"))]
pub use device::{CheckDevice, Suite, suites};
#[cfg(any(feature = "emulator", feature = "cuda"))]
pub mod timing;
#[cfg(any(feature = "emulator", feature = "cuda"))]
pub use timing::TimedDevice;

/// `len` values in -1..1 from a counter hash.
pub(crate) fn fill(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64).map(|at| value(at, seed)).collect()
}

/// `blocks` blocks of random codes with scales of a sensible size.
#[cfg(test)]
pub(crate) fn random_blocks(format: BlockFormat, blocks: usize, seed: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..(blocks * format.bytes()) as u64).map(|at| hash(at, seed) as u8).collect();
    for (at, block) in bytes.chunks_exact_mut(format.bytes()).enumerate() {
        let scale =
            half::f16::from_f32(0.01 + (hash(at as u64, seed + 1) % 100) as f32 / 5000.0).to_le_bytes();
        let starts: &[usize] = match format {
            BlockFormat::Q8_0 | BlockFormat::Q4_0 => &[0],
            BlockFormat::Q4_1 | BlockFormat::Q4K => &[0, 2],
            BlockFormat::Q6K => &[208],
        };
        for start in starts {
            block[*start..*start + 2].copy_from_slice(&scale);
        }
    }
    bytes
}

/// The instruction sets that this machine has.
#[cfg(test)]
pub(crate) fn levels() -> Vec<Level> {
    match crate::cpu::level() {
        Level::Avx512 => vec![Level::Avx512, Level::Avx2, Level::Portable],
        Level::Avx2 => vec![Level::Avx2, Level::Portable],
        Level::Portable => vec![Level::Portable],
    }
}
