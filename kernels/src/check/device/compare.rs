//! Element types on the wire, and how far a result may be from the reference.

use half::{bf16, f16};

use super::CheckDevice;
use crate::DType;
use crate::device::Ptr;
use crate::device::Use;

/// The element types that activations have.
pub(super) const FLOATS: [DType; 3] = [DType::BF16, DType::F16, DType::F32];
/// Those that tensor cores take.
pub(super) const HALVES: [DType; 2] = [DType::BF16, DType::F16];

/// Values as they are in device memory, and what they are there.
pub(super) struct Tensor {
    pub(super) bytes: Vec<u8>,
    pub(super) values: Vec<f32>,
}

/// `values` rounded to `dtype`.
pub(super) fn tensor(dtype: DType, values: &[f32]) -> Tensor {
    let bytes: Vec<u8> = match dtype {
        DType::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    Tensor { values: floats(dtype, &bytes), bytes }
}

/// The elements of `bytes`.
pub(super) fn floats(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let pair = |bytes: &[u8]| [bytes[0], bytes[1]];
    match dtype {
        DType::BF16 => bytes.chunks_exact(2).map(|at| bf16::from_le_bytes(pair(at)).to_f32()).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|at| f16::from_le_bytes(pair(at)).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|at| f32::from_le_bytes([at[0], at[1], at[2], at[3]])).collect(),
    }
}

/// A buffer that is only read.
pub(super) fn read_only(device: &mut dyn CheckDevice, name: &str, bytes: &[u8]) -> Result<Ptr, String> {
    let at = device.alloc(name, bytes.len(), Use::Read)?;
    device.upload(at, 0, bytes)?;
    Ok(at)
}

/// The same for u32.
pub(super) fn indices(device: &mut dyn CheckDevice, name: &str, values: &[u32]) -> Result<Ptr, String> {
    let bytes: Vec<u8> = values.iter().flat_map(|at| at.to_le_bytes()).collect();
    read_only(device, name, &bytes)
}

/// A buffer of floats, back on the host.
pub(super) fn fetch(
    device: &mut dyn CheckDevice,
    from: Ptr,
    dtype: DType,
    len: usize,
) -> Result<Vec<f32>, String> {
    let mut bytes = vec![0; len * dtype.size()];
    device.download(from, 0, &mut bytes)?;
    Ok(floats(dtype, &bytes))
}

/// The same for u32.
pub(super) fn fetch_indices(device: &mut dyn CheckDevice, from: Ptr, len: usize) -> Result<Vec<u32>, String> {
    let mut bytes = vec![0; len * 4];
    device.download(from, 0, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|at| u32::from_le_bytes([at[0], at[1], at[2], at[3]])).collect())
}

/// The relative error of rounding to `dtype`.
pub(super) fn unit(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 2.0_f32.powi(-8),
        DType::F16 => 2.0_f32.powi(-11),
        _ => 2.0_f32.powi(-24),
    }
}

/// How far a value may be off: `relative` of itself, and `absolute`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerance {
    relative: f32,
    absolute: f32,
}

impl Tolerance {
    /// One rounding of the result to `dtype`, after sums of `terms` products in f32 whose magnitudes are about `size`.
    ///
    /// The worst case of a sum of n terms is n roundings of its largest part; roundings go both ways, so that n
    /// random ones reach some √n. Eight times that, and a few for the function around the sum, never fails by chance.
    pub(super) fn of(dtype: DType, terms: usize, size: f32) -> Tolerance {
        let single = unit(DType::F32);
        // A value near a boundary between two roundings may go to the other side: the bound is one rounding's whole.
        let relative = unit(dtype) * 1.02 + 8.0 * single;
        Tolerance { relative, absolute: 8.0 * (terms as f32).sqrt() * single * size }
    }

    /// With `absolute` for a rounding in between.
    pub(super) fn and(self, absolute: f32) -> Tolerance {
        Tolerance { absolute: self.absolute + absolute, ..self }
    }
}

/// Every element close, or which is not.
pub(super) fn close(what: &str, found: &[f32], expected: &[f32], tolerance: Tolerance) -> Result<(), String> {
    assert_eq!(found.len(), expected.len(), "{what}: a case compares equal shapes");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = tolerance.relative * expected.abs() + tolerance.absolute;
        let off = (found - expected).abs();
        if off.is_nan() || off > bound {
            return Err(format!("{what}: element {at} is {found}, expected {expected} to within {bound:e}"));
        }
    }
    Ok(())
}

/// Every element equal, or which is not.
pub(super) fn equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &[T],
    expected: &[T],
) -> Result<(), String> {
    assert_eq!(found.len(), expected.len(), "{what}: a case compares equal shapes");
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        Some(at) => Err(format!("{what}: element {at} is {:?}, expected {:?}", found[at], expected[at])),
        None => Ok(()),
    }
}

/// Says which case failed.
pub(super) fn named<T, E: std::fmt::Display>(case: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{case}: {error}"))
}
