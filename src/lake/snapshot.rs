//! One version of a lake, as one viewer sees it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use chrono::{DateTime, Utc};

use super::delta_table::{Table, exists, log_file, version_time};
use super::error::{LakeError, Result};
use super::lakes::{Lake, LakeStats};
use super::parquet_file;
use super::rows::{ChunkRow, DocumentRow, ScoredChunk, from_batch};
use super::segment::{COLUMNS, Segment};
use super::vectors::Vectors;

/// Which version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AsOf {
    /// By number.
    Version(i64),
    /// The one that was the newest at a time.
    Time(DateTime<Utc>),
}

/// Who looks: a document is visible when its `acl` is empty or meets the viewer's groups.
#[derive(Debug, Clone, Default)]
pub struct Viewer {
    groups: Option<Vec<String>>,
}

impl Viewer {
    /// Sees everything of the customer.
    #[must_use]
    pub fn all() -> Viewer {
        Viewer { groups: None }
    }

    /// Sees what has no `acl` and what one of `groups` may see.
    #[must_use]
    pub fn groups(groups: Vec<String>) -> Viewer {
        Viewer { groups: Some(groups) }
    }

    fn sees(&self, document: &DocumentRow) -> bool {
        match &self.groups {
            None => true,
            Some(groups) => {
                document.acl.is_empty() || document.acl.iter().any(|group| groups.contains(group))
            }
        }
    }
}

/// Which documents; empty lists do not filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DocumentFilter {
    /// In one of these collections.
    pub collections: Vec<String>,
    /// Of one of these types.
    pub media_types: Vec<String>,
    /// One of these.
    pub document_ids: Vec<String>,
    /// In one of these languages.
    pub languages: Vec<String>,
}

impl DocumentFilter {
    fn takes(&self, document: &DocumentRow) -> bool {
        let one =
            |all: &[String], value: Option<&String>| all.is_empty() || value.is_some_and(|v| all.contains(v));
        (self.collections.is_empty()
            || document.collections.iter().any(|name| self.collections.contains(name)))
            && one(&self.media_types, document.media_type.as_ref())
            && one(&self.document_ids, Some(&document.document_id))
            && one(&self.languages, document.language.as_ref())
    }
}

/// The versions that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Pins {
    /// Of `general_documents`: the lake's version.
    pub general_documents: i64,
    /// Of `general_chunks`.
    pub general_chunks: i64,
    /// Of `embeddings.lance`; 0 before the first vector.
    pub embeddings: i64,
}

/// A data file's chunks.
#[derive(Debug)]
pub(super) struct ChunkFile {
    pub(super) rows: Vec<ChunkRow>,
    by_id: HashMap<String, u32>,
}

/// One version's content.
#[derive(Debug)]
pub(super) struct State {
    pub(super) pins: Pins,
    pub(super) documents: Vec<Arc<Vec<DocumentRow>>>,
    pub(super) chunk_files: Vec<Arc<ChunkFile>>,
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) embedder: Option<String>,
    pub(super) dim: usize,
    vectors: Option<Vectors>,
    total_bytes: u64,
}

impl Lake {
    /// The newest version, or the one that `as_of` names, as `viewer` sees it. The only door to reading.
    ///
    /// # Errors
    /// [`LakeError::NoVersion`] for a version that is not there, or what reading it said.
    pub async fn snapshot(&self, as_of: Option<AsOf>, viewer: &Viewer) -> Result<Snapshot> {
        let state = match as_of {
            None => self.newest().await?,
            Some(as_of) => {
                let newest = self.newest().await?.pins.general_documents;
                let wanted = self.resolve(&as_of, newest)?;
                Arc::new(self.load(Some(wanted)).await?)
            }
        };
        Ok(Snapshot { state, viewer: viewer.clone(), exec: self.exec.clone() })
    }

    fn resolve(&self, as_of: &AsOf, newest: i64) -> Result<i64> {
        let dir = self.documents_dir();
        let oldest = (0..=newest).find(|version| log_file(&dir, *version).exists()).unwrap_or(0);
        let missing = |wanted: String| Err(LakeError::NoVersion { wanted, oldest, newest });
        match as_of {
            AsOf::Version(version) if (oldest..=newest).contains(version) => Ok(*version),
            AsOf::Version(version) => missing(version.to_string()),
            AsOf::Time(time) => {
                let time_us = time.timestamp_micros();
                let found =
                    (oldest..=newest).rev().find(|v| version_time(&dir, *v).is_some_and(|at| at <= time_us));
                found.map_or_else(|| missing(time.to_rfc3339()), Ok)
            }
        }
    }

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

