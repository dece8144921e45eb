//! Rows of the tables as structs.

use arrow::array::{Array, ArrayRef};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{LakeError, Result};

/// A row of `general_documents`. Times are microseconds since 1970, UTC.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the columns are described in docs/ARCHITECTURE.md")]
pub struct DocumentRow {
    pub document_id: String,
    pub ingest_id: String,
    pub source_uri: String,
    pub name: String,
    pub parent_document_id: Option<String>,
    pub original: Option<String>,
    pub content_sha256: String,
    pub size_bytes: i64,
    pub media_type: Option<String>,
    pub language: Option<String>,
    pub title: Option<String>,
    pub collections: Vec<String>,
    pub acl: Vec<String>,
    pub attributes: Option<String>,
    pub page_count: Option<i32>,
    pub chunk_count: i32,
    pub token_count: i64,
    pub parser: String,
    pub chunker: String,
    pub embedder: String,
    pub source_modified_at: Option<i64>,
    pub ingested_at: i64,
    pub warnings: Vec<String>,
}

/// A row of `general_chunks`. `text` is verbatim: a quote is a substring of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the columns are described in docs/ARCHITECTURE.md")]
pub struct ChunkRow {
    pub chunk_id: String,
    pub ingest_id: String,
    pub document_id: String,
    pub ordinal: i32,
    pub parent_chunk_id: Option<String>,
    pub kind: String,
    pub heading_path: Vec<String>,
    pub header: Option<String>,
    pub text: String,
    pub embed_text_hash: String,
    pub token_count: i32,
    pub language: Option<String>,
    pub page_start: Option<i32>,
    pub page_end: Option<i32>,
    pub bbox: Vec<f32>,
    pub sheet: Option<String>,
    pub cell_range: Option<String>,
    pub xml_path: Option<String>,
    pub char_start: Option<i64>,
    pub char_end: Option<i64>,
    pub attributes: Option<String>,
}

/// What a hit says of its document.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DocumentHead {
    /// Its id.
    pub document_id: String,
    /// Its version.
    pub ingest_id: String,
    /// Its name.
    pub name: String,
    /// Where it came from.
    pub source_uri: String,
    /// Its type.
    pub media_type: Option<String>,
}

/// A chunk that was found.
#[derive(Debug, Clone, Default)]
pub struct ScoredChunk {
    /// The chunk.
    pub chunk: ChunkRow,
    /// Its document.
    pub document: DocumentHead,
    /// How well it fits, larger is better.
    pub score: f32,
}

impl DocumentRow {
    /// Its head.
    #[must_use]
    pub fn head(&self) -> DocumentHead {
        DocumentHead {
            document_id: self.document_id.clone(),
            ingest_id: self.ingest_id.clone(),
            name: self.name.clone(),
            source_uri: self.source_uri.clone(),
            media_type: self.media_type.clone(),
        }
    }

    /// What decides whether the same bytes need work: parser, chunker and embedder.
    pub(super) fn pipeline(&self) -> (&str, &str, &str) {
        (&self.parser, &self.chunker, &self.embedder)
    }
}

/// Rows as one batch of `schema`.
pub(super) fn to_batch<T: Serialize>(schema: &SchemaRef, rows: &[T]) -> Result<RecordBatch> {
    if rows.is_empty() {
        return Ok(RecordBatch::new_empty(schema.clone()));
    }
    let mut decoder =
        arrow::json::ReaderBuilder::new(schema.clone()).with_batch_size(rows.len()).build_decoder()?;
    decoder.serialize(rows)?;
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(schema.clone())))
}

/// A batch as rows. Times become their numbers.
pub(super) fn from_batch<T: DeserializeOwned>(batch: &RecordBatch) -> Result<Vec<T>> {
    let (mut fields, mut columns): (Vec<Field>, Vec<ArrayRef>) = (Vec::new(), Vec::new());
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let column = match column.data_type() {
            DataType::Timestamp(_, _) => cast(column, &DataType::Int64)?,
            _ => column.clone(),
        };
        fields.push(Field::new(field.name(), column.data_type().clone(), true));
        columns.push(column);
    }
    let batch = RecordBatch::try_new(Schema::new(fields).into(), columns)?;
    let mut bytes = Vec::new();
    let mut writer = arrow::json::LineDelimitedWriter::new(&mut bytes);
    writer.write(&batch)?;
    writer.finish()?;
    serde_json::Deserializer::from_slice(&bytes)
        .into_iter()
        .collect::<std::result::Result<Vec<T>, _>>()
        .map_err(|error| LakeError::Bundle(error.to_string()))
}
