//! The Lance dataset `embeddings.lance`.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, FixedSizeListArray, Float32Array, RecordBatchIterator};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::dataset::{CommitBuilder, InsertBuilder, WriteDestination, WriteMode, WriteParams};

use super::error::{LakeError, Result, io};

/// The dataset at one version.
#[derive(Debug, Clone)]
pub(super) struct Vectors {
    dataset: Arc<Dataset>,
}

impl Vectors {
    /// Version `version`, or the newest; `None` when there is no dataset.
    pub(super) async fn open(path: &Path, version: Option<u64>) -> Result<Option<Vectors>> {
        if !path.join("_versions").exists() {
            return Ok(None);
        }
        let mut builder = DatasetBuilder::from_uri(path.to_string_lossy());
        if let Some(version) = version {
            builder = builder.with_version(version);
        }
        match builder.load().await {
            Ok(dataset) => Ok(Some(Vectors { dataset: Arc::new(dataset) })),
            // A writer that died while it created the dataset leaves folders without a manifest.
            Err(lance::Error::DatasetNotFound { .. }) if version.is_none() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Creates the dataset, in place of what a writer left that died doing so.
    pub(super) async fn create(path: &Path, schema: SchemaRef) -> Result<Vectors> {
        if path.exists() {
            std::fs::remove_dir_all(path).map_err(io(path))?;
        }
        std::fs::create_dir_all(path.parent().unwrap_or(path)).map_err(io(path))?;
        let empty = RecordBatchIterator::new(Vec::new(), schema);
        let params = WriteParams { mode: WriteMode::Create, ..params() };
        let dataset = Dataset::write(empty, path.to_string_lossy().as_ref(), Some(params)).await?;
        Ok(Vectors { dataset: Arc::new(dataset) })
    }

    pub(super) fn version(&self) -> u64 {
        self.dataset.version().version
    }

    /// Rows that are not deleted.
    pub(super) fn rows(&self) -> usize {
        let fragments = self.dataset.get_fragments();
        let all: usize = fragments.iter().filter_map(|one| one.metadata().physical_rows).sum();
        all - self.fragments().iter().map(|(_, deleted)| deleted).sum::<usize>().min(all)
    }

    /// Numbers of a vector.
    pub(super) fn dim(&self) -> usize {
        let schema = arrow::datatypes::Schema::from(self.dataset.schema());
        match schema.field_with_name("vector").map(|field| field.data_type().clone()) {
            Ok(DataType::FixedSizeList(_, dim)) => dim as usize,
            _ => 0,
        }
    }

    /// The fingerprint of the embedder that made the vectors.
    pub(super) fn embedder(&self) -> Option<String> {
        self.dataset.schema().metadata.get("tarn.embedder").cloned()
    }

    /// Appends rows as a new version.
    pub(super) async fn append(&mut self, batch: RecordBatch) -> Result<()> {
        let params = params();
        let transaction = InsertBuilder::new(WriteDestination::Dataset(self.dataset.clone()))
            .with_params(&params)
            .execute_uncommitted(vec![batch])
            .await?;
        let dataset = CommitBuilder::new(self.dataset.clone())
            .with_skip_auto_cleanup(true)
            .execute(transaction)
            .await?;
        self.dataset = Arc::new(dataset);
        Ok(())
    }

    /// Deletes the rows of these versions of documents.
    pub(super) async fn delete(&mut self, ingest_ids: &[String]) -> Result<()> {
        let mut dataset = self.dataset.as_ref().clone();
        for part in ingest_ids.chunks(500) {
            dataset.delete(&in_list(part)).await?;
        }
        self.dataset = Arc::new(dataset);
        Ok(())
    }

    /// Merges small fragments.
    pub(super) async fn compact(&mut self) -> Result<()> {
        let mut dataset = self.dataset.as_ref().clone();
        let options = CompactionOptions { target_rows_per_fragment: 100_000, ..CompactionOptions::default() };
        compact_files(&mut dataset, options, None).await?;
        self.dataset = Arc::new(dataset);
        Ok(())
    }

    /// Fragments: id and number of deleted rows.
    pub(super) fn fragments(&self) -> Vec<(u64, usize)> {
        self.dataset
            .get_fragments()
            .iter()
            .map(|fragment| {
                let deleted =
                    fragment.metadata().deletion_file.as_ref().and_then(|file| file.num_deleted_rows);
                (fragment.id() as u64, deleted.unwrap_or(0))
            })
            .collect()
    }

    /// Some columns of one fragment's live rows.
    pub(super) async fn fragment(&self, id: u64, columns: &[&str]) -> Result<Vec<RecordBatch>> {
        let Some(fragment) = self.dataset.get_fragments().into_iter().find(|one| one.id() as u64 == id)
        else {
            return Ok(Vec::new());
        };
        let mut scanner = fragment.scan();
        scanner.project(columns)?;
        Ok(scanner.try_into_stream().await?.try_collect().await?)
    }

    /// All columns of the rows of these versions of documents.
    pub(super) async fn rows_of(&self, ingest_ids: &[String]) -> Result<Vec<RecordBatch>> {
        let mut all = Vec::new();
        for part in ingest_ids.chunks(500) {
            let mut scanner = self.dataset.scan();
            scanner.filter(&in_list(part))?;
            all.extend(scanner.try_into_stream().await?.try_collect::<Vec<_>>().await?);
        }
        Ok(all)
    }

    /// Chunks of these versions of documents, with their vectors.
    pub(super) async fn vectors_of(
        &self,
        ingest_ids: &std::collections::HashSet<&str>,
    ) -> Result<Vec<(String, Vec<f32>)>> {
        let ids: Vec<String> = ingest_ids.iter().map(|id| (*id).to_owned()).collect();
        let mut all = Vec::new();
        for part in ids.chunks(500) {
            let mut scanner = self.dataset.scan();
            scanner.project(&["chunk_id", "vector"])?.filter(&in_list(part))?;
            let batches: Vec<RecordBatch> = scanner.try_into_stream().await?.try_collect().await?;
            for batch in &batches {
                let numbers = numbers(batch)?;
                let vectors = numbers.chunks_exact(self.dim().max(1)).map(<[f32]>::to_vec);
                all.extend(strings(batch, "chunk_id").into_iter().zip(vectors));
            }
        }
        Ok(all)
    }

    pub(super) fn schema(&self) -> SchemaRef {
        Arc::new(arrow::datatypes::Schema::from(self.dataset.schema()))
    }

    /// At most `limit` rows that `filter` takes, after `offset` of them; empty `columns` for all.
    pub(super) async fn scan(
        &self,
        columns: &[String],
        filter: Option<datafusion::prelude::Expr>,
        limit: usize,
        offset: usize,
    ) -> Result<Vec<RecordBatch>> {
        let wrong = |error: lance::Error| LakeError::Query(error.to_string());
        let mut scanner = self.dataset.scan();
        if !columns.is_empty() {
            scanner.project(columns).map_err(wrong)?;
        }
        if let Some(filter) = filter {
            scanner.filter_expr(filter);
        }
        scanner.limit(Some(limit as i64), Some(offset as i64)).map_err(wrong)?;
        scanner.try_into_stream().await.map_err(wrong)?.try_collect().await.map_err(wrong)
    }

    /// The distinct versions of documents that have rows.
    pub(super) async fn ingest_ids(&self) -> Result<std::collections::HashSet<String>> {
        let mut scanner = self.dataset.scan();
        scanner.project(&["ingest_id"])?;
        let batches: Vec<RecordBatch> = scanner.try_into_stream().await?.try_collect().await?;
        Ok(batches.iter().flat_map(|batch| strings(batch, "ingest_id")).collect())
    }
}

fn params() -> WriteParams {
    WriteParams {
        mode: WriteMode::Append,
        data_storage_version: Some("2.1".parse().unwrap_or_default()),
        enable_stable_row_ids: false,
        auto_cleanup: None,
        skip_auto_cleanup: true,
        ..WriteParams::default()
    }
}

/// Ids are UUIDs of ours; anything else is left out rather than quoted.
fn in_list(ids: &[String]) -> String {
    let safe = |id: &&String| id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let all: Vec<String> = ids.iter().filter(safe).map(|id| format!("'{id}'")).collect();
    format!("ingest_id IN ({})", all.join(", "))
}

/// A string column's values.
pub(super) fn strings(batch: &RecordBatch, name: &str) -> Vec<String> {
    let column =
        batch.column_by_name(name).and_then(|column| arrow::compute::cast(column, &DataType::Utf8).ok());
    let Some(column) = column else { return Vec::new() };
    let Some(column) = column.as_any().downcast_ref::<arrow::array::StringArray>() else { return Vec::new() };
    column.iter().map(|value| value.unwrap_or_default().to_owned()).collect()
}

/// The vector column's numbers, row by row.
pub(super) fn numbers(batch: &RecordBatch) -> Result<Vec<f32>> {
    let wrong = || LakeError::Bundle("the vector column is no list of f32".to_owned());
    let lists = batch
        .column_by_name("vector")
        .and_then(|column| column.as_any().downcast_ref::<FixedSizeListArray>())
        .ok_or_else(wrong)?;
    let values = lists.values().as_any().downcast_ref::<Float32Array>().ok_or_else(wrong)?;
    Ok(values.values().to_vec())
}
