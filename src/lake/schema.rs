//! The tables' schemas.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

pub(super) const DOCUMENTS: &str = "general_documents";
pub(super) const CHUNKS: &str = "general_chunks";
/// The Lance dataset.
pub(super) const EMBEDDINGS: &str = "embeddings.lance";

fn list(of: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", of, true)))
}

fn fields(all: &[(&str, DataType, bool)]) -> SchemaRef {
    Arc::new(Schema::new(
        all.iter()
            .map(|(name, kind, nullable)| Field::new(*name, kind.clone(), *nullable))
            .collect::<Vec<_>>(),
    ))
}

/// `general_documents`: a row a document.
pub(super) fn documents() -> SchemaRef {
    use DataType::{Int32, Int64, Utf8};
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    fields(&[
        ("document_id", Utf8, false),
        ("ingest_id", Utf8, false),
        ("source_uri", Utf8, false),
        ("name", Utf8, false),
        ("parent_document_id", Utf8, true),
        ("original", Utf8, true),
        ("content_sha256", Utf8, false),
        ("size_bytes", Int64, false),
        ("media_type", Utf8, false),
        ("language", Utf8, true),
        ("title", Utf8, true),
        ("collections", list(Utf8), true),
        ("acl", list(Utf8), true),
        ("attributes", Utf8, true),
        ("page_count", Int32, true),
        ("chunk_count", Int32, false),
        ("token_count", Int64, false),
        ("parser", Utf8, false),
        ("chunker", Utf8, false),
        ("embedder", Utf8, false),
        ("source_modified_at", time(), true),
        ("ingested_at", time(), false),
        ("warnings", list(Utf8), true),
    ])
}

/// `general_chunks`: a row a chunk.
pub(super) fn chunks() -> SchemaRef {
    use DataType::{Float32, Int32, Int64, Utf8};
    fields(&[
        ("chunk_id", Utf8, false),
        ("ingest_id", Utf8, false),
        ("document_id", Utf8, false),
        ("ordinal", Int32, false),
        ("parent_chunk_id", Utf8, true),
        ("kind", Utf8, false),
        ("heading_path", list(Utf8), true),
        ("header", Utf8, true),
        ("text", Utf8, false),
        ("embed_text_hash", Utf8, false),
        ("token_count", Int32, false),
        ("language", Utf8, true),
        ("page_start", Int32, true),
        ("page_end", Int32, true),
        ("bbox", list(Float32), true),
        ("sheet", Utf8, true),
        ("cell_range", Utf8, true),
        ("xml_path", Utf8, true),
        ("char_start", Int64, true),
        ("char_end", Int64, true),
        ("attributes", Utf8, true),
    ])
}

/// `embeddings.lance`: what retrieval needs, rebuildable from the chunks.
pub(super) fn embeddings(dim: usize, embedder: &str) -> SchemaRef {
    use DataType::{Float32, Int32, Utf8};
    let vector = DataType::FixedSizeList(Arc::new(Field::new("item", Float32, false)), dim as i32);
    let schema = fields(&[
        ("chunk_id", Utf8, false),
        ("ingest_id", Utf8, false),
        ("document_id", Utf8, false),
        ("ordinal", Int32, false),
        ("kind", Utf8, true),
        ("language", Utf8, true),
        ("vector", vector, false),
        ("text", Utf8, false),
        ("terms", Utf8, false),
    ]);
    let metadata = [("tarn.schema", "1"), ("tarn.embedder", embedder), ("tarn.analyzer", "tarn/1")];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Arc::new(schema.as_ref().clone().with_metadata(metadata))
}
