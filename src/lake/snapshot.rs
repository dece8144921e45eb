//! One version of a lake, as one viewer sees it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::error::Result;
use super::lakes::Lake;
use super::rows::{ChunkRow, DocumentRow};
use super::state::State;

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

impl Lake {
    /// The newest version, or the one that `as_of` names, as `viewer` sees it. The only door to reading.
    ///
    /// # Errors
    /// [`LakeError::NoVersion`](super::LakeError::NoVersion) or [`LakeError::Expired`](super::LakeError::Expired) for
    /// a version that is not there, or what reading it said.
    pub async fn snapshot(self: &Arc<Self>, as_of: Option<AsOf>, viewer: &Viewer) -> Result<Snapshot> {
        let state = match as_of {
            None => self.newest().await?,
            Some(as_of) => self.version_as_of(&as_of).await?,
        };
        Ok(Snapshot { lake: self.clone(), state, viewer: viewer.clone() })
    }
}

/// One version of a lake, as one viewer sees it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(super) lake: Arc<Lake>,
    pub(super) state: Arc<State>,
    viewer: Viewer,
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

    pub(super) fn visible<'a>(&'a self, filter: &'a DocumentFilter) -> impl Iterator<Item = &'a DocumentRow> {
        self.state.rows().filter(|document| self.viewer.sees(document) && filter.takes(document))
    }

    /// The visible versions of documents; `None` when that is all of them.
    pub(super) fn visible_ingests(&self) -> Option<HashSet<&str>> {
        self.viewer.groups.as_ref()?;
        let visible = self.state.rows().filter(|document| self.viewer.sees(document));
        Some(visible.map(|document| document.ingest_id.as_str()).collect())
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
        self.state.row(document_id).filter(|document| self.viewer.sees(document)).cloned()
    }

    /// A document's chunks in order.
    ///
    /// # Errors
    /// What reading them said.
    pub async fn chunks(&self, document_id: &str) -> Result<Vec<ChunkRow>> {
        let Some(document) = self.document(document_id) else { return Ok(Vec::new()) };
        let mut chunks = Vec::new();
        for file in self.state.chunk_files.iter().filter(|file| file.may_have(&document.ingest_id)) {
            let file = self.lake.chunk_file(&file.path).await?;
            chunks.extend(file.rows.iter().filter(|chunk| chunk.ingest_id == document.ingest_id).cloned());
        }
        chunks.sort_by_key(|chunk| chunk.ordinal);
        Ok(chunks)
    }

    /// One chunk, if its document is visible.
    ///
    /// # Errors
    /// What reading it said.
    pub async fn chunk_by_id(&self, document_id: &str, chunk_id: &str) -> Result<Option<ChunkRow>> {
        let Some(document) = self.document(document_id) else { return Ok(None) };
        self.chunk(&document.ingest_id, chunk_id).await
    }

    pub(super) async fn chunk(&self, ingest_id: &str, chunk_id: &str) -> Result<Option<ChunkRow>> {
        for file in self.state.chunk_files.iter().filter(|file| file.may_have(ingest_id)) {
            let file = self.lake.chunk_file(&file.path).await?;
            if let Some(row) = file.by_id.get(chunk_id).map(|row| &file.rows[*row as usize])
                && row.ingest_id == ingest_id
            {
                return Ok(Some(row.clone()));
            }
        }
        Ok(None)
    }

    /// Vectors that the last versions of `documents` have for chunks whose embedded text is one of `hashes`, by hash;
    /// none when another embedder made them.
    ///
    /// # Errors
    /// What reading them said.
    pub async fn reusable_vectors(
        &self,
        documents: &[String],
        embedder: &str,
        hashes: &HashSet<String>,
    ) -> Result<HashMap<String, Vec<f32>>> {
        let mut found = HashMap::new();
        let Some(vectors) = &self.state.vectors else { return Ok(found) };
        let ingests: HashSet<&str> = documents
            .iter()
            .filter_map(|id| self.state.row(id))
            .map(|document| document.ingest_id.as_str())
            .collect();
        if self.embedder() != Some(embedder) || hashes.is_empty() || ingests.is_empty() {
            return Ok(found);
        }
        let mut hash_of: HashMap<String, String> = HashMap::new();
        for file in &self.state.chunk_files {
            if ingests.iter().any(|ingest| file.may_have(ingest)) {
                let file = self.lake.chunk_file(&file.path).await?;
                let wanted = file.rows.iter().filter(|chunk| {
                    ingests.contains(chunk.ingest_id.as_str()) && hashes.contains(&chunk.embed_text_hash)
                });
                hash_of.extend(wanted.map(|chunk| (chunk.chunk_id.clone(), chunk.embed_text_hash.clone())));
            }
        }
        if hash_of.is_empty() {
            return Ok(found);
        }
        for (chunk_id, vector) in vectors.vectors_of(&ingests).await? {
            if let Some(hash) = hash_of.remove(&chunk_id) {
                found.insert(hash, vector);
            }
        }
        Ok(found)
    }
}
