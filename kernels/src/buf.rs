//! Owned, aligned memory ([`Buf`]) and windows into f32 matrices ([`View`], [`ViewMut`]).

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::error::{KernelError, Result, same};

/// Element type of a [`Buf`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// Unsigned 32-bit.
    U32,
    /// Bytes (packed weights).
    U8,
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
        }
    }
}

const ALIGN: usize = 64;

/// What the system's allocator gives without being asked: only then are zeros fresh pages (calloc) and not written.
const SYSTEM_ALIGN: usize = 16;

/// Zeroed host memory, 64-byte aligned, with an element type and a row-major shape.
///
/// Pages are touched when they are first written, so a large buffer that is never used costs no memory.
pub struct Buf {
    /// What was allocated; `start` lies in it.
    base: NonNull<u8>,
    start: NonNull<u8>,
    bytes: usize,
    dtype: DType,
    shape: Vec<usize>,
}

// SAFETY: a Buf owns its memory alone; nothing in it is tied to a thread.
unsafe impl Send for Buf {}
// SAFETY: shared access only reads; every write goes through `&mut self`.
unsafe impl Sync for Buf {}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({:?} {:?})", self.dtype, self.shape)
    }
}

impl Buf {
    /// Zeros.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`] when the size overflows or the system has no memory.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Buf> {
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |all, extent| all.checked_mul(*extent))
            .ok_or(KernelError::OutOfMemory { bytes: usize::MAX })?;
        let layout = Self::layout(bytes)?;
        // SAFETY: `layout` has a non-zero size (it has room for ALIGN bytes more than asked for).
        let base = unsafe { alloc_zeroed(layout) };
        let base = NonNull::new(base).ok_or(KernelError::OutOfMemory { bytes })?;
        // SAFETY: the offset is less than ALIGN, and the allocation has ALIGN bytes more than the buffer.
        let start = unsafe { base.add(base.align_offset(ALIGN)) };
        Ok(Buf { base, start, bytes, dtype, shape: shape.to_vec() })
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// [`KernelError::Shape`] when the shape does not hold exactly `values`, [`KernelError::OutOfMemory`].
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Result<Buf> {
        let mut buf = Buf::zeros(DType::F32, shape)?;
        same("Buf::from_f32", "number of values", values.len(), buf.bytes / 4)?;
        buf.as_f32_mut()?.copy_from_slice(values);
        Ok(buf)
    }

    fn layout(bytes: usize) -> Result<Layout> {
        let rounded = bytes.checked_next_multiple_of(ALIGN).and_then(|rounded| rounded.checked_add(ALIGN));
        let rounded = rounded.ok_or(KernelError::OutOfMemory { bytes })?;
        Layout::from_size_align(rounded, SYSTEM_ALIGN).map_err(|_| KernelError::OutOfMemory { bytes })
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes that it spans.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points to at least `bytes` initialised (zeroed) bytes that live as long as self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// All bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    fn check(&self, expected: DType) -> Result<()> {
        if self.dtype == expected {
            Ok(())
        } else {
            Err(KernelError::DType { op: "Buf", found: self.dtype, expected })
        }
    }

    /// The elements as f32.
    ///
    /// # Errors
    /// [`KernelError::DType`].
    pub fn as_f32(&self) -> Result<&[f32]> {
        self.check(DType::F32)?;
        // SAFETY: the dtype was checked, `bytes` is a multiple of 4, the start is 64-byte aligned, and any bits
        // are a valid f32.
        Ok(unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.bytes / 4) })
    }

    /// The elements as f32, to write.
    ///
    /// # Errors
    /// [`KernelError::DType`].
    pub fn as_f32_mut(&mut self) -> Result<&mut [f32]> {
        self.check(DType::F32)?;
        // SAFETY: as in `as_f32`; `&mut self` makes the access exclusive.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.bytes / 4) })
    }

    /// A two-dimensional f32 buffer as a view `[rows, cols]`.
    ///
    /// # Errors
    /// [`KernelError::DType`], or [`KernelError::Shape`] when it has another rank.
    pub fn view(&self) -> Result<View<'_>> {
        same("Buf::view", "rank", self.shape.len(), 2)?;
        View::new(self.as_f32()?, self.shape[0], self.shape[1])
    }

    /// A two-dimensional f32 buffer as a view `[rows, cols]`, to write.
    ///
    /// # Errors
    /// As [`Buf::view`].
    pub fn view_mut(&mut self) -> Result<ViewMut<'_>> {
        same("Buf::view_mut", "rank", self.shape.len(), 2)?;
        let (rows, cols) = (self.shape[0], self.shape[1]);
        ViewMut::new(self.as_f32_mut()?, rows, cols)
    }

    /// The first `rows` rows of a two-dimensional f32 buffer.
    ///
    /// # Errors
    /// As [`Buf::view`], and when there are fewer rows.
    pub fn head(&self, rows: usize) -> Result<View<'_>> {
        self.view()?.rows(0, rows)
    }

    /// The first `rows` rows of a two-dimensional f32 buffer, to write.
    ///
    /// # Errors
    /// As [`Buf::view`], and when there are fewer rows.
    pub fn head_mut(&mut self, rows: usize) -> Result<ViewMut<'_>> {
        self.view_mut()?.into_rows(0, rows)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Ok(layout) = Self::layout(self.bytes) {
            // SAFETY: `base` came from `alloc_zeroed` with this same layout, and is freed once.
            unsafe { dealloc(self.base.as_ptr(), layout) }
        }
    }
}

