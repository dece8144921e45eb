//! ZIP: its members become documents of their own.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use crate::ingest::document::{Document, Member};

const MAX_MEMBERS: usize = 10_000;
/// Unpacked bytes of the whole archive.
const MAX_TOTAL: u64 = 2 << 30;
/// Unpacked over packed size of a member of more than a MiB.
const MAX_RATIO: u64 = 200;

/// Names of all members, as far as they can be read.
pub(super) fn names(bytes: &[u8]) -> Vec<String> {
    zip::ZipArchive::new(Cursor::new(bytes))
        .map(|zip| zip.file_names().take(MAX_MEMBERS).map(str::to_owned).collect())
        .unwrap_or_default()
}

pub(super) fn parse(bytes: &[u8], extract: &Path) -> Result<Document, String> {
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes))
        .map_err(|error| format!("the ZIP cannot be read: {error}"))?;
    if zip.len() > MAX_MEMBERS {
        return Err(format!("the ZIP has {} members; at most {MAX_MEMBERS} are taken: split it", zip.len()));
    }
    let mut document = Document::default();
    let (mut total, mut locked) = (0_u64, 0);
    for at in 0..zip.len() {
        let (name, encrypted) = match zip.by_index_raw(at) {
            Ok(member) if member.is_dir() => continue,
            Ok(member) => (member.name().replace('\\', "/"), member.encrypted()),
            Err(error) => {
                document.warnings.push(format!("member {at} cannot be read: {error}"));
                continue;
            }
        };
        // The name is only a label; the file is written under a number of ours.
        let name: Vec<&str> =
            name.split('/').filter(|part| !part.is_empty() && *part != "." && *part != "..").collect();
        let name = name.join("/");
        if name.is_empty() || name.starts_with("__MACOSX/") || name.ends_with(".DS_Store") {
            continue;
        }
        if encrypted {
            locked += 1;
            document.warnings.push(format!("`{name}` is encrypted: remove the password and upload it again"));
            continue;
        }
        let file = format!("{at}");
        match unpack(&mut zip, at, &extract.join(&file), MAX_TOTAL - total) {
            Ok(size) => {
                total += size;
                document.members.push(Member { name, file });
            }
            Err(Unpack::Bomb) => {
                return Err(format!(
                    "the ZIP is a bomb or too large: `{name}` unpacks to more than {MAX_RATIO} times its size, or all of it \
                     to more than {} GiB",
                    MAX_TOTAL >> 30
                ));
            }
            Err(Unpack::Damaged(why)) => {
                document.warnings.push(format!("`{name}` cannot be unpacked: {why}"))
            }
        }
    }
    match document.warnings.first() {
        _ if !document.members.is_empty() => Ok(document),
        None => Err("the ZIP is empty".to_owned()),
        Some(_) if locked == document.warnings.len() => {
            Err("all files of the ZIP are encrypted: unpack it, or remove the password, and upload it again"
                .to_owned())
        }
        Some(first) => Err(format!("no file of the ZIP can be unpacked: {first}")),
    }
}

enum Unpack {
    Bomb,
    Damaged(String),
}

fn unpack(zip: &mut zip::ZipArchive<Cursor<&[u8]>>, at: usize, to: &Path, left: u64) -> Result<u64, Unpack> {
    let damaged = |error: &dyn std::fmt::Display| Unpack::Damaged(error.to_string());
    let mut member = zip.by_index(at).map_err(|error| damaged(&error))?;
    let allowed = left.min((member.compressed_size().max(1) * MAX_RATIO).max(1 << 20));
    let mut file = std::fs::File::create(to).map_err(|error| damaged(&error))?;
    let (mut size, mut buffer) = (0_u64, vec![0; 1 << 16]);
    loop {
        let read = member.read(&mut buffer).map_err(|error| damaged(&error))?;
        if read == 0 {
            return Ok(size);
        }
        size += read as u64;
        // What the header says is not believed: the bytes are counted.
        if size > allowed {
            return Err(Unpack::Bomb);
        }
        file.write_all(&buffer[..read]).map_err(|error| damaged(&error))?;
    }
}

#[cfg(test)]
mod tests {
    use zip::write::SimpleFileOptions;

    use super::*;

    fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in files {
            zip.start_file(*name, SimpleFileOptions::default()).expect("starts");
            zip.write_all(bytes).expect("writes");
        }
        zip.finish().expect("finishes").into_inner()
    }

    /// Sets the flag of encryption in both headers of each member.
    fn locked(mut bytes: Vec<u8>) -> Vec<u8> {
        for (magic, flags) in [(b"PK\x03\x04", 6), (b"PK\x01\x02", 8)] {
            for at in 0..bytes.len() - 4 {
                if bytes[at..].starts_with(magic) {
                    bytes[at + flags] |= 1;
                }
            }
        }
        bytes
    }

    #[test]
    fn a_zip_of_encrypted_files_only_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().expect("folder");
        let bytes = zip_of(&[("a.txt", b"text"), ("b.txt", b"text")]);
        assert_eq!(parse(&bytes, folder.path()).expect("unpacks").members.len(), 2);
        let refused = parse(&locked(bytes), folder.path()).expect_err("encrypted");
        assert!(refused.contains("remove the password"), "{refused}");
    }
}
