//! From files to a commit: parse, chunk, embed, write.
//!
//! A commit costs the same for one small file and for a hundred, so files go in groups ([`Pipeline::groups`]), each one
//! commit. Each file of a group has an outcome of its own: one that is refused takes nothing from the others.

mod bundle;
mod unpack;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;

use crate::embed::EmbedHandle;
use crate::lake::{
    Applied, DocumentChange, DocumentFilter, DocumentRow, Lake, LakeError, Lakes, Snapshot, Viewer,
    document_id,
};

use super::chunk;
use super::error::IngestError;
use super::worker::{WorkerLimits, program};
use bundle::Cut;
use unpack::{Content, Root, Tree, blocking, digests};

/// The parsers' name and version, kept with every document.
const PARSER: &str = "tarn-parse/1";
/// Files of one commit.
const GROUP_FILES: usize = 64;
/// Bytes of the files of one commit, about two thousand chunks of text; a larger file has a commit of its own.
const GROUP_BYTES: u64 = 4 << 20;
/// Originals copied at a time: each waits for the disk.
const STORE_AT_A_TIME: usize = 8;

/// How files are ingested.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// The program whose `parse-worker` parses; usually this one.
    pub worker_exe: PathBuf,
    /// What parsing one document may take.
    pub limits: WorkerLimits,
    /// Tokens of a chunk.
    pub chunk_tokens: usize,
    /// Documents parsed at a time.
    pub parallel: usize,
}

/// A file to ingest.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// What identifies the document: an upload's name, a path.
    pub source_uri: String,
    /// What it is called.
    pub name: String,
    /// Its bytes.
    pub path: PathBuf,
    /// Collections that it belongs to.
    pub collections: Vec<String>,
    /// Groups that may see it; empty for all.
    pub acl: Vec<String>,
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IngestOutcome {
    /// The document.
    pub document_id: String,
    /// The lake's version that has it.
    pub version: i64,
    /// Its chunks, those of the files inside it included.
    pub chunks: usize,
    /// Files inside it that became documents.
    pub children: usize,
    /// The same bytes by the same pipeline were there.
    pub unchanged: bool,
    /// What a reader should know.
    pub warnings: Vec<String>,
}

/// What became of the files of a group, in order.
pub type GroupOutcome = Vec<Result<IngestOutcome, IngestError>>;

/// Ingests files; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pipeline {
    config: Arc<PipelineConfig>,
    embed: EmbedHandle,
    lakes: Arc<Lakes>,
    parsing: Arc<Semaphore>,
}

impl Pipeline {
    /// Puts the parts together.
    #[must_use]
    pub fn new(config: PipelineConfig, embed: EmbedHandle, lakes: Arc<Lakes>) -> Pipeline {
        let parsing = Arc::new(Semaphore::new(config.parallel.max(1)));
        let config = PipelineConfig { worker_exe: program(config.worker_exe), ..config };
        Pipeline { config: Arc::new(config), embed, lakes, parsing }
    }

    /// The lakes that it writes to.
    #[must_use]
    pub fn lakes(&self) -> &Arc<Lakes> {
        &self.lakes
    }

    fn chunker(&self) -> String {
        format!("{};tokens={}", chunk::NAME, self.config.chunk_tokens)
    }

    /// Files in groups for [`Pipeline::ingest`], in order. Looks at their sizes.
    #[must_use]
    pub fn groups(files: Vec<SourceFile>) -> Vec<Vec<SourceFile>> {
        let mut groups: Vec<Vec<SourceFile>> = Vec::new();
        let (mut bytes, mut names) = (0, HashSet::new());
        for file in files {
            let size = std::fs::metadata(&file.path).map_or(0, |metadata| metadata.len());
            bytes += size;
            // One document twice in a commit: children of the first would outlive it.
            let again = !names.insert(file.source_uri.clone());
            match groups.last_mut() {
                Some(group) if group.len() < GROUP_FILES && bytes <= GROUP_BYTES && !again => {
                    group.push(file)
                }
                _ => {
                    (bytes, names) = (size, HashSet::from([file.source_uri.clone()]));
                    groups.push(vec![file]);
                }
            }
        }
        groups
    }

