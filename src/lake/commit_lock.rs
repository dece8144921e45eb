//! One writer at a time, over all processes.

use std::fs::File;
use std::path::Path;

use super::error::{LakeError, Result, io};

/// Held while a commit changes the tables; released when it is dropped or its process dies.
#[derive(Debug)]
pub(super) struct CommitLock {
    _file: File,
}

impl CommitLock {
    /// Waits for the lock of the lake in `dir`.
    pub(super) async fn acquire(dir: &Path) -> Result<CommitLock> {
        let path = dir.join("commit.lock");
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let wait = move || {
            let file =
                File::options().create(true).truncate(false).write(true).open(&path).map_err(io(&path))?;
            file.lock().map_err(io(&path))?;
            Ok(CommitLock { _file: file })
        };
        tokio::task::spawn_blocking(wait).await.map_err(|error| LakeError::Task(error.to_string()))?
    }
}
