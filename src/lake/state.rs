//! One version's content: documents at once, chunks and the search index when somebody asks for them.
//!
//! An ingest needs to know which documents there are and nothing else, so the rest is loaded by the first reader that
//! needs it. What was decoded is kept by file (or Lance fragment), because neither ever changes.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::delta_table::{DataFile, Table, exists, log_file, version_time};
use super::error::{LakeError, Result};
use super::lakes::{Lake, LakeStats};
use super::parquet_file;
use super::rows::{ChunkRow, DocumentRow, from_batch};
use super::segment::{COLUMNS, Segment};
use super::snapshot::{AsOf, Pins};
use super::vectors::Vectors;

/// Old versions that stay decoded.
const OLD_VERSIONS: usize = 4;

/// A data file's chunks.
#[derive(Debug)]
pub(super) struct ChunkFile {
    pub(super) rows: Vec<ChunkRow>,
    pub(super) by_id: HashMap<String, u32>,
}

/// One version's content.
#[derive(Debug)]
pub(super) struct State {
    pub(super) pins: Pins,
    documents: Vec<Arc<Vec<DocumentRow>>>,
    /// File and row by `document_id`.
    by_id: HashMap<String, (u32, u32)>,
    pub(super) chunk_files: Vec<DataFile>,
    pub(super) vectors: Option<Vectors>,
    pub(super) embedder: Option<String>,
    pub(super) dim: usize,
    segments: tokio::sync::OnceCell<Vec<Arc<Segment>>>,
    total_bytes: u64,
}

/// Decoded files, by path or fragment.
#[derive(Debug, Default)]
pub(super) struct Cache {
    documents: HashMap<String, Arc<Vec<DocumentRow>>>,
    chunks: HashMap<String, Arc<ChunkFile>>,
    segments: HashMap<u64, Arc<Segment>>,
    old: Vec<Arc<State>>,
}

impl State {
    pub(super) fn rows(&self) -> impl Iterator<Item = &DocumentRow> {
        self.documents.iter().flat_map(|file| file.iter())
    }

    pub(super) fn row(&self, document_id: &str) -> Option<&DocumentRow> {
        let (file, row) = self.by_id.get(document_id)?;
        Some(&self.documents[*file as usize][*row as usize])
    }

    fn stats(&self) -> LakeStats {
        LakeStats {
            version: self.pins.general_documents,
            documents: self.by_id.len(),
            chunks: self.rows().map(|document| document.chunk_count as usize).sum(),
            vectors: self.vectors.as_ref().map_or(0, Vectors::rows),
            total_bytes: self.total_bytes,
        }
    }
}

impl Lake {
    /// The newest version; an unchanged one costs one look at the log's folder.
    pub(super) async fn newest(&self) -> Result<Arc<State>> {
        let mut latest = self.latest.lock().await;
        if let Some(state) = &*latest {
            let next = log_file(&self.documents_dir(), state.pins.general_documents + 1);
            if state.pins.general_documents >= 0 && !next.exists() {
                return Ok(state.clone());
            }
        }
        let state = Arc::new(self.load(None).await?);
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = state.stats();
        self.forget_unused(&state);
        *latest = Some(state.clone());
        Ok(state)
    }

    /// The version that `as_of` names; the last few are kept.
    pub(super) async fn version_as_of(&self, as_of: &AsOf) -> Result<Arc<State>> {
        let newest = self.newest().await?;
        let wanted = self.resolve(as_of, newest.pins.general_documents)?;
        if wanted == newest.pins.general_documents {
            return Ok(newest);
        }
        // One old version is loaded at a time: many equal questions cost one load.
        let _turn = self.old_turn.lock().await;
        let known = self.with_cache(|cache| {
            let at = cache.old.iter().position(|state| state.pins.general_documents == wanted)?;
            let state = cache.old.remove(at);
            cache.old.push(state.clone());
            Some(state)
        });
        if let Some(state) = known {
            return Ok(state);
        }
        let state = Arc::new(self.load(Some(wanted)).await?);
        self.with_cache(|cache| {
            cache.old.push(state.clone());
            let surplus = cache.old.len().saturating_sub(OLD_VERSIONS);
            cache.old.drain(..surplus);
        });
        Ok(state)
    }

