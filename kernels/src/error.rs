//! What an operation answers when its arguments do not fit together.

use crate::DType;

/// The result of every operation of this crate.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;

/// Why an operation refused its arguments. Operations check before they compute: an error leaves outputs untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A shape differs from what the other arguments imply.
    #[error("{op}: {what} is {found:?}, expected {expected:?}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The shape that was passed.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// An element type that the operation does not compute with.
    #[error("{op}: {what} is {found:?}, expected {expected:?}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The type that was passed.
        found: DType,
        /// The type that fits.
        expected: DType,
    },
    /// An index (token id, position, slot, block, row) outside its range.
    #[error("{op}: {what} {index} is not below {limit}")]
    Index {
        /// The operation.
        op: &'static str,
        /// What the index names.
        what: &'static str,
        /// The index that was passed.
        index: usize,
        /// The first index that is too large.
        limit: usize,
    },
    /// The workspace was built for smaller inputs.
    #[error("{op}: needs a workspace of {rows} rows x {k}, this one is {max_rows} x {max_k}")]
    Workspace {
        /// The operation.
        op: &'static str,
        /// Rows that the call needs.
        rows: usize,
        /// Row length that the call needs.
        k: usize,
        /// Rows that the workspace has.
        max_rows: usize,
        /// Row length that the workspace has.
        max_k: usize,
    },
    /// A request that this crate does not implement.
    #[error("{op}: {reason}")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// What is missing, in words.
        reason: String,
    },
}

/// `Ok` when the two shapes agree, the named error when not.
pub(crate) fn expect_shape(
    op: &'static str,
    what: &'static str,
    found: &[usize],
    expected: &[usize],
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(KernelError::Shape { op, what, found: found.to_vec(), expected: expected.to_vec() })
}

/// `Ok` when every index lies below `limit`.
pub(crate) fn expect_below(
    op: &'static str,
    what: &'static str,
    indices: &[u32],
    limit: usize,
) -> Result<()> {
    match indices.iter().find(|&&i| i as usize >= limit) {
        None => Ok(()),
        Some(&i) => Err(KernelError::Index { op, what, index: i as usize, limit }),
    }
}
