//! Looking at the tables.

use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;

use super::error::{LakeError, Result};
use super::rows::to_batch;
use super::schema::{self, CHUNKS, DOCUMENTS, EMBEDDINGS};
use super::snapshot::{DocumentFilter, Snapshot};

/// Which rows and columns of a table.
#[derive(Debug, Clone)]
pub struct TableQuery {
    /// Columns; empty for all.
    pub columns: Vec<String>,
    /// A boolean SQL expression over the columns.
    pub filter: Option<String>,
    /// Most rows.
    pub limit: usize,
    /// Rows to skip.
    pub offset: usize,
}

impl Snapshot {
    /// The schema of a table.
    ///
    /// # Errors
    /// [`LakeError::NoTable`].
    pub fn schema(&self, table: &str) -> Result<arrow::datatypes::SchemaRef> {
        match table {
            DOCUMENTS => Ok(schema::documents()),
            CHUNKS => Ok(schema::chunks()),
            other => Err(LakeError::NoTable(other.to_owned())),
        }
    }

    /// Rows of a table, as this viewer sees it.
    ///
    /// # Errors
    /// [`LakeError::NoTable`], or [`LakeError::Query`] for columns or a filter that do not fit.
    pub async fn scan(&self, table: &str, query: &TableQuery) -> Result<Vec<RecordBatch>> {
        let schema = self.schema(table)?;
        let batch = if table == DOCUMENTS {
            to_batch(&schema, &self.documents(&DocumentFilter::default(), usize::MAX, 0))?
        } else {
            to_batch(&schema, &self.all_chunks())?
        };
        let mut frame = SessionContext::new().read_batch(batch).map_err(wrong)?;
        if let Some(filter) = &query.filter {
            let expression = frame.parse_sql_expr(filter).map_err(wrong)?;
            frame = frame.filter(expression).map_err(wrong)?;
        }
        if !query.columns.is_empty() {
            let columns: Vec<&str> = query.columns.iter().map(String::as_str).collect();
            frame = frame.select_columns(&columns).map_err(wrong)?;
        }
        frame.limit(query.offset, Some(query.limit)).map_err(wrong)?.collect().await.map_err(wrong)
    }

    /// Rows of the Lance dataset at this snapshot's version, as this viewer sees it; only what is asked for is read.
    ///
    /// # Errors
    /// [`LakeError::NoDataset`] for another name than `embeddings.lance`, or [`LakeError::Query`].
    pub async fn scan_vectors(&self, dataset: &str, query: &TableQuery) -> Result<Vec<RecordBatch>> {
        if dataset != EMBEDDINGS {
            return Err(LakeError::NoDataset(dataset.to_owned()));
        }
        let Some(vectors) = self.vectors() else { return Ok(Vec::new()) };
        // Parsed apart from what hides rows, so that no text can close its bracket.
        let mut filter = match &query.filter {
            Some(filter) => {
                let empty = RecordBatch::new_empty(vectors.schema());
                let frame = SessionContext::new().read_batch(empty).map_err(wrong)?;
                Some(frame.parse_sql_expr(filter).map_err(wrong)?)
            }
            None => None,
        };
        if let Some(visible) = self.visible_ingests() {
            let visible = datafusion::prelude::ident("ingest_id")
                .in_list(visible.into_iter().map(datafusion::prelude::lit).collect(), false);
            filter = Some(filter.map_or(visible.clone(), |filter| visible.and(filter)));
        }
        vectors.scan(&query.columns, filter, query.limit, query.offset).await
    }
}

fn wrong(error: datafusion::error::DataFusionError) -> LakeError {
    LakeError::Query(error.strip_backtrace())
}
