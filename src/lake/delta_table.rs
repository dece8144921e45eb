//! A Delta table: its log through `deltalake`, its files by ourselves.
//!
//! deltalake without its `datafusion` feature has create, append and commit; deletes here are copy-on-write by
//! Remove and Add. Tables with deletion vectors, column mapping, change data feed or invariants are refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use arrow::datatypes::{DataType as ArrowType, SchemaRef};
use arrow::record_batch::RecordBatch;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, ArrayType, DataType, PrimitiveType, Transaction};
use deltalake::logstore::LogStoreRef;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::config::TableProperty;
use deltalake::{DeltaTable, DeltaTableBuilder};

use super::error::{LakeError, Result, io};
use super::parquet_file;

/// A table at one version.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) dir: PathBuf,
    inner: DeltaTable,
}

/// An active data file.
#[derive(Debug, Clone)]
pub(super) struct DataFile {
    /// In the table.
    pub(super) path: String,
    pub(super) size: u64,
    /// The smallest and largest `ingest_id` of its rows, where the log says so.
    ingests: Option<(String, String)>,
}

impl DataFile {
    /// Whether it may have rows of this version of a document.
    pub(super) fn may_have(&self, ingest_id: &str) -> bool {
        self.ingests
            .as_ref()
            .is_none_or(|(first, last)| (first.as_str()..=last.as_str()).contains(&ingest_id))
    }
}

/// What a commit does to a table.
#[derive(Debug, Default)]
pub(super) struct TableChange {
    pub(super) adds: Vec<Add>,
    /// Paths of active files.
    pub(super) removes: Vec<String>,
}

impl TableChange {
    pub(super) fn is_empty(&self) -> bool {
        self.adds.is_empty() && self.removes.is_empty()
    }
}

impl Table {
    /// The newest version, or `version`; `None` when there is no table.
    pub(super) async fn open(dir: &Path, version: Option<i64>) -> Result<Option<Table>> {
        if !exists(dir) {
            return Ok(None);
        }
        let mut builder = DeltaTableBuilder::from_url(url(dir)?)?;
        if let Some(version) = version {
            builder = builder.with_version(version as _);
        }
        let table = Table { dir: dir.to_owned(), inner: builder.load().await? };
        table.check_features()?;
        Ok(Some(table))
    }

    /// Creates the table where there is none.
    pub(super) async fn create(dir: &Path, name: &str, schema: &SchemaRef) -> Result<Table> {
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let mut builder = deltalake::operations::create::CreateBuilder::new()
            .with_log_store(DeltaTableBuilder::from_url(url(dir)?)?.build_storage()?)
            .with_table_name(name)
            // What is kept for how long is for the lake to say, not for Delta's thirty days.
            .with_configuration_property(TableProperty::EnableExpiredLogCleanup, Some("false"));
        for field in schema.fields() {
            builder =
                builder.with_column(field.name(), delta_type(field.data_type()), field.is_nullable(), None);
        }
        let inner = builder.await?;
        Ok(Table { dir: dir.to_owned(), inner })
    }

    fn check_features(&self) -> Result<()> {
        let snapshot = self.inner.snapshot()?;
        let configuration = snapshot.metadata().configuration();
        let on = |key: &str| configuration.get(key).is_some_and(|value| value == "true");
        let mapped = configuration.get("delta.columnMapping.mode").is_some_and(|mode| mode != "none");
        let used = [
            ("deletion vectors", on("delta.enableDeletionVectors")),
            ("change data feed", on("delta.enableChangeDataFeed")),
            ("column mapping", mapped),
        ];
        match used.iter().find(|(_, used)| *used) {
            Some((feature, _)) => {
                Err(LakeError::Feature { path: self.dir.clone(), feature: (*feature).to_owned() })
            }
            None => Ok(()),
        }
    }

    pub(super) fn version(&self) -> i64 {
        self.inner.version().map_or(-1, |version| version as i64)
    }

