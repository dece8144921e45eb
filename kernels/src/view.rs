//! Borrowed matrices: what operations take and write.
//!
//! A view is `[rows, cols]` with contiguous rows and a row stride. Higher ranks are not needed: every operation
//! treats leading dimensions as rows, and a column range of a fused buffer (q of qkv) is a view with a stride.

use std::marker::PhantomData;
use std::ops::Range;

use crate::error::{KernelError, Result, expect_shape};
use crate::DType;

/// A read-only matrix.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    ptr: *const u8,
    dtype: DType,
    rows: usize,
    cols: usize,
    stride: usize,
    borrow: PhantomData<&'a [u8]>,
}

/// A writable matrix.
#[derive(Debug)]
pub struct ViewMut<'a> {
    ptr: *mut u8,
    dtype: DType,
    rows: usize,
    cols: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [u8]>,
}

// SAFETY: a View is a shared borrow of plain numbers (see `from_raw`), as &[f32] is.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}
// SAFETY: a ViewMut is an exclusive borrow of plain numbers, as &mut [f32] is.
unsafe impl Send for ViewMut<'_> {}

impl<'a> View<'a> {
    /// # Safety
    /// `ptr` is aligned for `dtype`; for every row `r < rows` the `cols` elements from `r * stride` are initialised
    /// and not written to during `'a`.
    pub(crate) unsafe fn from_raw(ptr: *const u8, dtype: DType, rows: usize, cols: usize, stride: usize) -> Self {
        View { ptr, dtype, rows, cols, stride, borrow: PhantomData }
    }

    /// `values` as a contiguous `[rows, cols]` matrix.
    pub fn from_f32(values: &'a [f32], rows: usize, cols: usize) -> Result<View<'a>> {
        expect_shape("View::from_f32", "values", &[values.len()], &[rows * cols])?;
        // SAFETY: the slice holds rows * cols elements, as just checked, and is borrowed for 'a.
        Ok(unsafe { View::from_raw(values.as_ptr().cast(), DType::F32, rows, cols, cols) })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The number of rows.
    pub fn rows_len(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols_len(&self) -> usize {
        self.cols
    }

    /// The rows of `range`.
    pub fn rows(self, range: Range<usize>) -> Result<View<'a>> {
        check_range("View::rows", &range, self.rows)?;
        let offset = range.start * self.stride * self.dtype.size();
        // SAFETY: the rows of the result are rows of self, as just checked; wrapping_add: an empty range may point past the end.
        Ok(unsafe { View::from_raw(self.ptr.wrapping_add(offset), self.dtype, range.len(), self.cols, self.stride) })
    }

    /// The columns of `range`.
    pub fn cols(self, range: Range<usize>) -> Result<View<'a>> {
        check_range("View::cols", &range, self.cols)?;
        let offset = range.start * self.dtype.size();
        // SAFETY: each row of the result is a part of that row of self, as just checked.
        Ok(unsafe { View::from_raw(self.ptr.wrapping_add(offset), self.dtype, self.rows, range.len(), self.stride) })
    }

    /// Row `row` as `f32`.
    pub fn row_f32(&self, row: usize) -> Result<&'a [f32]> {
        let matrix = self.f32("View::row_f32", "the view")?;
        if row >= self.rows {
            return Err(KernelError::Index { op: "View::row_f32", what: "row", index: row, limit: self.rows });
        }
        Ok(matrix.row(row))
    }

    /// The view as an `f32` matrix, or the error that names `op` and `what`.
    pub(crate) fn f32(&self, op: &'static str, what: &'static str) -> Result<Matrix<'a>> {
        expect_f32(op, what, self.dtype)?;
        Ok(Matrix { ptr: self.ptr.cast(), rows: self.rows, cols: self.cols, stride: self.stride, borrow: PhantomData })
    }
}

impl<'a> ViewMut<'a> {
    /// # Safety
    /// As [`View::from_raw`], and nothing else reads or writes those elements during `'a`.
    pub(crate) unsafe fn from_raw(ptr: *mut u8, dtype: DType, rows: usize, cols: usize, stride: usize) -> Self {
        ViewMut { ptr, dtype, rows, cols, stride, borrow: PhantomData }
    }

