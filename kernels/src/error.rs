//! What an op refuses.

/// Result of an op.
pub type Result<T> = std::result::Result<T, KernelError>;

/// Arguments that an op cannot work with. Each names the op.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Two shapes that must agree do not.
    #[error("{op}: {what} is {found}, expected {expected}")]
    Shape {
        /// The op.
        op: &'static str,
        /// Which extent.
        what: &'static str,
        /// What it is.
        found: usize,
        /// What it must be.
        expected: usize,
    },
    /// An index points outside.
    #[error("{op}: {what} {index} is outside of {bound}")]
    Index {
        /// The op.
        op: &'static str,
        /// What was indexed.
        what: &'static str,
        /// The index.
        index: usize,
        /// The first index that is too large.
        bound: usize,
    },
    /// A value that the op does not support.
    #[error("{op}: {what} of {value} is not supported")]
    Unsupported {
        /// The op.
        op: &'static str,
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: usize,
    },
    /// An element type other than the one needed.
    #[error("{op}: element type is {found:?}, expected {expected:?}")]
    DType {
        /// The op.
        op: &'static str,
        /// What it is.
        found: crate::DType,
        /// What it must be.
        expected: crate::DType,
    },
    /// A device or its driver refused or failed.
    #[error("{what}")]
    Device {
        /// What it says, with the kernel or the call.
        what: String,
    },
    /// Memory could not be had.
    #[error("cannot allocate {bytes} bytes")]
    OutOfMemory {
        /// How much was asked for.
        bytes: usize,
    },
}

/// `found == expected`, or [`KernelError::Shape`].
pub(crate) fn same(op: &'static str, what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(KernelError::Shape { op, what, found, expected }) }
}

/// `found >= least`, or [`KernelError::Shape`].
pub(crate) fn at_least(op: &'static str, what: &'static str, found: usize, least: usize) -> Result<()> {
    if found >= least { Ok(()) } else { Err(KernelError::Shape { op, what, found, expected: least }) }
}

/// `index < bound`, or [`KernelError::Index`].
pub(crate) fn inside(op: &'static str, what: &'static str, index: usize, bound: usize) -> Result<()> {
    if index < bound { Ok(()) } else { Err(KernelError::Index { op, what, index, bound }) }
}
