//! Hits for the tests of this module.

use crate::lake::{ChunkRow, DocumentHead, ScoredChunk};

/// A hit in document `name` that says `text`.
pub(super) fn hit(name: &str, text: &str) -> ScoredChunk {
    let ids = (format!("document-{name}"), format!("ingest-{name}"));
    ScoredChunk {
        chunk: ChunkRow {
            chunk_id: format!("chunk-{name}"),
            document_id: ids.0.clone(),
            ingest_id: ids.1.clone(),
            heading_path: vec!["Chapter".to_owned()],
            text: text.to_owned(),
            page_start: Some(3),
            page_end: Some(3),
            ..ChunkRow::default()
        },
        document: DocumentHead {
            document_id: ids.0,
            ingest_id: ids.1,
            name: name.to_owned(),
            source_uri: name.to_owned(),
            ..DocumentHead::default()
        },
        score: 0.5,
    }
}
