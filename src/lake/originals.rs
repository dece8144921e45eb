//! The bytes that documents were made from: `files/<sha256>`, written once, synced.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::{Result, io};

/// Stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginalRef {
    /// Their digest, in hex.
    pub sha256: String,
    /// How many.
    pub size: u64,
    /// Where they are, relative to the customer's folder.
    pub path: String,
}

/// Copies the file `from` into the store of the lake in `dir`; equal bytes are kept once.
pub(super) fn store(dir: &Path, from: &Path) -> Result<OriginalRef> {
    let folder = dir.join("files");
    std::fs::create_dir_all(&folder).map_err(io(&folder))?;
    let mut temporary = tempfile::NamedTempFile::new_in(&folder).map_err(io(&folder))?;
    let mut source = File::open(from).map_err(io(from))?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0_u64, vec![0; 1 << 16]);
    loop {
        let read = source.read(&mut buffer).map_err(io(from))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        temporary.write_all(&buffer[..read]).map_err(io(&folder))?;
        size += read as u64;
    }
    let sha256 = hex::encode(hasher.finalize());
    let target = folder.join(&sha256);
    if !target.exists() {
        temporary.as_file().sync_all().map_err(io(&target))?;
        temporary
            .persist(&target)
            .map_err(|error| super::LakeError::Io { path: target.clone(), source: error.error })?;
        File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io(&folder))?;
    }
    Ok(OriginalRef { path: format!("files/{sha256}"), sha256, size })
}

/// Where stored bytes are, if `path` is one of ours.
pub(super) fn locate(dir: &Path, path: &str) -> Option<PathBuf> {
    let digest = path.strip_prefix("files/")?;
    let valid = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    Some(dir.join("files").join(digest)).filter(|file| valid && file.exists())
}
