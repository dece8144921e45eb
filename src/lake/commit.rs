//! The one transaction: documents, chunks and vectors change together or not at all.
//!
//! Under the lock: what a dead writer left is repaired; Lance gets the new rows and loses the replaced ones; then the
//! chunks change; all of it is synced. Then the documents with the pins: **the commit point.** That is synced too, the
//! lock is released, the caller is told. Parsing and embedding, which take long, come before (decision 004).

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int32Array, StringArray};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;

use super::commit_lock::CommitLock;
use super::delta_table::{Table, TableChange};
use super::error::{LakeError, Result, io};
use super::failpoint::FailStep;
use super::lakes::Lake;
use super::parquet_file;
use super::rows::{ChunkRow, DocumentRow, to_batch};
use super::schema::{self, CHUNKS, DOCUMENTS};
use super::state::{blocking, pins};
use super::vectors::{Vectors, strings};

/// Data files of a table before the small ones are merged.
const MANY_FILES: usize = 32;

/// A document with everything that belongs to it.
#[derive(Debug, Clone, Default)]
pub struct DocumentBundle {
    /// Its row.
    pub document: DocumentRow,
    /// Its chunks.
    pub chunks: Vec<ChunkRow>,
    /// Analysed text of each chunk, terms separated by blanks.
    pub terms: Vec<String>,
    /// One vector a chunk, one after another.
    pub vectors: Vec<f32>,
}

/// One change of a commit.
#[derive(Debug, Clone)]
pub enum DocumentChange {
    /// Adds a document, or replaces the version that is there. Its children (of a ZIP) that are not put in the same
    /// commit go with the version that is replaced.
    Put(Box<DocumentBundle>),
    /// Deletes a document and its children.
    Delete {
        /// Which.
        document_id: String,
    },
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// New.
    Added,
    /// In place of an older version.
    Replaced,
    /// The same bytes by the same pipeline were there.
    Unchanged,
    /// Gone.
    Deleted,
    /// There was nothing to delete.
    NotFound,
}

/// An acknowledged commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitReceipt {
    /// The lake's version that has the changes.
    pub version: i64,
    /// One a change.
    pub applied: Vec<Applied>,
}

impl Lake {
    /// Carries out `changes` as one version, all of them or none. When this returns, they are durable. Of several
    /// changes of one document the last counts. A commit that has begun ends, whether somebody waits for it or not.
    ///
    /// # Errors
    /// [`LakeError`]; nothing of the changes is then visible.
    pub async fn commit(self: &Arc<Self>, changes: Vec<DocumentChange>) -> Result<CommitReceipt> {
        changes.iter().try_for_each(check)?;
        // A task of its own: a caller that goes away must not release the lock under a write that still runs.
        let lake = self.clone();
        let receipt = tokio::spawn(async move { lake.commit_under_lock(changes).await });
        let receipt = receipt.await.map_err(|error| LakeError::Task(error.to_string()))??;
        if let Err(error) = self.newest().await {
            tracing::warn!(%error, "the version that was just committed could not be opened yet");
        }
        Ok(receipt)
    }

    async fn commit_under_lock(&self, changes: Vec<DocumentChange>) -> Result<CommitReceipt> {
        let failpoints = self.config.failpoints;
        failpoints.at(FailStep::Prepared)?;
        let only_deletes = changes.iter().all(|change| matches!(change, DocumentChange::Delete { .. }));
        if only_deletes && !super::delta_table::exists(&self.documents_dir()) {
            return Ok(CommitReceipt { version: -1, applied: vec![Applied::NotFound; changes.len()] });
        }
        let _lock = CommitLock::acquire(&self.dir).await?;
        failpoints.at(FailStep::Locked)?;
        let mut documents = match Table::open(&self.documents_dir(), None).await? {
            Some(table) => table,
            None => Table::create(&self.documents_dir(), DOCUMENTS, &schema::documents()).await?,
        };
        let mut chunks = match Table::open(&self.chunks_dir(), None).await? {
            Some(table) => table,
            None => Table::create(&self.chunks_dir(), CHUNKS, &schema::chunks()).await?,
        };
        let pinned = pins(&documents).await?;
        let state = self.newest().await?;
        let live: HashMap<&str, &DocumentRow> =
            state.rows().map(|row| (row.document_id.as_str(), row)).collect();
        let mut lance = self
            .repair(&pinned, &mut chunks, &live.values().map(|row| row.ingest_id.clone()).collect())
            .await?;

        let plan = Plan::new(changes, &live);
        if plan.puts.is_empty() && plan.gone.is_empty() {
            return Ok(CommitReceipt { version: pinned.general_documents, applied: plan.applied });
        }
        let gone: Vec<String> = plan.gone.iter().cloned().collect();
        let mut lance_version = self.commit_vectors(&mut lance, &plan.puts, &gone).await?;
        if let Some(vectors) = &mut lance {
            if vectors.fragments().len() > MANY_FILES {
                vectors.compact().await?;
            }
            lance_version = vectors.version();
        }
        let (new_chunks, new_documents): (Vec<ChunkRow>, Vec<DocumentRow>) = {
            let (mut new_chunks, mut new_documents) = (Vec::new(), Vec::new());
            for bundle in plan.puts {
                new_chunks.extend(bundle.chunks);
                new_documents.push(bundle.document);
            }
            (new_chunks, new_documents)
        };
        let gone = Arc::new(plan.gone);
        let change = change(&chunks, schema::chunks(), new_chunks, gone.clone()).await?;
        let chunk_version =
            if change.is_empty() { chunks.version() } else { chunks.commit(change, &[]).await? };
        failpoints.at(FailStep::ChunksCommitted)?;

        let change = self::change(&documents, schema::documents(), new_documents, gone).await?;
        let pins = [("tarn/lance", lance_version as i64), ("tarn/chunks", chunk_version)];
        self.sync().await?;
        let version = documents.commit(change, &pins).await?;
        failpoints.at(FailStep::DocumentsCommitted)?;
        self.sync().await?;
        Ok(CommitReceipt { version, applied: plan.applied })
    }