    /// `values` as a contiguous, writable `[rows, cols]` matrix.
    pub fn from_f32(values: &'a mut [f32], rows: usize, cols: usize) -> Result<ViewMut<'a>> {
        expect_shape("ViewMut::from_f32", "values", &[values.len()], &[rows * cols])?;
        // SAFETY: the slice holds rows * cols elements, as just checked, and is borrowed exclusively for 'a.
        Ok(unsafe { ViewMut::from_raw(values.as_mut_ptr().cast(), DType::F32, rows, cols, cols) })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The number of rows.
    pub fn rows_len(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols_len(&self) -> usize {
        self.cols
    }

    /// A shorter borrow of the same matrix.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        // SAFETY: the result borrows self exclusively for its own, shorter life.
        unsafe { ViewMut::from_raw(self.ptr, self.dtype, self.rows, self.cols, self.stride) }
    }

    /// The matrix, read-only.
    pub fn as_view(&self) -> View<'_> {
        // SAFETY: the result borrows self, so nothing is written through self meanwhile.
        unsafe { View::from_raw(self.ptr, self.dtype, self.rows, self.cols, self.stride) }
    }

    /// The rows of `range`.
    pub fn rows(self, range: Range<usize>) -> Result<ViewMut<'a>> {
        check_range("ViewMut::rows", &range, self.rows)?;
        let offset = range.start * self.stride * self.dtype.size();
        // SAFETY: the rows of the result are rows of self, which is consumed.
        Ok(unsafe { ViewMut::from_raw(self.ptr.wrapping_add(offset), self.dtype, range.len(), self.cols, self.stride) })
    }

    /// The columns of `range`.
    pub fn cols(self, range: Range<usize>) -> Result<ViewMut<'a>> {
        check_range("ViewMut::cols", &range, self.cols)?;
        let offset = range.start * self.dtype.size();
        // SAFETY: each row of the result is a part of that row of self, which is consumed.
        Ok(unsafe { ViewMut::from_raw(self.ptr.wrapping_add(offset), self.dtype, self.rows, range.len(), self.stride) })
    }

    pub(crate) fn f32(&mut self, op: &'static str, what: &'static str) -> Result<MatrixMut<'_>> {
        expect_f32(op, what, self.dtype)?;
        Ok(MatrixMut { ptr: self.ptr.cast(), rows: self.rows, cols: self.cols, stride: self.stride, borrow: PhantomData })
    }
}

fn expect_f32(op: &'static str, what: &'static str, found: DType) -> Result<()> {
    if found == DType::F32 {
        return Ok(());
    }
    Err(KernelError::DType { op, what, found, expected: DType::F32 })
}

fn check_range(op: &'static str, range: &Range<usize>, limit: usize) -> Result<()> {
    if range.start <= range.end && range.end <= limit {
        return Ok(());
    }
    Err(KernelError::Index { op, what: "range end", index: range.end.max(range.start), limit: limit + 1 })
}

/// An `f32` view after its dtype was checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    ptr: *const f32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    stride: usize,
    borrow: PhantomData<&'a [f32]>,
}

// SAFETY: a shared borrow of floats, see View.
unsafe impl Send for Matrix<'_> {}
// SAFETY: as above.
unsafe impl Sync for Matrix<'_> {}

impl<'a> Matrix<'a> {
    #[inline]
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows);
        // SAFETY: the row lies below `rows`, and View::from_raw promises `cols` elements from row * stride.
        unsafe { std::slice::from_raw_parts(self.ptr.add(row * self.stride), self.cols) }
    }
}

/// A writable `f32` view after its dtype was checked.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a> {
    ptr: *mut f32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

impl MatrixMut<'_> {
    #[inline]
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        // SAFETY: &mut self excludes every other access for as long as the row is borrowed.
        unsafe { self.shared().row(row) }
    }

    /// A handle that workers of a team may write disjoint parts through.
    pub(crate) fn shared(&mut self) -> SharedRows<'_> {
        SharedRows { ptr: self.ptr, rows: self.rows, cols: self.cols, stride: self.stride, borrow: PhantomData }
    }
}

/// A writable matrix that workers share: each writes parts that no other touches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedRows<'a> {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: access goes through `part`, whose callers promise that parts in use do not overlap.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    /// `len` elements of `row` from column `start` on; bounds are checked.
    ///
    /// # Safety
    /// No other live slice, of any thread, overlaps the part.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, row: usize, start: usize, len: usize) -> &'a mut [f32] {
        assert!(row < self.rows && start + len <= self.cols);
        // SAFETY: in bounds by the assertion; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(row * self.stride + start), len) }
    }

    /// The whole of `row`.
    ///
    /// # Safety
    /// As [`SharedRows::part`].
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn row(&self, row: usize) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { self.part(row, 0, self.cols) }
    }
}

#[cfg(test)]
mod tests {
    use crate::Buf;

    #[test]
    fn a_column_range_of_rows_keeps_the_stride() {
        let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let buf = Buf::from_f32(&values, &[3, 4]).unwrap();
        let part = buf.view().rows(1..3).unwrap().cols(1..3).unwrap();
        assert_eq!(part.row_f32(0).unwrap(), [5.0, 6.0]);
        assert_eq!(part.row_f32(1).unwrap(), [9.0, 10.0]);
        assert!(part.row_f32(2).is_err());
    }

    #[test]
    fn ranges_outside_the_matrix_are_errors() {
        let buf = Buf::from_f32(&[0.0; 12], &[3, 4]).unwrap();
        assert!(buf.view().rows(2..4).is_err());
        assert!(buf.view().cols(4..5).is_err());
        assert_eq!(buf.view().rows(3..3).unwrap().rows_len(), 0);
    }
}
