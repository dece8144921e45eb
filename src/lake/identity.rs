//! Names of documents, their versions and chunks.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A document's id: UUIDv5 of customer and `source_uri`.
#[must_use]
pub fn document_id(customer: &str, source_uri: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("tarn:{customer}\0{source_uri}").as_bytes()).to_string()
}

/// A fresh id of one version of a document: UUIDv7, so that ids sort by time.
#[must_use]
pub fn ingest_id() -> String {
    Uuid::now_v7().to_string()
}

/// A chunk's id: 128 bits of SHA-256 over what it was made from.
#[must_use]
pub fn chunk_id(document_id: &str, content_sha256: &str, chunker: &str, ordinal: i32) -> String {
    let mut hasher = Sha256::new();
    for part in [document_id, content_sha256, chunker, &ordinal.to_string()] {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hex::encode(&hasher.finalize()[..16])
}