    async fn load(&self, version: Option<i64>) -> Result<State> {
        let nothing = Pins { general_documents: -1, general_chunks: -1, embeddings: 0 };
        let mut state = State {
            pins: nothing,
            documents: Vec::new(),
            chunk_files: Vec::new(),
            segments: Vec::new(),
            embedder: None,
            dim: 0,
            vectors: None,
            total_bytes: 0,
        };
        let Some(documents) = Table::open(&self.documents_dir(), version).await? else { return Ok(state) };
        state.pins = pins(&documents).await?;
        for (path, size) in documents.files()? {
            state.total_bytes += size as u64;
            state.documents.push(self.document_file(&path)?);
        }
        if state.pins.general_chunks >= 0 && exists(&self.chunks_dir()) {
            let table = Table::open(&self.chunks_dir(), Some(state.pins.general_chunks)).await?;
            for (path, size) in table.map_or_else(|| Ok(Vec::new()), |table| table.files())? {
                state.total_bytes += size as u64;
                state.chunk_files.push(self.chunk_file(&path).await?);
            }
        }
        if state.pins.embeddings > 0
            && let Some(vectors) =
                Vectors::open(&self.vectors_path(), Some(state.pins.embeddings as u64)).await?
        {
            state.dim = vectors.dim();
            state.embedder = vectors.embedder();
            for (fragment, deleted) in vectors.fragments() {
                let segment = self.segment(&vectors, fragment, deleted).await?;
                state.total_bytes += (segment.rows() * state.dim * 4) as u64;
                state.segments.push(segment);
            }
            state.vectors = Some(vectors);
        }
        Ok(state)
    }

    fn document_file(&self, path: &str) -> Result<Arc<Vec<DocumentRow>>> {
        let known = self.cache.lock().unwrap_or_else(PoisonError::into_inner).documents.get(path).cloned();
        if let Some(rows) = known {
            return Ok(rows);
        }
        let mut rows = Vec::new();
        for batch in parquet_file::read(&self.documents_dir().join(path))? {
            rows.extend(from_batch::<DocumentRow>(&batch)?);
        }
        let rows = Arc::new(rows);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.documents.insert(path.to_owned(), rows.clone());
        Ok(rows)
    }

    async fn chunk_file(&self, path: &str) -> Result<Arc<ChunkFile>> {
        let known = self.cache.lock().unwrap_or_else(PoisonError::into_inner).chunks.get(path).cloned();
        if let Some(file) = known {
            return Ok(file);
        }
        let full = self.chunks_dir().join(path);
        let read = move || -> Result<ChunkFile> {
            let mut rows = Vec::new();
            for batch in parquet_file::read(&full)? {
                rows.extend(from_batch::<ChunkRow>(&batch)?);
            }
            let by_id = rows.iter().zip(0..).map(|(row, at)| (row.chunk_id.clone(), at)).collect();
            Ok(ChunkFile { rows, by_id })
        };
        let file =
            tokio::task::spawn_blocking(read).await.map_err(|error| LakeError::Task(error.to_string()))??;
        let file = Arc::new(file);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.chunks.insert(path.to_owned(), file.clone());
        Ok(file)
    }

    async fn segment(&self, vectors: &Vectors, fragment: u64, deleted: usize) -> Result<Arc<Segment>> {
        let known =
            self.cache.lock().unwrap_or_else(PoisonError::into_inner).segments.get(&fragment).cloned();
        // Rows that were deleted here may stand in another fragment again, after a repair.
        if let Some(segment) = known.filter(|segment| segment.deleted_when_loaded == deleted) {
            return Ok(segment);
        }
        let batches = vectors.fragment(fragment, &COLUMNS).await?;
        let dim = vectors.dim();
        let segment = tokio::task::spawn_blocking(move || Segment::new(&batches, dim, deleted))
            .await
            .map_err(|error| LakeError::Task(error.to_string()))??;
        let segment = Arc::new(segment);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.segments.insert(fragment, segment.clone());
        Ok(segment)
    }

    /// Drops decoded files that the newest version does not have (readers keep theirs alive).
    fn forget_unused(&self, state: &State) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.documents.retain(|_, rows| state.documents.iter().any(|used| Arc::ptr_eq(used, rows)));
        let chunks: HashSet<_> = state.chunk_files.iter().map(Arc::as_ptr).collect();
        cache.chunks.retain(|_, file| chunks.contains(&Arc::as_ptr(file)));
        let segments: HashSet<_> = state.segments.iter().map(Arc::as_ptr).collect();
        cache.segments.retain(|_, segment| segments.contains(&Arc::as_ptr(segment)));
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

impl State {
    pub(super) fn rows(&self) -> impl Iterator<Item = &DocumentRow> {
        self.documents.iter().flat_map(|file| file.iter())
    }

