//! Why a file was not ingested.
//!
//! Only [`IngestError::Refused`] is about the file. All else may be gone at the next try, and what was acknowledged is
//! kept until then.

/// Why a file was not ingested.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The file itself is the reason; trying again will not help.
    #[error("{name}: {reason}")]
    Refused {
        /// The file.
        name: String,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// Reading or keeping it failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The embedder.
    #[error(transparent)]
    Embed(#[from] crate::embed::EmbedError),
    /// The lake.
    #[error(transparent)]
    Lake(#[from] crate::lake::LakeError),
}
