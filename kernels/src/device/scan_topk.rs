//! Exact nearest rows of a matrix, `kernels/cuda/scan_topk.cu`.

use super::{Launch, Ptr, SHARED_LIMIT, by_type, extent, int};
use crate::DType;
use crate::error::{KernelError, Result};

const SCAN_THREADS: usize = 256;
const MERGE_THREADS: usize = 1024;
/// Lanes that share a row.
const LANES: usize = 8;

/// Operands of [`scan_topk`].
#[derive(Debug, Clone, Copy)]
pub struct ScanTopk {
    /// `[rows, d]`.
    pub matrix: Ptr,
    /// `[count, d]` f32.
    pub queries: Ptr,
    /// A bit a row, set: considered (bit `i` of byte `i / 8`, in whole u32), or none: all are.
    pub keep: Ptr,
    /// [`ScanTopk::scratch_bytes`] between the two launches.
    pub scratch: Ptr,
    /// `[count, k]` u32, best first, ties by lower row; `u32::MAX` where there are fewer rows.
    pub ids: Ptr,
    /// `[count, k]` f32: the dot products; minus infinity where there are fewer rows.
    pub scores: Ptr,
    /// The number of rows, u32.
    pub rows: Ptr,
    /// Element type of `matrix`.
    pub dtype: DType,
    /// Upper bound of the rows.
    pub max_rows: usize,
    /// Most parts of the rows: some blocks a multiprocessor.
    pub max_parts: usize,
    /// Number of queries.
    pub count: usize,
    /// Width of a row.
    pub d: usize,
    /// Rows that are found.
    pub k: usize,
}

impl ScanTopk {
    fn parts(&self) -> usize {
        self.max_rows.div_ceil(SCAN_THREADS).clamp(1, self.max_parts.max(1))
    }

    /// Bytes of `scratch`: the best `k` of each part.
    #[must_use]
    pub fn scratch_bytes(&self) -> usize {
        self.count * self.k * self.parts() * 8
    }
}

/// The `k` rows with the largest dot product with each query: the parts' launch, then the one that joins them.
///
/// # Errors
/// [`KernelError::Unsupported`] for a width that is no multiple of 16 bytes, or for more than shared memory holds.
pub fn scan_topk(op: &ScanTopk) -> Result<[Launch; 2]> {
    const OP: &str = "device::scan_topk";
    let unsupported = |what, value| Err(KernelError::Unsupported { op: OP, what, value });
    let wide = 16 / op.dtype.size();
    if op.d == 0 || !op.d.is_multiple_of(wide) {
        return unsupported("a width", op.d);
    }
    // The best k and a tile of candidates.
    let size = |threads: usize| (op.k + threads).next_power_of_two();
    let shared = |queries| queries * (op.d.next_multiple_of(LANES * wide) * 4 + size(SCAN_THREADS) * 8);
    let merge_shared = size(MERGE_THREADS) * 8;
    if op.k == 0 || merge_shared > SHARED_LIMIT || shared(1) > SHARED_LIMIT {
        return unsupported("a number of rows to find", op.k);
    }
    let (queries, names) = if op.count > 1 && shared(4) <= SHARED_LIMIT {
        (4, ["scan_topk_bf16_4", "scan_topk_f16_4", "scan_topk_f32_4"])
    } else {
        (1, ["scan_topk_bf16_1", "scan_topk_f16_1", "scan_topk_f32_1"])
    };
    let kernel = by_type(OP, op.dtype, names.map(Some))?;
    let (parts, k) = (int(OP, "parts", op.parts())?, int(OP, "rows to find", op.k)?);
    let blocks = extent(OP, "queries", op.count.div_ceil(queries).saturating_mul(op.parts()))?;
    let scan = Launch::new(kernel, [blocks, 1, 1], SCAN_THREADS, shared(queries))
        .ptrs(&[op.matrix, op.queries, op.keep, op.scratch, op.rows])
        .ints(&[int(OP, "queries", op.count)?, int(OP, "a width", op.d)?, k])
        .ints(&[int(OP, "candidates", size(SCAN_THREADS))?, parts]);
    let grid = [extent(OP, "queries", op.count)?, 1, 1];
    let merge = Launch::new("merge_topk", grid, MERGE_THREADS, merge_shared)
        .ptrs(&[op.scratch, op.ids, op.scores])
        .ints(&[k, int(OP, "candidates", size(MERGE_THREADS))?, parts]);
    Ok([scan, merge])
}