    /// Active files.
    pub(super) fn files(&self) -> Result<Vec<DataFile>> {
        let range = |stats: String| {
            let stats: serde_json::Value = serde_json::from_str(&stats).ok()?;
            let of = |side: &str| stats[side]["ingest_id"].as_str().map(str::to_owned);
            Some((of("minValues")?, of("maxValues")?))
        };
        let files = self.inner.snapshot()?.log_data();
        let file = |file: deltalake::kernel::LogicalFileView| DataFile {
            path: file.path().into_owned(),
            size: file.size() as u64,
            ingests: file.stats().and_then(range),
        };
        Ok(files.iter().map(file).collect())
    }

    /// The Add actions of the active files, to put them back after a repair.
    #[expect(
        deprecated,
        reason = "a repair puts the very actions back; deltalake offers no other way to have them"
    )]
    pub(super) fn adds(&self) -> Result<Vec<Add>> {
        Ok(self.inner.snapshot()?.log_data().iter().map(|file| file.add_action()).collect())
    }

    /// The version that this table's log last recorded for an application.
    pub(super) async fn application_version(&self, application: &str) -> Result<Option<i64>> {
        let store: LogStoreRef = self.inner.log_store();
        Ok(self.inner.snapshot()?.transaction_version(store.as_ref(), application).await?)
    }

    /// Writes `batch` as a new, synced data file that no version knows yet.
    pub(super) fn write_file(&self, batch: &RecordBatch) -> Result<Add> {
        let name = format!("part-{}.zstd.parquet", uuid::Uuid::now_v7());
        let (size, stats) = parquet_file::write(&self.dir.join(&name), batch)?;
        Ok(Add {
            path: name,
            partition_values: HashMap::new(),
            size: size as i64,
            modification_time: chrono::Utc::now().timestamp_millis(),
            data_change: true,
            stats: Some(stats),
            tags: None,
            deletion_vector: None,
            base_row_id: None,
            default_row_commit_version: None,
            clustering_provider: None,
        })
    }

    /// Commits `change` with application versions and returns the new version; syncing is for the caller.
    pub(super) async fn commit(&mut self, change: TableChange, pins: &[(&str, i64)]) -> Result<i64> {
        let snapshot = self.inner.snapshot()?;
        let mut actions: Vec<Action> = Vec::new();
        for file in snapshot.log_data().iter() {
            if change.removes.iter().any(|path| *path == file.path()) {
                actions.push(Action::Remove(file.remove_action(true)));
            }
        }
        actions.extend(change.adds.into_iter().map(Action::Add));
        let transactions =
            pins.iter().map(|(application, version)| Transaction::new(application, *version)).collect();
        let properties = CommitProperties::default().with_application_transactions(transactions);
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        let committed = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(snapshot), self.inner.log_store(), operation)
            .await?;
        let version = committed.version() as i64;
        self.inner.state = Some(committed.snapshot());
        Ok(version)
    }
}

/// Whether a table was created in `dir`.
pub(super) fn exists(dir: &Path) -> bool {
    log_file(dir, 0).exists() || dir.join("_delta_log/_last_checkpoint").exists()
}

/// The log file of a version.
pub(super) fn log_file(dir: &Path, version: i64) -> PathBuf {
    dir.join("_delta_log").join(format!("{version:020}.json"))
}

/// The time of a version's log file, in microseconds.
pub(super) fn version_time(dir: &Path, version: i64) -> Option<i64> {
    let modified = std::fs::metadata(log_file(dir, version)).ok()?.modified().ok()?;
    Some(modified.duration_since(std::time::UNIX_EPOCH).ok()?.as_micros() as i64)
}

fn url(dir: &Path) -> Result<url::Url> {
    url::Url::from_directory_path(dir).map_err(|()| LakeError::Io {
        path: dir.to_owned(),
        source: std::io::Error::other("not an absolute path"),
    })
}

fn delta_type(kind: &ArrowType) -> DataType {
    match kind {
        ArrowType::Int32 => DataType::Primitive(PrimitiveType::Integer),
        ArrowType::Int64 => DataType::Primitive(PrimitiveType::Long),
        ArrowType::Float32 => DataType::Primitive(PrimitiveType::Float),
        ArrowType::Timestamp(_, _) => DataType::Primitive(PrimitiveType::Timestamp),
        ArrowType::List(of) => DataType::Array(Box::new(ArrayType::new(delta_type(of.data_type()), true))),
        _ => DataType::Primitive(PrimitiveType::String),
    }
}