    fn resolve(&self, as_of: &AsOf, newest: i64) -> Result<i64> {
        let dir = self.documents_dir();
        let oldest = (0..=newest).find(|version| log_file(&dir, *version).exists()).unwrap_or(0);
        match as_of {
            AsOf::Version(version) if (oldest..=newest).contains(version) => Ok(*version),
            AsOf::Version(version) if (0..oldest).contains(version) => {
                Err(LakeError::Expired { wanted: version.to_string(), oldest })
            }
            AsOf::Version(version) => {
                Err(LakeError::NoVersion { wanted: version.to_string(), oldest, newest })
            }
            AsOf::Time(time) => {
                let time_us = time.timestamp_micros();
                (oldest..=newest)
                    .rev()
                    .find(|version| version_time(&dir, *version).is_some_and(|at| at <= time_us))
                    .ok_or_else(|| LakeError::Expired { wanted: time.to_rfc3339(), oldest })
            }
        }
    }

    async fn load(&self, version: Option<i64>) -> Result<State> {
        let mut state = State {
            pins: Pins { general_documents: -1, general_chunks: -1, embeddings: 0 },
            documents: Vec::new(),
            by_id: HashMap::new(),
            chunk_files: Vec::new(),
            vectors: None,
            embedder: None,
            dim: 0,
            segments: tokio::sync::OnceCell::new(),
            total_bytes: 0,
        };
        let Some(documents) = Table::open(&self.documents_dir(), version).await? else { return Ok(state) };
        state.pins = pins(&documents).await?;
        for file in documents.files()? {
            state.total_bytes += file.size;
            state.documents.push(self.document_file(file.path).await?);
        }
        for (file, rows) in (0..).zip(&state.documents) {
            let places = rows.iter().zip(0..).map(|(row, at)| (row.document_id.clone(), (file, at)));
            state.by_id.extend(places);
        }
        if state.pins.general_chunks >= 0 && exists(&self.chunks_dir()) {
            let table = Table::open(&self.chunks_dir(), Some(state.pins.general_chunks)).await?;
            state.chunk_files = table.map_or_else(|| Ok(Vec::new()), |table| table.files())?;
            state.total_bytes += state.chunk_files.iter().map(|file| file.size).sum::<u64>();
        }
        if state.pins.embeddings > 0
            && let Some(vectors) =
                Vectors::open(&self.vectors_path(), Some(state.pins.embeddings as u64)).await?
        {
            state.dim = vectors.dim();
            state.embedder = vectors.embedder();
            state.total_bytes += (vectors.rows() * state.dim * 4) as u64;
            state.vectors = Some(vectors);
        }
        Ok(state)
    }

    async fn document_file(&self, path: String) -> Result<Arc<Vec<DocumentRow>>> {
        if let Some(rows) = self.with_cache(|cache| cache.documents.get(&path).cloned()) {
            return Ok(rows);
        }
        let rows = Arc::new(read_rows::<DocumentRow>(self.documents_dir().join(&path)).await?);
        self.with_cache(|cache| cache.documents.insert(path, rows.clone()));
        Ok(rows)
    }

    pub(super) async fn chunk_file(&self, path: &str) -> Result<Arc<ChunkFile>> {
        if let Some(file) = self.with_cache(|cache| cache.chunks.get(path).cloned()) {
            return Ok(file);
        }
        let rows = read_rows::<ChunkRow>(self.chunks_dir().join(path)).await?;
        let by_id = rows.iter().zip(0..).map(|(row, at)| (row.chunk_id.clone(), at)).collect();
        let file = Arc::new(ChunkFile { rows, by_id });
        self.with_cache(|cache| cache.chunks.insert(path.to_owned(), file.clone()));
        Ok(file)
    }