/// `rows * cols`, refused where it overflows: a product that wraps would let rows reach past the memory.
fn elements(op: &'static str, rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols).ok_or(KernelError::Unsupported { op, what: "a number of rows", value: rows })
}

/// A read-only f32 matrix `[rows, cols]`; rows lie `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> View<'a> {
    /// `data` as `[rows, cols]` without gaps.
    ///
    /// # Errors
    /// [`KernelError::Shape`].
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Result<View<'a>> {
        same("View::new", "number of values", data.len(), elements("View::new", rows, cols)?)?;
        Ok(View { data, rows, cols, stride: cols })
    }

    /// Number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        self.cols
    }

    /// Elements between the starts of two rows.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `at`.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    pub fn row(&self, at: usize) -> &'a [f32] {
        &self.data[at * self.stride..at * self.stride + self.cols]
    }

    /// Rows `from..to`.
    ///
    /// # Errors
    /// [`KernelError::Index`].
    pub fn rows(&self, from: usize, to: usize) -> Result<View<'a>> {
        if from > to || to > self.rows {
            return Err(KernelError::Index {
                op: "View::rows",
                what: "row",
                index: to,
                bound: self.rows + 1,
            });
        }
        let data = if from == to { &[] } else { &self.data[from * self.stride..] };
        Ok(View { data, rows: to - from, cols: self.cols, stride: self.stride })
    }

    /// Columns `from..to`.
    ///
    /// # Errors
    /// [`KernelError::Index`].
    pub fn cols(&self, from: usize, to: usize) -> Result<View<'a>> {
        if from > to || to > self.cols {
            return Err(KernelError::Index {
                op: "View::cols",
                what: "column",
                index: to,
                bound: self.cols + 1,
            });
        }
        let data = if self.rows == 0 { &[] } else { &self.data[from..] };
        Ok(View { data, rows: self.rows, cols: to - from, stride: self.stride })
    }

    pub(crate) fn ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }
}