    fn stats(&self) -> LakeStats {
        LakeStats {
            version: self.pins.general_documents,
            documents: self.rows().count(),
            chunks: self.chunk_files.iter().map(|file| file.rows.len()).sum(),
            vectors: self.rows().map(|document| document.chunk_count as usize).sum(),
            total_bytes: self.total_bytes,
        }
    }
}

/// One version of a lake, as one viewer sees it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Snapshot {
    state: Arc<State>,
    viewer: Viewer,
    exec: tarn_kernels::Exec,
}

impl Snapshot {
    /// The lake's version; -1 for a lake without documents.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.state.pins.general_documents
    }

    /// The versions that foreign readers must open together.
    #[must_use]
    pub fn pins(&self) -> Pins {
        self.state.pins
    }

    /// The fingerprint of the embedder that made the vectors, if there are any.
    #[must_use]
    pub fn embedder(&self) -> Option<&str> {
        self.state.embedder.as_deref()
    }

    fn visible<'a>(&'a self, filter: &'a DocumentFilter) -> impl Iterator<Item = &'a DocumentRow> {
        self.state.rows().filter(|document| self.viewer.sees(document) && filter.takes(document))
    }

    /// Documents, newest first.
    #[must_use]
    pub fn documents(&self, filter: &DocumentFilter, limit: usize, offset: usize) -> Vec<DocumentRow> {
        let mut all: Vec<&DocumentRow> = self.visible(filter).collect();
        all.sort_by(|a, b| b.ingest_id.cmp(&a.ingest_id));
        all.into_iter().skip(offset).take(limit).cloned().collect()
    }

    /// Number of visible documents.
    #[must_use]
    pub fn count(&self, filter: &DocumentFilter) -> usize {
        self.visible(filter).count()
    }

    /// One document.
    #[must_use]
    pub fn document(&self, document_id: &str) -> Option<DocumentRow> {
        self.state
            .rows()
            .find(|document| document.document_id == document_id && self.viewer.sees(document))
            .cloned()
    }

    /// A document's chunks in order.
    #[must_use]
    pub fn chunks(&self, document_id: &str) -> Vec<ChunkRow> {
        let Some(document) = self.document(document_id) else { return Vec::new() };
        let mut chunks: Vec<ChunkRow> =
            self.live_chunks(&HashSet::from([document.ingest_id.as_str()])).cloned().collect();
        chunks.sort_by_key(|chunk| chunk.ordinal);
        chunks
    }

    fn live_chunks<'a>(&'a self, ingests: &HashSet<&str>) -> impl Iterator<Item = &'a ChunkRow> {
        let ingests: HashSet<String> = ingests.iter().map(|ingest| (*ingest).to_owned()).collect();
        self.state
            .chunk_files
            .iter()
            .flat_map(|file| &file.rows)
            .filter(move |row| ingests.contains(&row.ingest_id))
    }

    pub(super) fn vectors(&self) -> Option<&Vectors> {
        self.state.vectors.as_ref()
    }

    /// The visible versions of documents; `None` when that is all of them.
    pub(super) fn visible_ingests(&self) -> Option<Vec<String>> {
        self.viewer.groups.as_ref()?;
        let all = DocumentFilter::default();
        Some(self.visible(&all).map(|document| document.ingest_id.clone()).collect())
    }

    /// All visible chunks.
    pub(super) fn all_chunks(&self) -> Vec<ChunkRow> {
        let filter = DocumentFilter::default();
        let ingests: HashSet<&str> =
            self.visible(&filter).map(|document| document.ingest_id.as_str()).collect();
        self.live_chunks(&ingests).cloned().collect()
    }

    /// Vectors that a document's last version has for chunks whose embedded text is one of `hashes`, by hash; none
    /// when another embedder made them.
    #[must_use]
    pub fn reusable_vectors(
        &self,
        document_id: &str,
        embedder: &str,
        hashes: &HashSet<String>,
    ) -> HashMap<String, Vec<f32>> {
        if self.embedder() != Some(embedder) {
            return HashMap::new();
        }
        let chunks = self.chunks(document_id);
        let by_id: HashMap<&str, &str> = chunks
            .iter()
            .filter(|chunk| hashes.contains(&chunk.embed_text_hash))
            .map(|chunk| (chunk.chunk_id.as_str(), chunk.embed_text_hash.as_str()))
            .collect();
        let wanted: HashSet<&str> = by_id.keys().copied().collect();
        let mut found = HashMap::new();
        for segment in &self.state.segments {
            for (chunk, vector) in segment.vectors_of(&wanted) {
                found.insert(by_id[chunk].to_owned(), vector.to_vec());
            }
        }
        found
    }

    /// The `k` chunks nearest to `query`, exactly, among the documents that `filter` takes.
    ///
    /// # Errors
    /// [`LakeError::Dimension`] when the query comes from another embedder.
    pub async fn vector_search(
        &self,
        query: &[f32],
        k: usize,
        filter: &DocumentFilter,
    ) -> Result<Vec<ScoredChunk>> {
        if self.state.segments.is_empty() {
            return Ok(Vec::new());
        }
        if query.len() != self.state.dim {
            return Err(LakeError::Dimension { found: self.state.dim, wanted: query.len() });
        }
        let query = query.to_vec();
        self.search(filter, move |segments, exec| {
            let mut hits = Vec::new();
            for (at, (segment, keep)) in segments.iter().enumerate() {
                let found = segment.nearest(exec, &query, k, keep)?;
                hits.extend(found.into_iter().map(|(row, score)| (score, at, row)));
            }
            Ok(best(hits, k))
        })
        .await
    }

    /// The `k` best chunks by BM25 for analysed `terms`, among the documents that `filter` takes.
    ///
    /// # Errors
    /// When the computing task ended early.
    pub async fn text_search(
        &self,
        terms: &[String],
        k: usize,
        filter: &DocumentFilter,
    ) -> Result<Vec<ScoredChunk>> {
        let terms = terms.to_vec();
        self.search(filter, move |segments, _| {
            let rows: usize = segments.iter().map(|(segment, _)| segment.rows()).sum();
            let length: u64 = segments.iter().map(|(segment, _)| segment.total_length).sum();
            let average = (length as f32 / rows.max(1) as f32).max(1.0);
            let weighted: Vec<(&str, f32)> = terms
                .iter()
                .map(|term| {
                    let frequency: usize = segments.iter().map(|(segment, _)| segment.frequency(term)).sum();
                    let (n, f) = (rows as f32, frequency as f32);
                    (term.as_str(), (1.0 + (n - f + 0.5) / (f + 0.5)).ln())
                })
                .collect();
            let mut hits = Vec::new();
            for (at, (segment, keep)) in segments.iter().enumerate() {
                hits.extend(
                    segment.score(&weighted, average, keep).into_iter().map(|(row, score)| (score, at, row)),
                );
            }
            Ok(best(hits, k))
        })
        .await
    }

    /// Runs `rank` over the segments that have rows to see, off the async threads; resolves its `(score, segment, row)`s.
    async fn search(
        &self,
        filter: &DocumentFilter,
        rank: impl FnOnce(&[(Arc<Segment>, Vec<u64>)], &tarn_kernels::Exec) -> Result<Vec<(f32, usize, u32)>>
        + Send
        + 'static,
    ) -> Result<Vec<ScoredChunk>> {
        let (this, filter) = (self.clone(), filter.clone());
        let run = move || -> Result<Vec<ScoredChunk>> {
            let documents: HashMap<&str, &DocumentRow> =
                this.visible(&filter).map(|document| (document.ingest_id.as_str(), document)).collect();
            let live: HashSet<&str> = documents.keys().copied().collect();
            let segments: Vec<(Arc<Segment>, Vec<u64>)> = this
                .state
                .segments
                .iter()
                .filter_map(|segment| segment.live(&live).map(|keep| (segment.clone(), keep)))
                .collect();
            let hits = rank(&segments, &this.exec)?;
            Ok(hits
                .into_iter()
                .filter_map(|(score, segment, row)| {
                    let chunk = this.chunk(&segments[segment].0.chunk_ids[row as usize])?;
                    let document = documents.get(chunk.ingest_id.as_str())?;
                    Some(ScoredChunk { chunk: chunk.clone(), document: document.head(), score })
                })
                .collect())
        };
        tokio::task::spawn_blocking(run).await.map_err(|error| LakeError::Task(error.to_string()))?
    }

    fn chunk(&self, chunk_id: &str) -> Option<&ChunkRow> {
        self.state
            .chunk_files
            .iter()
            .find_map(|file| file.by_id.get(chunk_id).map(|row| &file.rows[*row as usize]))
    }

    /// One chunk, if its document is visible.
    #[must_use]
    pub fn chunk_by_id(&self, document_id: &str, chunk_id: &str) -> Option<ChunkRow> {
        self.document(document_id)?;
        self.chunk(chunk_id).filter(|chunk| chunk.document_id == document_id).cloned()
    }
}

/// The `k` largest scores, ties by place.
fn best(mut hits: Vec<(f32, usize, u32)>, k: usize) -> Vec<(f32, usize, u32)> {
    hits.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    hits.truncate(k);
    hits
}
