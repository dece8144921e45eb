//! Where files come from.

use std::path::{Component, Path, PathBuf};

/// What identifies the file `path`: its absolute path without `.` and `..`, so that one file is one document however
/// it is named. Links are not followed: where a link leads may change.
///
/// # Errors
/// When the working folder is not known.
pub fn source_uri(path: &Path) -> std::io::Result<String> {
    let mut whole = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(whole.pop()),
            part => whole.push(part),
        }
    }
    Ok(whole.to_string_lossy().into_owned())
}

/// The files named, and all files below the folders named, sorted; hidden ones are left out, and so is what is no
/// regular file: reading a pipe or a device need not end.
///
/// # Errors
/// What reading a folder said, with its path.
pub fn files_below(paths: &[PathBuf]) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let before = files.len();
        walk(path, &mut files)?;
        if files.len() == before && !path.is_dir() {
            let reason = format!("{}: it is not a regular file", path.display());
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, reason));
        }
    }
    Ok(files)
}

fn walk(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let named =
        |error: std::io::Error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let kind = std::fs::metadata(path).map_err(named)?;
    if !kind.is_dir() {
        if kind.is_file() {
            files.push(path.to_owned());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_has_one_uri_however_it_is_named() {
        let here = std::env::current_dir().expect("folder").join("corpus/a.txt");
        for name in ["corpus/a.txt", "./corpus/a.txt", "x/../corpus/./a.txt"] {
            assert_eq!(source_uri(Path::new(name)).expect("uri"), here.to_string_lossy(), "{name}");
        }
    }

    #[test]
    fn only_regular_files_are_taken() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join("a.txt"), "a").expect("writes");
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).expect("binds");
        let found = files_below(&[dir.path().to_owned()]).expect("reads");
        assert_eq!(found, [dir.path().join("a.txt")]);
        let named = files_below(&[dir.path().join("socket")]).expect_err("no file");
        assert!(named.to_string().contains("regular file"), "{named}");
    }
}