    /// The search index of a version.
    pub(super) async fn segments<'a>(&self, state: &'a State) -> Result<&'a [Arc<Segment>]> {
        let load = async || {
            let Some(vectors) = &state.vectors else { return Ok(Vec::new()) };
            let mut segments = Vec::new();
            for (fragment, deleted) in vectors.fragments() {
                segments.push(self.segment(vectors, fragment, deleted, false).await?);
            }
            // Rows that this version deleted from a fragment are hidden by their document, unless a repair put them
            // back into another fragment: then they would be found twice.
            for at in 0..segments.len() {
                let (fragment, deleted) = vectors.fragments()[at];
                let stale = segments[at].deleted_when_loaded != deleted;
                if stale
                    && segments[at].shares_an_ingest(segments.iter().enumerate().filter(|(i, _)| *i != at))
                {
                    segments[at] = self.segment(vectors, fragment, deleted, true).await?;
                }
            }
            Ok::<_, LakeError>(segments)
        };
        Ok(state.segments.get_or_try_init(load).await?)
    }

    /// A fragment; an older index of it serves when it is not `exact`ly this version's that is asked for, and not more
    /// than half of it is gone.
    async fn segment(
        &self,
        vectors: &Vectors,
        fragment: u64,
        deleted: usize,
        exact: bool,
    ) -> Result<Arc<Segment>> {
        let known = self.with_cache(|cache| cache.segments.get(&fragment).cloned());
        let serves = |segment: &Arc<Segment>| {
            let gone = deleted.checked_sub(segment.deleted_when_loaded);
            gone == Some(0) || (!exact && gone.is_some_and(|gone| gone * 2 < segment.rows()))
        };
        let newer = known.as_ref().is_some_and(|segment| segment.deleted_when_loaded > deleted);
        if let Some(segment) = known.filter(serves) {
            return Ok(segment);
        }
        let batches = vectors.fragment(fragment, &COLUMNS).await?;
        let dim = vectors.dim();
        let segment = blocking(move || Segment::new(&batches, dim, deleted)).await?;
        let segment = Arc::new(segment);
        if !newer {
            self.with_cache(|cache| cache.segments.insert(fragment, segment.clone()));
        }
        Ok(segment)
    }

    fn with_cache<T>(&self, run: impl FnOnce(&mut Cache) -> T) -> T {
        run(&mut self.cache.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Drops decoded files that the newest version does not have (readers keep theirs alive).
    fn forget_unused(&self, state: &State) {
        let documents: HashSet<_> = state.documents.iter().map(Arc::as_ptr).collect();
        let chunks: HashSet<&str> = state.chunk_files.iter().map(|file| file.path.as_str()).collect();
        let fragments: HashSet<u64> =
            state.vectors.iter().flat_map(Vectors::fragments).map(|(fragment, _)| fragment).collect();
        self.with_cache(|cache| {
            cache.documents.retain(|_, rows| documents.contains(&Arc::as_ptr(rows)));
            cache.chunks.retain(|path, _| chunks.contains(path.as_str()));
            cache.segments.retain(|fragment, _| fragments.contains(fragment));
        });
    }
}

/// The versions that a version of the documents pins.
pub(super) async fn pins(documents: &Table) -> Result<Pins> {
    Ok(Pins {
        general_documents: documents.version(),
        general_chunks: documents.application_version("tarn/chunks").await?.unwrap_or(-1),
        embeddings: documents.application_version("tarn/lance").await?.unwrap_or(0),
    })
}

async fn read_rows<T: serde::de::DeserializeOwned + Send + 'static>(
    path: impl AsRef<Path> + Send + 'static,
) -> Result<Vec<T>> {
    blocking(move || {
        let mut rows = Vec::new();
        for batch in parquet_file::read(path.as_ref())? {
            rows.extend(from_batch::<T>(&batch)?);
        }
        Ok(rows)
    })
    .await
}

/// Runs `work`, which blocks, off the threads that serve requests.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| LakeError::Task(error.to_string()))?
}
