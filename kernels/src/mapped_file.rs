//! The process's only memory map.

use std::fs::File;
use std::io;
use std::path::Path;

/// A file of the operator's, mapped read-only.
///
/// Only model files are mapped: who can replace or truncate a mapped file can kill the process, so whatever a
/// customer can write to is read into memory instead.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps `path`.
    pub fn open(path: &Path) -> io::Result<MappedFile> {
        let file = File::open(path)?;
        // SAFETY: the bytes stay valid while nobody truncates the file; the type's contract limits it to files that
        // only the operator can write, and a model file is replaced by rename, which keeps the mapped one.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(MappedFile { map })
    }

    /// The file's content.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_holds_the_files_bytes_and_a_missing_one_is_an_error() {
        let mapped = MappedFile::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).unwrap();
        assert!(mapped.bytes().starts_with(b"[package]"));
        assert!(MappedFile::open(Path::new("/no/such/file")).is_err());
    }
}
