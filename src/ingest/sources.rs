//! Where files come from.

use std::path::{Path, PathBuf};

/// The files named, and all files below the folders named, sorted; hidden ones are left out.
///
/// # Errors
/// What reading a folder said, with its path.
pub fn files_below(paths: &[PathBuf]) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        walk(path, &mut files)?;
    }
    Ok(files)
}

fn walk(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let named =
        |error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if !std::fs::metadata(path).map_err(named)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(path).map_err(named)?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for entry in entries {
        let hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // Links are not followed, so that a loop of them cannot trap the walk.
        if !hidden && !entry.is_symlink() {
            walk(&entry, files)?;
        }
    }
    Ok(())
}
