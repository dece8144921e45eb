//! Documents, snapshots and tables.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use super::auth::Customer;
use super::error::{ApiError, Path, Query};
use crate::lake::{AsOf, DocumentFilter, RecordBatch, Snapshot, TableQuery, Viewer};

/// A version's number or an RFC 3339 time.
pub(super) fn as_of(text: &str) -> Result<AsOf, ApiError> {
    if let Ok(version) = text.parse() {
        return Ok(AsOf::Version(version));
    }
    chrono::DateTime::parse_from_rfc3339(text).map(|time| AsOf::Time(time.to_utc())).map_err(|_| {
        ApiError::invalid("as_of", format!("as_of is `{text}`, but must be a version or an RFC 3339 time"))
    })
}

async fn open(state: &AppState, customer: &str, at: Option<&str>) -> Result<Snapshot, ApiError> {
    let at = at.map(as_of).transpose()?;
    Ok(state.lakes.customer(customer)?.snapshot(at, &Viewer::all()).await?)
}

#[derive(Debug, Deserialize)]
pub(super) struct At {
    as_of: Option<String>,
}

pub(super) async fn snapshot(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Query(at): Query<At>,
) -> Result<Json<Value>, ApiError> {
    let snapshot = open(&state, &customer, at.as_of.as_deref()).await?;
    let lake = state.lakes.customer(&customer)?;
    Ok(Json(json!({"customer_id": customer, "version": snapshot.version(), "pins": snapshot.pins(),
        "path": lake.dir(), "embedder": snapshot.embedder()})))
}

#[derive(Debug, Deserialize)]
pub(super) struct Page {
    limit: Option<usize>,
    offset: Option<usize>,
    as_of: Option<String>,
}

pub(super) async fn documents(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Query(page): Query<Page>,
) -> Result<Json<Value>, ApiError> {
    let snapshot = open(&state, &customer, page.as_of.as_deref()).await?;
    let all = DocumentFilter::default();
    let rows = snapshot.documents(&all, page.limit.unwrap_or(100).min(10_000), page.offset.unwrap_or(0));
    Ok(Json(json!({"documents": rows, "total": snapshot.count(&all), "version": snapshot.version()})))
}

fn no_document(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no document `{id}`; GET /api/documents lists all"))
}

pub(super) async fn document(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let document = open(&state, &customer, None).await?.document(&id).ok_or_else(|| no_document(&id))?;
    Ok(Json(json!(document)))
}

pub(super) async fn delete_document(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if !state.pipeline.delete(&customer, &id).await? {
        return Err(no_document(&id));
    }
    Ok(Json(json!({"document_id": id, "deleted": true})))
}

pub(super) async fn content(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let document = open(&state, &customer, None).await?.document(&id).ok_or_else(|| no_document(&id))?;
    let lake = state.lakes.customer(&customer)?;
    let path = document.original.as_deref().and_then(|original| lake.original(original));
    let path =
        path.ok_or_else(|| ApiError::not_found("the document's bytes are kept with its archive, not alone"))?;
    let file = tokio::fs::File::open(path).await.map_err(|error| ApiError::internal(&error))?;
    let media_type = document.media_type.unwrap_or_else(|| "application/octet-stream".to_owned());
    // Uploaded bytes are never shown as a page of this server.
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_DISPOSITION, "attachment".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    Ok((headers, Body::from_stream(tokio_util::io::ReaderStream::new(file))).into_response())
}

pub(super) async fn chunk(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path((id, chunk_id)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let chunk = open(&state, &customer, None).await?.chunk_by_id(&id, &chunk_id).await?;
    chunk.map(|chunk| Json(json!(chunk))).ok_or_else(|| ApiError::not_found("there is no such chunk"))
}

pub(super) async fn stats(
    State(state): State<AppState>,
    Customer(customer): Customer,
) -> Result<Json<Value>, ApiError> {
    let lake = state.lakes.customer(&customer)?;
    lake.snapshot(None, &Viewer::all()).await?;
    let stats = lake.stats();
    let mb = (stats.total_bytes as f64 / 1e6 * 100.0).round() / 100.0;
    let there = usize::from(stats.version >= 0);
    Ok(Json(
        json!({"delta_tables": 2 * there, "lance_datasets": usize::from(stats.vectors > 0), "total_size_mb": mb,
        "documents": stats.documents, "chunks": stats.chunks, "vectors": stats.vectors, "version": stats.version}),
    ))
}

pub(super) async fn tables(
    State(state): State<AppState>,
    Customer(customer): Customer,
) -> Result<Json<Value>, ApiError> {
    let snapshot = open(&state, &customer, None).await?;
    let pins = snapshot.pins();
    Ok(Json(json!({"tables": ["general_documents", "general_chunks"], "versions": {
        "general_documents": pins.general_documents, "general_chunks": pins.general_chunks}})))
}

pub(super) async fn datasets(
    State(state): State<AppState>,
    Customer(customer): Customer,
) -> Result<Json<Value>, ApiError> {
    let snapshot = open(&state, &customer, None).await?;
    Ok(Json(
        json!({"datasets": ["embeddings.lance"], "versions": {"embeddings.lance": snapshot.pins().embeddings}}),
    ))
}

pub(super) async fn schema(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(table): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let schema = open(&state, &customer, None).await?.schema(&table)?;
    let fields: Vec<Value> = schema
        .fields()
        .iter()
        .map(|field| json!({"name": field.name(), "type": field.data_type().to_string(), "nullable": field.is_nullable()}))
        .collect();
    Ok(Json(json!({"table": table, "fields": fields})))
}

#[derive(Debug, Deserialize)]
pub(super) struct Rows {
    limit: Option<usize>,
    offset: Option<usize>,
    columns: Option<String>,
    filter: Option<String>,
    version: Option<String>,
}

impl Rows {
    fn query(self) -> TableQuery {
        let columns = self.columns.unwrap_or_default();
        let columns = columns.split(',').map(str::trim).filter(|name| !name.is_empty());
        TableQuery {
            columns: columns.map(str::to_owned).collect(),
            filter: self.filter,
            limit: self.limit.unwrap_or(100).min(10_000),
            offset: self.offset.unwrap_or(0),
        }
    }
}

pub(super) async fn query(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(table): Path<String>,
    Query(rows): Query<Rows>,
) -> Result<Json<Value>, ApiError> {
    let snapshot = open(&state, &customer, rows.version.as_deref()).await?;
    let found = to_json(&snapshot.scan(&table, &rows.query()).await?)?;
    Ok(Json(json!({"table": table, "version": snapshot.version(), "count": found.len(), "rows": found})))
}

pub(super) async fn query_vectors(
    State(state): State<AppState>,
    Customer(customer): Customer,
    Path(dataset): Path<String>,
    Query(rows): Query<Rows>,
) -> Result<Json<Value>, ApiError> {
    let snapshot = open(&state, &customer, rows.version.as_deref()).await?;
    let found = to_json(&snapshot.scan_vectors(&dataset, &rows.query()).await?)?;
    Ok(Json(json!({"dataset": dataset, "version": snapshot.version(), "count": found.len(), "rows": found})))
}

fn to_json(batches: &[RecordBatch]) -> Result<Vec<Value>, ApiError> {
    let mut bytes = Vec::new();
    let mut writer = arrow::json::ArrayWriter::new(&mut bytes);
    let write = batches.iter().try_for_each(|batch| writer.write(batch)).and_then(|()| writer.finish());
    write.map_err(|error| ApiError::internal(&error))?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&bytes).map_err(|error| ApiError::internal(&error))
}
