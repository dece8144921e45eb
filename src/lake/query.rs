//! Looking at the tables.

use arrow::record_batch::RecordBatch;
use datafusion::prelude::SessionContext;

use super::error::{LakeError, Result};
use super::rows::to_batch;
use super::schema::{self, CHUNKS, DOCUMENTS};
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
        let wrong = |error: datafusion::error::DataFusionError| LakeError::Query(error.strip_backtrace());
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
}
