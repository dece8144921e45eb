//! Data files of the Delta tables.

use std::fs::File;
use std::path::Path;

use arrow::array::StringArray;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::error::{Result, io};

/// Writes `batch` to a new file and syncs it; returns its size and Delta statistics.
pub(super) fn write(path: &Path, batch: &RecordBatch) -> Result<(u64, String)> {
    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?)).build();
    let file = File::create_new(path).map_err(io(path))?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties))?;
    writer.write(batch)?;
    writer.finish()?;
    let file = writer.inner();
    file.sync_all().map_err(io(path))?;
    let size = file.metadata().map_err(io(path))?.len();
    Ok((size, stats(batch)))
}

/// Reads all rows, as one batch a row group or more.
pub(super) fn read(path: &Path) -> Result<Vec<RecordBatch>> {
    let file = File::open(path).map_err(io(path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(8192).build()?;
    Ok(reader.collect::<std::result::Result<Vec<_>, _>>()?)
}

/// Row count and the range of `ingest_id`, by which readers skip files.
fn stats(batch: &RecordBatch) -> String {
    let ids =
        batch.column_by_name("ingest_id").and_then(|column| column.as_any().downcast_ref::<StringArray>());
    let range = ids.and_then(|ids| {
        Some((ids.iter().flatten().min()?.to_owned(), ids.iter().flatten().max()?.to_owned()))
    });
    match range {
        Some((min, max)) => serde_json::json!({
            "numRecords": batch.num_rows(),
            "minValues": {"ingest_id": min}, "maxValues": {"ingest_id": max}, "nullCount": {"ingest_id": 0},
        }),
        None => serde_json::json!({"numRecords": batch.num_rows()}),
    }
    .to_string()
}
