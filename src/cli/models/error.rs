//! Why a pull fails.

use std::path::PathBuf;

use hf_hub::HFError;

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Neither a repository nor a manifest.
    #[error("`{name}` is neither a repository (owner/name) nor a known model; known are: {known}")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// The manifests.
        known: String,
    },
    /// The repository has no such file.
    #[error("{repository} has no file that matches {patterns}; it has: {files}")]
    NothingMatches {
        /// The repository.
        repository: String,
        /// What was asked for.
        patterns: String,
        /// What there is.
        files: String,
    },
    /// Several quantisations of one model.
    #[error(
        "{repository} has several .gguf files; name one with --include, such as --include '{first}': {files}"
    )]
    WhichGguf {
        /// The repository.
        repository: String,
        /// One of them.
        first: String,
        /// All of them.
        files: String,
    },
    /// A path that leaves the folder.
    #[error("the hub names a file `{path}`, which is not a path inside a folder; nothing was written")]
    UnsafePath {
        /// The path.
        path: String,
    },
    /// The disk is too small.
    #[error(
        "{needed} more bytes are needed in {path}, but the disk has {free} free; make room and pull again"
    )]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// Bytes that are missing.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The bytes are not those that were promised.
    #[error(
        "{file} has the SHA-256 {found}, but {expected} was promised; the bytes were thrown away, pull again"
    )]
    WrongHash {
        /// The file.
        file: String,
        /// What was promised.
        expected: String,
        /// What came.
        found: String,
    },
    /// The hub answered in a way that makes no sense.
    #[error("the hub's answer for {repository}@{revision} names no commit")]
    NoCommit {
        /// The repository.
        repository: String,
        /// The revision.
        revision: String,
    },
    /// Too many broken connections.
    #[error(
        "{file}: the connection broke {attempts} times in a row at byte {bytes}; pull again to go on from there"
    )]
    Broken {
        /// The file.
        file: String,
        /// How often.
        attempts: u32,
        /// Bytes that are here.
        bytes: u64,
        /// What broke at last.
        source: Box<HFError>,
    },
    /// The hub refused, or is out of reach.
    #[error("cannot read {repository} of the hub")]
    Hub {
        /// The repository.
        repository: String,
        /// Why.
        source: Box<HFError>,
    },
    /// The disk.
    #[error("{}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        source: std::io::Error,
    },
}
