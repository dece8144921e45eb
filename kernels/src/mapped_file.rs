//! The only memory map: model files of the operator.

use std::fs::File;
use std::io;
use std::path::Path;

/// A file mapped for reading.
///
/// Only the operator's model files are mapped. Anything that a customer can replace is read into memory instead.
#[derive(Debug)]
pub struct MappedFile {
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the whole file.
    ///
    /// # Errors
    /// What opening or mapping says.
    pub fn open(path: &Path) -> io::Result<MappedFile> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(MappedFile { map: None });
        }
        // SAFETY: a map is sound while nobody shrinks or rewrites the file. Model files belong to the operator, who
        // replaces them by rename; this type's documentation forbids it for anything that a customer can write.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(MappedFile { map: Some(map) })
    }

    /// Its content.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}