    /// Everything that was written to the lake's file system is on its disk when this returns. One call for the whole
    /// file system, because deltalake and Lance do not say which files and folders they wrote.
    async fn sync(&self) -> Result<()> {
        let dir = self.dir.clone();
        blocking(move || {
            let synced = |dir: &Path| Ok(rustix::fs::syncfs(std::fs::File::open(dir)?)?);
            synced(&dir).map_err(io(&dir))
        })
        .await
    }

    async fn commit_vectors(
        &self,
        lance: &mut Option<Vectors>,
        puts: &[DocumentBundle],
        gone: &[String],
    ) -> Result<u64> {
        let with_vectors = puts.iter().find(|bundle| !bundle.chunks.is_empty());
        if let Some(first) = with_vectors {
            let dim = first.vectors.len() / first.chunks.len();
            let embedder = first.document.embedder.as_str();
            let vectors = match lance {
                Some(vectors) => vectors,
                None => lance
                    .insert(Vectors::create(&self.vectors_path(), schema::embeddings(dim, embedder)).await?),
            };
            if vectors.dim() != dim {
                return Err(LakeError::Dimension { found: vectors.dim(), wanted: dim });
            }
            if let Some(lake) = vectors.embedder().filter(|lake| lake != embedder) {
                return Err(LakeError::Embedder { lake });
            }
            vectors.append(embeddings_batch(puts, dim, embedder)?).await?;
        }
        self.config.failpoints.at(FailStep::LanceAppended)?;
        let Some(vectors) = lance else { return Ok(0) };
        if !gone.is_empty() {
            vectors.delete(gone).await?;
        }
        self.config.failpoints.at(FailStep::LanceDeleted)?;
        Ok(vectors.version())
    }
}

/// A bundle's parts must belong together; deeper than this they are not looked at.
fn check(change: &DocumentChange) -> Result<()> {
    let DocumentChange::Put(bundle) = change else { return Ok(()) };
    let (chunks, terms, numbers) = (bundle.chunks.len(), bundle.terms.len(), bundle.vectors.len());
    let ids = (&bundle.document.document_id, &bundle.document.ingest_id);
    let same = bundle.chunks.iter().all(|chunk| (&chunk.document_id, &chunk.ingest_id) == ids);
    if terms != chunks || bundle.document.chunk_count as usize != chunks || !same {
        return Err(LakeError::Bundle(format!("{chunks} chunks, {terms} texts of terms, ids agree: {same}")));
    }
    if bundle.vectors.iter().any(|number| !number.is_finite()) {
        return Err(LakeError::Bundle("a vector has a number that is not finite".to_owned()));
    }
    if (chunks == 0 && numbers > 0) || (chunks > 0 && (numbers == 0 || !numbers.is_multiple_of(chunks))) {
        return Err(LakeError::Bundle(format!("{chunks} chunks, {numbers} numbers of vectors")));
    }
    Ok(())
}

/// What a list of changes means for what is there.
struct Plan {
    puts: Vec<DocumentBundle>,
    /// Versions of documents that go.
    gone: HashSet<String>,
    applied: Vec<Applied>,
}

