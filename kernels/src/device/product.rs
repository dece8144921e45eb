//! A product of whole matrices, as data.

use super::Ptr;
use crate::DType;

/// `out = x · w`, row-major and whole: nothing is added, and every row is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// `[rows, k]`.
    pub x: Ptr,
    /// `[n, k]`.
    pub w: Ptr,
    /// `[rows, n]`.
    pub out: Ptr,
    /// Extents and types.
    pub shape: ProductShape,
}

/// What a way to compute a [`Product`] is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProductShape {
    /// Rows of `x` and `out`.
    pub rows: usize,
    /// Rows of `w`, the width of `out`.
    pub n: usize,
    /// Width of `x` and `w`.
    pub k: usize,
    /// Element type of `x` and `w`. Sums are f32.
    pub dtype: DType,
    /// Element type of `out`.
    pub out_dtype: DType,
}