    /// Ingests the files of `group` as one commit, the files inside them included. `progress` is told what happens.
    ///
    /// A file's own error is [`IngestError::Refused`], or [`IngestError::Io`] when it cannot be read.
    ///
    /// # Errors
    /// What kept the whole group out: the embedder, the lake, the disk.
    pub async fn ingest(
        &self,
        customer: &str,
        group: Vec<SourceFile>,
        progress: &(dyn Fn(&str) + Sync),
    ) -> Result<GroupOutcome, IngestError> {
        let lake = self.lakes.customer(customer)?;
        let snapshot = lake.snapshot(None, &Viewer::all()).await?;
        self.check_embedder(&snapshot)?;
        progress("parsing");
        let paths = group.iter().map(|source| source.path.clone()).collect();
        let (mut outcomes, mut roots) = (Vec::new(), Vec::new());
        for (at, (source, content)) in group.into_iter().zip(digests(paths).await?).enumerate() {
            outcomes.push(match content {
                Err(error) => Some(Err(error)),
                Ok(content) => {
                    let unchanged = self.unchanged(customer, &snapshot, &source, &content);
                    if unchanged.is_none() {
                        roots.push(Root { at, source, content });
                    }
                    unchanged.map(Ok)
                }
            });
        }
        if !roots.is_empty() {
            let dir = lake.dir().to_owned();
            // In the lake: `/tmp` is often memory, and an archive may unpack to gigabytes.
            let folder = blocking(move || scratch(&dir)).await??;
            let trees = self.unpack(customer, roots, folder.path()).await?;
            for (at, outcome) in self.write(customer, &lake, &snapshot, trees, progress).await? {
                outcomes[at] = Some(outcome);
            }
            let _ = blocking(move || drop(folder)).await;
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Nothing is parsed and embedded for a lake that will not take it.
    fn check_embedder(&self, snapshot: &Snapshot) -> Result<(), IngestError> {
        match snapshot.embedder() {
            Some(lake)
                if lake != self.embed.fingerprint() && snapshot.count(&DocumentFilter::default()) > 0 =>
            {
                Err(LakeError::Embedder { lake: lake.to_owned() }.into())
            }
            _ => Ok(()),
        }
    }

    /// The outcome of a file whose bytes are there already, made by this pipeline.
    fn unchanged(
        &self,
        customer: &str,
        snapshot: &Snapshot,
        source: &SourceFile,
        content: &Content,
    ) -> Option<IngestOutcome> {
        let id = document_id(customer, &source.source_uri);
        let old = snapshot.document(&id).filter(|old| {
            old.content_sha256 == content.sha256
                && (old.parser.as_str(), &old.chunker, &old.embedder)
                    == (PARSER, &self.chunker(), &self.embed.fingerprint())
        })?;
        let inside = match old.media_type.as_deref() {
            Some("application/zip") => descendants(snapshot, &id),
            _ => Vec::new(),
        };
        let chunks = inside.iter().map(|child| child.chunk_count).sum::<i32>() + old.chunk_count;
        Some(IngestOutcome {
            document_id: id,
            version: snapshot.version(),
            chunks: chunks as usize,
            children: inside.len(),
            unchanged: true,
            warnings: old.warnings,
        })
    }

    /// Chunks, embeds and commits; outcomes by the files' places in the group.
    async fn write(
        &self,
        customer: &str,
        lake: &Arc<Lake>,
        snapshot: &Snapshot,
        trees: Vec<Tree>,
        progress: &(dyn Fn(&str) + Sync),
    ) -> Result<Vec<(usize, Result<IngestOutcome, IngestError>)>, IngestError> {
        let (mut outcomes, mut heads, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for Tree { at, files: tree } in trees {
            match tree {
                Ok(tree) => {
                    heads.push((at, files.len(), tree.len()));
                    files.extend(tree);
                }
                Err(error) => outcomes.push((at, Err(error))),
            }
        }
        if heads.is_empty() {
            return Ok(outcomes);
        }
        let cuts = self.cut_all(files).await?;
        progress(&format!("embedding {} documents", cuts.len()));
        let vectors = self.vectors(customer, snapshot, &cuts).await?;
        let mut originals = self.store_originals(lake, &cuts).await?.into_iter();
        let changes: Vec<DocumentChange> = cuts
            .into_iter()
            .map(|cut| {
                let original = if cut.parsed.parent.is_none() { originals.next() } else { None };
                DocumentChange::Put(Box::new(self.bundle(customer, cut, original, &vectors)))
            })
            .collect();
        let rows: Vec<(String, usize, Vec<String>)> = changes.iter().filter_map(head).collect();
        progress("committing");
        let receipt = lake.commit(changes).await?;
        for (at, first, count) in heads {
            let tree = &rows[first..first + count];
            outcomes.push((
                at,
                Ok(IngestOutcome {
                    document_id: tree[0].0.clone(),
                    version: receipt.version,
                    chunks: tree.iter().map(|row| row.1).sum(),
                    children: count - 1,
                    unchanged: receipt.applied.get(first) == Some(&Applied::Unchanged),
                    warnings: tree[0].2.clone(),
                }),
            ));
        }
        Ok(outcomes)
    }

    /// Keeps the bytes of the files that are not inside others. A file that was refused leaves none.
    async fn store_originals(&self, lake: &Arc<Lake>, cuts: &[Cut]) -> Result<Vec<String>, IngestError> {
        let stores: Vec<_> = cuts
            .iter()
            .filter(|cut| cut.parsed.parent.is_none())
            .map(|cut| lake.store_original(cut.parsed.source.path.clone()))
            .collect();
        let stored: Vec<_> = stream::iter(stores).buffered(STORE_AT_A_TIME).try_collect().await?;
        Ok(stored.into_iter().map(|original| original.path).collect())
    }

    /// Deletes a document and the files inside it; false when there is none.
    ///
    /// # Errors
    /// [`IngestError::Lake`].
    pub async fn delete(&self, customer: &str, document_id: &str) -> Result<bool, IngestError> {
        let change = DocumentChange::Delete { document_id: document_id.to_owned() };
        let receipt = self.lakes.customer(customer)?.commit(vec![change]).await?;
        Ok(receipt.applied == [Applied::Deleted])
    }
}

/// Id, number of chunks and warnings of a document that is put.
fn head(change: &DocumentChange) -> Option<(String, usize, Vec<String>)> {
    match change {
        DocumentChange::Put(bundle) => {
            let row = &bundle.document;
            Some((row.document_id.clone(), bundle.chunks.len(), row.warnings.clone()))
        }
        DocumentChange::Delete { .. } => None,
    }
}

/// All documents inside a document.
fn descendants(snapshot: &Snapshot, id: &str) -> Vec<DocumentRow> {
    let mut children = snapshot.documents(&DocumentFilter::default(), usize::MAX, 0);
    children.retain(|document| document.parent_document_id.is_some());
    let (mut open, mut found) = (vec![id.to_owned()], Vec::new());
    while let Some(parent) = open.pop() {
        let inside = children.iter().filter(|child| child.parent_document_id.as_ref() == Some(&parent));
        for child in inside {
            open.push(child.document_id.clone());
            found.push(child.clone());
        }
    }
    found
}

/// Where what is not finished lies in a customer's folder.
pub(super) fn scratch_dir(lake: &Path) -> PathBuf {
    lake.join("tmp")
}

fn scratch(lake: &Path) -> Result<tempfile::TempDir, IngestError> {
    let dir = scratch_dir(lake);
    std::fs::create_dir_all(&dir)
        .and_then(|()| tempfile::tempdir_in(&dir))
        .map_err(|source| IngestError::Io { path: dir.display().to_string(), source })
}

#[cfg(test)]
pub(super) mod tests;