impl Plan {
    fn new(changes: Vec<DocumentChange>, live: &HashMap<&str, &DocumentRow>) -> Plan {
        let mut plan = Plan { puts: Vec::new(), gone: HashSet::new(), applied: Vec::new() };
        let id = |change: &DocumentChange| match change {
            DocumentChange::Delete { document_id } => document_id.clone(),
            DocumentChange::Put(bundle) => bundle.document.document_id.clone(),
        };
        let last: HashMap<String, usize> = changes.iter().map(id).zip(0..).collect();
        let put: HashSet<String> =
            changes.iter().filter(|change| matches!(change, DocumentChange::Put(_))).map(id).collect();
        let mut parents: Vec<String> = Vec::new();
        for (at, change) in changes.into_iter().enumerate() {
            let counts = last[&id(&change)] == at;
            let applied = match change {
                DocumentChange::Delete { document_id } => match live.get(document_id.as_str()) {
                    Some(row) => {
                        if counts {
                            plan.gone.insert(row.ingest_id.clone());
                            parents.push(document_id);
                        }
                        Applied::Deleted
                    }
                    None => Applied::NotFound,
                },
                DocumentChange::Put(bundle) => {
                    let row = &bundle.document;
                    let old = live.get(row.document_id.as_str());
                    let same = |old: &&&DocumentRow| {
                        old.content_sha256 == row.content_sha256 && old.pipeline() == row.pipeline()
                    };
                    if old.filter(same).is_some() {
                        Applied::Unchanged
                    } else {
                        if counts {
                            plan.gone.extend(old.map(|old| old.ingest_id.clone()));
                            parents.extend(old.map(|old| old.document_id.clone()));
                            plan.puts.push(*bundle);
                        }
                        if old.is_some() { Applied::Replaced } else { Applied::Added }
                    }
                }
            };
            plan.applied.push(applied);
        }
        // Children of what was deleted or replaced go with it, down to the last archive in an archive.
        let mut children: HashMap<&str, Vec<&DocumentRow>> = HashMap::new();
        for row in live.values().filter(|_| !parents.is_empty()) {
            if let Some(parent) = &row.parent_document_id {
                children.entry(parent).or_default().push(row);
            }
        }
        while let Some(parent) = parents.pop() {
            for row in children.get(parent.as_str()).into_iter().flatten() {
                if !put.contains(&row.document_id) && plan.gone.insert(row.ingest_id.clone()) {
                    parents.push(row.document_id.clone());
                }
            }
        }
        plan
    }
}

/// Adds `rows`, takes the rows of `gone` out of the files that have them (copy-on-write), and merges small files when
/// there are many.
async fn change<T: serde::Serialize + Send + 'static>(
    table: &Table,
    schema: SchemaRef,
    rows: Vec<T>,
    gone: Arc<HashSet<String>>,
) -> Result<TableChange> {
    let table = table.clone();
    blocking(move || change_blocking(&table, &schema, &rows, &gone)).await
}

fn change_blocking<T: serde::Serialize>(
    table: &Table,
    schema: &SchemaRef,
    rows: &[T],
    gone: &HashSet<String>,
) -> Result<TableChange> {
    let mut change = TableChange::default();
    let files = table.files()?;
    let merge = files.len() > MANY_FILES;
    let mut kept: Vec<RecordBatch> = Vec::new();
    for file in &files {
        let small = merge && file.size < 8 << 20;
        if !small && !gone.iter().any(|ingest| file.may_have(ingest)) {
            continue;
        }
        let batches = parquet_file::read(&table.dir.join(&file.path))?;
        let dead = |batch: &RecordBatch| strings(batch, "ingest_id").iter().any(|id| gone.contains(id));
        if !small && !batches.iter().any(dead) {
            continue;
        }
        change.removes.push(file.path.clone());
        for batch in batches {
            let live: arrow::array::BooleanArray =
                strings(&batch, "ingest_id").iter().map(|id| Some(!gone.contains(id))).collect();
            kept.push(arrow::compute::filter_record_batch(&batch, &live)?);
        }
    }
    if !rows.is_empty() {
        kept.push(to_batch(schema, rows)?);
    }
    let all = arrow::compute::concat_batches(schema, &kept)?;
    if all.num_rows() > 0 {
        change.adds.push(table.write_file(&all)?);
    }
    Ok(change)
}

fn embeddings_batch(puts: &[DocumentBundle], dim: usize, embedder: &str) -> Result<RecordBatch> {
    let chunks = || puts.iter().flat_map(|bundle| &bundle.chunks);
    let texts = |of: fn(&ChunkRow) -> &str| -> ArrayRef {
        Arc::new(StringArray::from(chunks().map(of).collect::<Vec<_>>()))
    };
    let numbers: Vec<f32> = puts.iter().flat_map(|bundle| bundle.vectors.iter().copied()).collect();
    if numbers.len() != chunks().count() * dim {
        return Err(LakeError::Bundle(
            "documents of one commit have vectors of different lengths".to_owned(),
        ));
    }
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let vectors = FixedSizeListArray::try_new(item, dim as i32, Arc::new(Float32Array::from(numbers)), None)?;
    let languages: StringArray = chunks().map(|chunk| chunk.language.as_deref()).collect();
    let terms: Vec<&str> = puts.iter().flat_map(|bundle| bundle.terms.iter().map(String::as_str)).collect();
    let columns: Vec<ArrayRef> = vec![
        texts(|chunk| &chunk.chunk_id),
        texts(|chunk| &chunk.ingest_id),
        texts(|chunk| &chunk.document_id),
        Arc::new(Int32Array::from_iter_values(chunks().map(|chunk| chunk.ordinal))),
        texts(|chunk| &chunk.kind),
        Arc::new(languages),
        Arc::new(vectors),
        texts(|chunk| &chunk.text),
        Arc::new(StringArray::from(terms)),
    ];
    Ok(RecordBatch::try_new(schema::embeddings(dim, embedder), columns)?)
}
