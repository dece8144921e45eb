//! Owned, aligned host memory with an element type and a shape.
//!
//! Rejected: `Vec<f32>`. A vector aligns to its element, so a 64-byte load may straddle two cache lines, and a
//! buffer that later lives on a device needs dtype and shape beside a pointer anyway.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use half::{bf16, f16};

use crate::error::{KernelError, Result, expect_shape};
use crate::view::{View, ViewMut};
use crate::DType;

/// Cache line and AVX-512 register width: every buffer starts on such a boundary.
pub(crate) const ALIGN: usize = 64;

/// Owned, zero-initialised, 64-byte aligned memory with a dtype and a shape.
#[derive(Debug)]
pub struct Buf {
    ptr: NonNull<u8>,
    dtype: DType,
    shape: Vec<usize>,
}

// SAFETY: a Buf owns its allocation exclusively, as Vec does; shared access is read-only through &self.
unsafe impl Send for Buf {}
// SAFETY: as above: &Buf hands out shared slices only.
unsafe impl Sync for Buf {}

/// An element type that a [`Buf`] can be read as.
pub(crate) trait Element: Copy + 'static {
    const DTYPE: DType;
}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}
impl Element for u32 {
    const DTYPE: DType = DType::U32;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}

impl Buf {
    /// Zeroed memory for `shape` elements of `dtype`.
    ///
    /// # Panics
    /// When the size overflows the address space; running out of memory aborts, as for `Vec`.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Buf {
        let layout = Self::layout(dtype, shape);
        if layout.size() == 0 {
            return Buf { ptr: NonNull::<Aligned>::dangling().cast(), dtype, shape: shape.to_vec() };
        }
        // SAFETY: the layout's size was just checked to be nonzero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Buf { ptr, dtype, shape: shape.to_vec() }
    }

    /// A copy of `values` with `shape`.
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Result<Buf> {
        expect_shape("Buf::from_f32", "values", &[values.len()], &[shape.iter().product()])?;
        let mut buf = Buf::zeros(DType::F32, shape);
        buf.as_f32_mut()?.copy_from_slice(values);
        Ok(buf)
    }

    fn layout(dtype: DType, shape: &[usize]) -> Layout {
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |product, &dim| product.checked_mul(dim))
            .expect("a buffer's size fits the address space");
        Layout::from_size_align(bytes, ALIGN).expect("a buffer's size fits the address space")
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }

    pub(crate) fn slice<T: Element>(&self) -> Result<&[T]> {
        self.expect_dtype(T::DTYPE)?;
        // SAFETY: the dtype was just checked, the allocation holds len() initialised elements and is 64-byte aligned.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), self.len()) })
    }

    pub(crate) fn slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.expect_dtype(T::DTYPE)?;
        // SAFETY: as in `slice`, and &mut self makes the borrow exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().cast(), self.len()) })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        // SAFETY: the allocation holds bytes() initialised bytes, and every element type is plain bytes.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes()) }
    }

    pub(crate) fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_bytes`; every bit pattern is a value of every element type.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes()) }
    }

    fn expect_dtype(&self, expected: DType) -> Result<()> {
        if self.dtype == expected {
            return Ok(());
        }
        Err(KernelError::DType { op: "Buf", what: "the buffer", found: self.dtype, expected })
    }

    /// The elements as `f32`; an error for another dtype.
    pub fn as_f32(&self) -> Result<&[f32]> {
        self.slice()
    }

    /// The elements as `f32`, writable.
    pub fn as_f32_mut(&mut self) -> Result<&mut [f32]> {
        self.slice_mut()
    }

    /// The elements as `bf16`.
    pub fn as_bf16(&self) -> Result<&[bf16]> {
        self.slice()
    }

    /// The elements as `u32`.
    pub fn as_u32(&self) -> Result<&[u32]> {
        self.slice()
    }

    /// The elements as `u32`, writable.
    pub fn as_u32_mut(&mut self) -> Result<&mut [u32]> {
        self.slice_mut()
    }

    fn rows_cols(&self) -> (usize, usize) {
        match self.shape.split_last() {
            None => (1, 1),
            Some((&cols, leading)) => (leading.iter().product(), cols),
        }
    }

    /// The buffer as a matrix `[product of the leading dimensions, last dimension]`.
    pub fn view(&self) -> View<'_> {
        let (rows, cols) = self.rows_cols();
        // SAFETY: the allocation holds rows * cols elements of the dtype and outlives the borrow of self.
        unsafe { View::from_raw(self.ptr.as_ptr(), self.dtype, rows, cols, cols) }
    }

    /// The buffer as a writable matrix `[product of the leading dimensions, last dimension]`.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let (rows, cols) = self.rows_cols();
        // SAFETY: as in `view`, and &mut self makes the borrow exclusive.
        unsafe { ViewMut::from_raw(self.ptr.as_ptr(), self.dtype, rows, cols, cols) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let layout = Self::layout(self.dtype, &self.shape);
        if layout.size() != 0 {
            // SAFETY: a nonzero layout means that `zeros` allocated it with the same dtype and shape.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}

#[repr(align(64))]
struct Aligned;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zeroed_and_aligned() {
        let buf = Buf::zeros(DType::F32, &[3, 5]);
        assert_eq!(buf.as_f32().unwrap(), [0.0; 15]);
        assert_eq!(buf.as_f32().unwrap().as_ptr() as usize % ALIGN, 0);
        assert_eq!((buf.view().rows_len(), buf.view().cols_len()), (3, 5));
    }

    #[test]
    fn reading_as_another_dtype_is_an_error() {
        assert!(Buf::zeros(DType::U32, &[4]).as_f32().is_err());
    }

    #[test]
    fn an_empty_buffer_can_be_viewed_and_dropped() {
        let buf = Buf::zeros(DType::F32, &[0, 7]);
        assert!(buf.as_f32().unwrap().is_empty());
        assert_eq!(buf.view().rows_len(), 0);
    }
}