/// A writable f32 matrix `[rows, cols]`; rows lie `stride` elements apart.
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> ViewMut<'a> {
    /// `data` as `[rows, cols]` without gaps.
    ///
    /// # Errors
    /// [`KernelError::Shape`].
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Result<ViewMut<'a>> {
        same("ViewMut::new", "number of values", data.len(), elements("ViewMut::new", rows, cols)?)?;
        Ok(ViewMut { data, rows, cols, stride: cols })
    }

    /// Number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn n_cols(&self) -> usize {
        self.cols
    }

    /// Row `at`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&mut self, at: usize) -> &mut [f32] {
        &mut self.data[at * self.stride..at * self.stride + self.cols]
    }

    /// The same window, read-only.
    #[must_use]
    pub fn as_view(&self) -> View<'_> {
        View { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// The same window, borrowed again.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// Rows `from..to`.
    ///
    /// # Errors
    /// [`KernelError::Index`].
    pub fn into_rows(self, from: usize, to: usize) -> Result<ViewMut<'a>> {
        if from > to || to > self.rows {
            return Err(KernelError::Index {
                op: "ViewMut::rows",
                what: "row",
                index: to,
                bound: self.rows + 1,
            });
        }
        let data = if from == to { &mut [] } else { &mut self.data[from * self.stride..] };
        Ok(ViewMut { data, rows: to - from, cols: self.cols, stride: self.stride })
    }

    pub(crate) fn raw(&mut self) -> RawRows {
        RawRows { start: self.data.as_mut_ptr(), stride: self.stride }
    }
}

/// The start of a writable matrix, for workers that write disjoint parts of it.
#[derive(Clone, Copy)]
pub(crate) struct RawRows {
    start: *mut f32,
    stride: usize,
}

// SAFETY: a RawRows is only made from an exclusive ViewMut that outlives the parallel region; every op hands each
// worker parts (rows or column ranges) that no other worker touches.
unsafe impl Send for RawRows {}
// SAFETY: as for Send.
unsafe impl Sync for RawRows {}

impl RawRows {
    /// Where `[row, col]` is. The caller keeps both inside the view that this came from.
    pub(crate) fn at(self, row: usize, col: usize) -> *mut f32 {
        // Address arithmetic only; the access is the caller's.
        self.start.wrapping_add(row * self.stride + col)
    }
}

/// An element type whose every bit pattern is a value.
pub trait Plain: Copy + private::Sealed {}
impl Plain for f32 {}
impl Plain for half::f16 {}
impl Plain for half::bf16 {}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// `bytes` as elements without a copy; `None` when they are not aligned or no whole number of elements. Elements
/// are little-endian, so on a big-endian machine this is always `None`.
#[must_use]
pub fn cast<T: Plain>(bytes: &[u8]) -> Option<&[T]> {
    if cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: every bit pattern of a Plain type is a value.
    let (before, elements, after) = unsafe { bytes.align_to::<T>() };
    (before.is_empty() && after.is_empty()).then_some(elements)
}

/// `elements` as their bytes, little-endian; on a big-endian machine this is always `None`.
#[must_use]
pub fn bytes_of<T: Plain>(elements: &[T]) -> Option<&[u8]> {
    if cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: the slice's own memory, for as long as it is borrowed. The trait is sealed: floats, which have no padding, so
    // that every byte was written.
    Some(unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_buffer_costs_no_memory_until_it_is_written() {
        let resident = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
            statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages")
        };
        let before = resident();
        let buf = Buf::zeros(DType::F32, &[64 << 20]).expect("256 MiB");
        assert!(resident() < before + (16 << 20) / 4096, "it was touched");
        assert_eq!(buf.as_f32().expect("f32").as_ptr().align_offset(ALIGN), 0);
        assert_eq!(buf.as_f32().expect("f32")[(64 << 20) - 1], 0.0);
    }

    #[test]
    fn extents_whose_product_wraps_are_refused() {
        let half = 1_usize << (usize::BITS - 1);
        assert!(View::new(&[], half, 2).is_err());
        assert!(ViewMut::new(&mut [], half, 2).is_err());
        assert!(Buf::from_f32(&[], &[half, 2]).is_err());
        assert!(View::new(&[], 0, usize::MAX).is_ok());
    }
}
