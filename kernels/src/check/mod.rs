//! Inputs and comparisons that unit tests, benches and a later check on a device share.

mod random;

pub use random::Random;

/// Panics unless the two slices agree within `tolerance`, relative to the larger of 1 and the expected magnitude.
///
/// # Panics
/// With the first pair that differs.
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        let close = (a - b).abs() <= tolerance * b.abs().max(1.0);
        assert!(close || a.to_bits() == b.to_bits(), "element {i}: {a} is not {b}");
    }
}

/// Panics unless the two slices are equal bit for bit.
///
/// # Panics
/// With the first pair that differs.
pub fn assert_same_bits(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "element {i}: {a:e} is not {b:e} bit for bit");
    }
}
