//! What a writer that died before its commit point left behind.
//!
//! Its rows are in no pinned version, so no reader ever sees them; but the next commit builds on the tables' heads.
//! The holder of the lock brings both heads back to what the documents pin: rows of unknown versions go, rows that
//! were deleted too early come back from the pinned version. Nothing is restored wholesale, so no version disappears.

use std::collections::HashSet;

use super::delta_table::{Table, TableChange};
use super::error::Result;
use super::lakes::Lake;
use super::snapshot::Pins;
use super::vectors::Vectors;

impl Lake {
    /// Repairs chunks and vectors; returns the vectors' head.
    pub(super) async fn repair(
        &self,
        pinned: &Pins,
        chunks: &mut Table,
        live: &HashSet<String>,
    ) -> Result<Option<Vectors>> {
        if chunks.version() > pinned.general_chunks && !(pinned.general_chunks < 0 && chunks.version() == 0) {
            self.repair_chunks(pinned, chunks).await?;
        }
        let Some(mut head) = Vectors::open(&self.vectors_path(), None).await? else { return Ok(None) };
        if head.version() as i64 > pinned.embeddings {
            let found = head.ingest_ids().await?;
            let unknown: Vec<String> = found.difference(live).cloned().collect();
            if !unknown.is_empty() {
                tracing::warn!(
                    rows_of = unknown.len(),
                    "removing vectors that a writer left before it committed"
                );
                head.delete(&unknown).await?;
            }
            let lost: Vec<String> = live.difference(&found).cloned().collect();
            if !lost.is_empty()
                && pinned.embeddings > 0
                && let Some(kept) =
                    Vectors::open(&self.vectors_path(), Some(pinned.embeddings as u64)).await?
            {
                for batch in kept.rows_of(&lost).await? {
                    head.append(batch).await?;
                }
            }
        }
        Ok(Some(head))
    }

    /// Makes the head's files those of the pinned version, as an ordinary commit.
    async fn repair_chunks(&self, pinned: &Pins, chunks: &mut Table) -> Result<()> {
        let kept = match pinned.general_chunks {
            0.. => Table::open(&self.chunks_dir(), Some(pinned.general_chunks)).await?,
            _ => None,
        };
        let adds = kept.map_or_else(|| Ok(Vec::new()), |table| table.adds())?;
        let head: Vec<String> = chunks.files()?.into_iter().map(|file| file.path).collect();
        let change = TableChange {
            removes: head.iter().filter(|path| !adds.iter().any(|add| add.path == **path)).cloned().collect(),
            adds: adds.into_iter().filter(|add| !head.contains(&add.path)).collect(),
        };
        if !change.is_empty() {
            tracing::warn!("removing chunks that a writer left before it committed");
            chunks.commit(change, &[]).await?;
        }
        Ok(())
    }
}
