//! What can go wrong in the lake.

use std::path::PathBuf;

/// Why the lake could not read or write.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// A customer's name is not one.
    #[error(
        "`{0}` is not a customer id: use 1 to 63 of a-z, 0-9, `-` and `_`, beginning with a letter or digit"
    )]
    Customer(String),
    /// A version or time before what is kept.
    #[error("the lake as of {wanted} is not kept any more: the oldest version is {oldest}")]
    Expired {
        /// What was asked for.
        wanted: String,
        /// The oldest kept.
        oldest: i64,
    },
    /// There is no such version.
    #[error("there is no lake version {wanted}: there are versions {oldest} to {newest}")]
    NoVersion {
        /// What was asked for.
        wanted: String,
        /// The oldest kept.
        oldest: i64,
        /// The newest.
        newest: i64,
    },
    /// There is no such table.
    #[error("there is no table `{0}`: the lake has general_documents and general_chunks")]
    NoTable(String),
    /// There is no such Lance dataset.
    #[error("there is no dataset `{0}`: the lake has embeddings.lance")]
    NoDataset(String),
    /// A query that does not fit the table.
    #[error("the query does not fit the table: {0}")]
    Query(String),
    /// A table uses a feature of Delta that Tarn does not read.
    #[error("the table {} uses Delta's `{feature}`, which Tarn does not read", path.display())]
    Feature {
        /// The table.
        path: PathBuf,
        /// The feature.
        feature: String,
    },
    /// Vectors of another embedder.
    #[error(
        "the lake's vectors have {found} numbers, not {wanted}: load the embedder that made them, or re-embed the lake"
    )]
    Dimension {
        /// What the lake has.
        found: usize,
        /// What was given.
        wanted: usize,
    },
    /// Vectors of another embedder, by its fingerprint.
    #[error("the lake's vectors were made by another embedder ({lake}); load it, or re-embed the lake")]
    Embedder {
        /// What the lake says.
        lake: String,
    },
    /// A bundle whose parts do not fit together (a bug of the caller).
    #[error("the document's rows do not fit together: {0}")]
    Bundle(String),
    /// A file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A failpoint that a test set.
    #[error("failpoint at {0:?}")]
    Failpoint(super::FailStep),
    /// The Delta side.
    #[error("delta: {0}")]
    Delta(#[from] deltalake::DeltaTableError),
    /// The Lance side.
    #[error("lance: {0}")]
    Lance(#[from] lance::Error),
    /// Arrow data.
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// A Parquet file.
    #[error("parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// A computation.
    #[error(transparent)]
    Kernel(#[from] tarn_kernels::KernelError),
    /// A task of ours ended early.
    #[error("a lake task ended early: {0}")]
    Task(String),
}

pub(super) type Result<T> = std::result::Result<T, LakeError>;

pub(super) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> LakeError {
    let path = path.to_owned();
    move |source| LakeError::Io { path, source }
}
