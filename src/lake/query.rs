//! Looking at the tables.
//!
//! Filters are SQL expressions from strangers, so their context knows operators and a short list of functions, none of
//! which makes more than it was given, has a memory limit, and a time after which it gives up.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::BooleanArray;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::functions::{core, string, unicode};
use datafusion::logical_expr::Expr;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::error::{LakeError, Result};
use super::parquet_file;
use super::rows::to_batch;
use super::schema::{self, CHUNKS, DOCUMENTS, EMBEDDINGS};
use super::snapshot::{DocumentFilter, Snapshot};
use super::state::blocking;
use super::vectors::strings;

/// Memory of one query beyond the rows of one file.
const MEMORY: usize = 256 << 20;
/// Time of one query.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which rows and columns of a table.
#[derive(Debug, Clone)]
pub struct TableQuery {
    /// Columns; empty for all.
    pub columns: Vec<String>,
    /// A boolean SQL expression over the columns: operators, `lower`, `upper`, `length`, `starts_with`, `ends_with`,
    /// `contains`, `coalesce`, `array_has`.
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
    pub fn schema(&self, table: &str) -> Result<SchemaRef> {
        match table {
            DOCUMENTS => Ok(schema::documents()),
            CHUNKS => Ok(schema::chunks()),
            other => Err(LakeError::NoTable(other.to_owned())),
        }
    }

    /// Rows of a table, as this viewer sees it; files are read until there are enough.
    ///
    /// # Errors
    /// [`LakeError::NoTable`], or [`LakeError::Query`] for columns or a filter that do not fit.
    pub async fn scan(&self, table: &str, query: &TableQuery) -> Result<Vec<RecordBatch>> {
        let schema = self.schema(table)?;
        let context = context()?;
        // An empty part first: a filter that does not fit is refused also where there is no row.
        select(&context, vec![RecordBatch::new_empty(schema.clone())], query, 0).await?;
        if table == DOCUMENTS {
            let rows = self.documents(&DocumentFilter::default(), usize::MAX, 0);
            let batch = blocking(move || to_batch(&schema, &rows)).await?;
            let found =
                select(&context, vec![batch], query, query.offset.saturating_add(query.limit)).await?;
            return Ok(Page::new(query).take(found));
        }
        let visible: Option<HashSet<String>> =
            self.visible_ingests().map(|all| all.into_iter().map(str::to_owned).collect());
        let visible = Arc::new(visible);
        let (mut page, mut found) = (Page::new(query), Vec::new());
        for file in &self.state.chunk_files {
            let (path, visible) = (self.lake.chunks_dir().join(&file.path), visible.clone());
            let batches = blocking(move || {
                let batches = parquet_file::read(&path)?.into_iter();
                batches
                    .map(|batch| only_visible(batch, visible.as_ref().as_ref()))
                    .collect::<Result<Vec<_>>>()
            })
            .await?;
            found.extend(page.take(select(&context, batches, query, page.missing()).await?));
            if page.missing() == 0 {
                break;
            }
        }
        Ok(found)
    }

    /// Rows of the Lance dataset at this snapshot's version, as this viewer sees it; only what is asked for is read.
    ///
    /// # Errors
    /// [`LakeError::NoDataset`] for another name than `embeddings.lance`, or [`LakeError::Query`].
    pub async fn scan_vectors(&self, dataset: &str, query: &TableQuery) -> Result<Vec<RecordBatch>> {
        if dataset != EMBEDDINGS {
            return Err(LakeError::NoDataset(dataset.to_owned()));
        }
        let Some(vectors) = &self.state.vectors else { return Ok(Vec::new()) };
        // Parsed apart from what hides rows, so that no text can close its bracket.
        let mut filter = match &query.filter {
            Some(filter) => Some(parse(&context()?, RecordBatch::new_empty(vectors.schema()), filter)?),
            None => None,
        };
        if let Some(visible) = self.visible_ingests() {
            let visible = datafusion::prelude::ident("ingest_id")
                .in_list(visible.into_iter().map(datafusion::prelude::lit).collect(), false);
            filter = Some(filter.map_or(visible.clone(), |filter| visible.and(filter)));
        }
        let scan = vectors.scan(&query.columns, filter, query.limit, query.offset);
        tokio::time::timeout(PATIENCE, scan).await.map_err(|_| too_long())?
    }
}

/// Rows that are still to be skipped and taken.
struct Page {
    skip: usize,
    left: usize,
}

impl Page {
    fn new(query: &TableQuery) -> Page {
        Page { skip: query.offset, left: query.limit }
    }

    fn missing(&self) -> usize {
        if self.left == 0 { 0 } else { self.skip.saturating_add(self.left) }
    }

    fn take(&mut self, batches: Vec<RecordBatch>) -> Vec<RecordBatch> {
        let mut taken = Vec::new();
        for batch in batches {
            let skipped = self.skip.min(batch.num_rows());
            let rows = self.left.min(batch.num_rows() - skipped);
            self.skip -= skipped;
            self.left -= rows;
            if rows > 0 {
                taken.push(batch.slice(skipped, rows));
            }
        }
        taken
    }
}

fn only_visible(batch: RecordBatch, visible: Option<&HashSet<String>>) -> Result<RecordBatch> {
    let Some(visible) = visible else { return Ok(batch) };
    let keep: BooleanArray =
        strings(&batch, "ingest_id").iter().map(|ingest| Some(visible.contains(ingest))).collect();
    Ok(arrow::compute::filter_record_batch(&batch, &keep)?)
}

fn context() -> Result<SessionContext> {
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(MEMORY, 1.0).build_arc().map_err(wrong)?;
    let functions = vec![
        string::lower(),
        string::upper(),
        string::starts_with(),
        string::ends_with(),
        string::contains(),
        unicode::character_length(),
        core::coalesce(),
        datafusion::functions_nested::array_has::array_has_udf(),
    ];
    let state = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(1))
        .with_runtime_env(runtime)
        .with_scalar_functions(functions)
        .build();
    Ok(SessionContext::new_with_state(state))
}

fn parse(context: &SessionContext, like: RecordBatch, filter: &str) -> Result<Expr> {
    context.read_batch(like).and_then(|frame| frame.parse_sql_expr(filter)).map_err(wrong)
}

/// At most `limit` rows of `batches` that the query's filter takes, with its columns.
async fn select(
    context: &SessionContext,
    batches: Vec<RecordBatch>,
    query: &TableQuery,
    limit: usize,
) -> Result<Vec<RecordBatch>> {
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let mut frame = context.read_batches(batches).map_err(wrong)?;
    if let Some(filter) = &query.filter {
        let expression = frame.parse_sql_expr(filter).map_err(wrong)?;
        frame = frame.filter(expression).map_err(wrong)?;
    }
    if !query.columns.is_empty() {
        let columns: Vec<&str> = query.columns.iter().map(String::as_str).collect();
        frame = frame.select_columns(&columns).map_err(wrong)?;
    }
    let frame = frame.limit(0, Some(limit)).map_err(wrong)?;
    tokio::time::timeout(PATIENCE, frame.collect()).await.map_err(|_| too_long())?.map_err(wrong)
}

fn too_long() -> LakeError {
    LakeError::Query(format!("it took longer than {} s: ask for less", PATIENCE.as_secs()))
}

fn wrong(error: datafusion::error::DataFusionError) -> LakeError {
    LakeError::Query(error.strip_backtrace())
}
