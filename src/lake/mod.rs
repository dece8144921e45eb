//! The lakehouse: one truth, two formats.
//!
//! For each customer two Delta tables (`general_documents`, `general_chunks`) and a Lance dataset
//! (`embeddings.lance`). The log of `general_documents` is the only truth: its version is the lake's version, and
//! every commit to it pins the versions of the other two ([`Pins`]). Readers open exactly these.
//!
//! | file | what |
//! |---|---|
//! | `schema`, `rows`, `identity` | what is stored |
//! | `delta_table`, `parquet_file`, `vectors` | the two formats |
//! | `commit`, `recover`, `commit_lock`, `failpoint` | the one transaction, and what a dead writer leaves |
//! | `snapshot`, `state` | one version, as one viewer sees it |
//! | `search`, `segment`, `query` | finding chunks and rows in it |
//!
//! **Invariant:** `lance`, `deltalake`, `datafusion` and `object_store` occur nowhere else.

mod commit;
mod commit_lock;
mod delta_table;
mod error;
mod failpoint;
mod identity;
mod lakes;
mod originals;
mod parquet_file;
mod query;
mod recover;
mod rows;
mod schema;
mod search;
mod segment;
mod snapshot;
mod state;
mod vectors;

pub use arrow::record_batch::RecordBatch;
pub use commit::{Applied, CommitReceipt, DocumentBundle, DocumentChange};
pub use error::LakeError;
pub use failpoint::{FailAction, FailStep, Failpoints};
pub use identity::{chunk_id, document_id, ingest_id};
pub use lakes::{Lake, LakeConfig, LakeStats, Lakes};
pub use originals::OriginalRef;
pub use query::TableQuery;
pub use rows::{ChunkRow, DocumentHead, DocumentRow, ScoredChunk};
pub use snapshot::{AsOf, DocumentFilter, Pins, Snapshot, Viewer};

#[cfg(test)]
mod tests;
