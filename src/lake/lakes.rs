//! All customers' lakes below one folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tarn_kernels::Exec;

use super::error::{LakeError, Result};
use super::failpoint::Failpoints;
use super::originals::{self, OriginalRef};
use super::state::{Cache, State};

/// Where the lakes are and how they are read.
#[derive(Debug, Clone)]
pub struct LakeConfig {
    /// The folder with one folder a customer.
    pub root: PathBuf,
    /// How long replaced and deleted versions stay.
    pub retention: Duration,
    /// Threads of a vector scan.
    pub scan_threads: usize,
    /// Where tests stop a writer.
    pub failpoints: Failpoints,
}

/// The lakes of all customers.
#[derive(Debug)]
pub struct Lakes {
    config: LakeConfig,
    exec: Exec,
    open: Mutex<HashMap<String, Arc<Lake>>>,
}

impl Lakes {
    /// Opens the root; nothing is written.
    ///
    /// # Errors
    /// [`LakeError::Io`] when the root's path cannot be made absolute.
    pub fn open(config: LakeConfig) -> Result<Lakes> {
        let root = std::path::absolute(&config.root).map_err(super::error::io(&config.root))?;
        let exec = Exec::simd(config.scan_threads);
        Ok(Lakes { config: LakeConfig { root, ..config }, exec, open: Mutex::new(HashMap::new()) })
    }

    /// The folder with one folder a customer.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.config.root
    }

    /// The lake of `customer`; it need not exist yet.
    ///
    /// # Errors
    /// [`LakeError::Customer`] for a name that cannot be one.
    pub fn customer(&self, customer: &str) -> Result<Arc<Lake>> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        let starts = customer.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if customer.len() > 63 || !starts || !customer.chars().all(valid) {
            return Err(LakeError::Customer(customer.to_owned()));
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let lake = open.entry(customer.to_owned()).or_insert_with(|| {
            Arc::new(Lake {
                customer: customer.to_owned(),
                dir: self.config.root.join(customer),
                config: self.config.clone(),
                exec: self.exec.clone(),
                latest: tokio::sync::Mutex::new(None),
                stats: Mutex::new(LakeStats::default()),
                cache: Mutex::new(Cache::default()),
                old_turn: tokio::sync::Mutex::new(()),
            })
        });
        Ok(lake.clone())
    }
}

/// What a lake holds, as of its last opened version; answered from memory.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct LakeStats {
    /// Its version; -1 for a lake without documents.
    pub version: i64,
    /// Documents.
    pub documents: usize,
    /// Chunks.
    pub chunks: usize,
    /// Vectors.
    pub vectors: usize,
    /// Bytes of all live files.
    pub total_bytes: u64,
}

/// One customer's lake.
#[derive(Debug)]
pub struct Lake {
    pub(super) customer: String,
    pub(super) dir: PathBuf,
    pub(super) config: LakeConfig,
    pub(super) exec: Exec,
    /// The newest version that was opened.
    pub(super) latest: tokio::sync::Mutex<Option<Arc<State>>>,
    pub(super) stats: Mutex<LakeStats>,
    pub(super) cache: Mutex<Cache>,
    /// Held while an old version is loaded.
    pub(super) old_turn: tokio::sync::Mutex<()>,
}

impl Lake {
    /// Whose it is.
    #[must_use]
    pub fn customer(&self) -> &str {
        &self.customer
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn documents_dir(&self) -> PathBuf {
        self.dir.join("delta").join(super::schema::DOCUMENTS)
    }

    pub(super) fn chunks_dir(&self) -> PathBuf {
        self.dir.join("delta").join(super::schema::CHUNKS)
    }

    pub(super) fn vectors_path(&self) -> PathBuf {
        self.dir.join("lance").join(super::schema::EMBEDDINGS)
    }

    /// What it holds, from memory.
    #[must_use]
    pub fn stats(&self) -> LakeStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the bytes of the file `from`, synced; equal bytes are kept once.
    ///
    /// # Errors
    /// [`LakeError::Io`].
    pub async fn store_original(&self, from: PathBuf) -> Result<OriginalRef> {
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || originals::store(&dir, &from))
            .await
            .map_err(|error| LakeError::Task(error.to_string()))?
    }

    /// Where the bytes of a document's `original` are.
    #[must_use]
    pub fn original(&self, path: &str) -> Option<PathBuf> {
        originals::locate(&self.dir, path)
    }
}
