//! Hostile and odd files of other projects' tests: each ends ingested or refused with a reason.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::support::{tarn, test_data, write_embedder};

/// Ingests every file of the ZIP (or folder) `corpus` and returns how many were ingested and refused.
fn ingest_all(corpus: &str) -> Option<(usize, usize)> {
    let source = test_data(corpus)?;
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, lake) = (dir.path().join("embedder"), dir.path().join("lake"));
    write_embedder(&embedder);
    let mut files = Vec::new();
    if source.is_dir() {
        files_of(&source, &mut files);
    } else {
        let mut archive = zip::ZipArchive::new(std::fs::File::open(&source).expect("opens")).expect("zip");
        archive.extract(dir.path().join("files")).expect("unpacks");
        files_of(&dir.path().join("files"), &mut files);
    }
    let began = std::time::Instant::now();
    let output = tarn(&embedder, &lake).arg("ingest").args(&files).output().expect("runs");
    let lines: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("one JSON line a file"))
        .collect();
    assert_eq!(lines.len(), files.len(), "{corpus}: {}", String::from_utf8_lossy(&output.stderr));
    let mut refused = 0;
    for line in &lines {
        let Some(reason) = line["error"].as_str() else { continue };
        refused += 1;
        assert!(reason.len() > 20, "{line}: a reason says something");
        for never in ["took longer", "signal", "gave up"] {
            assert!(!reason.contains(never), "{line}");
        }
    }
    let ingested = lines.len() - refused;
    println!("{corpus}: {ingested} ingested, {refused} refused with a reason, {:.1?}", began.elapsed());
    Some((ingested, refused))
}

fn files_of(dir: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("reads").flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() { files_of(&path, files) } else { files.push(path) }
    }
}

#[test]
fn calamines_workbooks_end_ingested_or_refused() {
    let Some((ingested, _)) = ingest_all("corpora/calamine_tests.zip") else { return };
    assert!(ingested > 100);
}

#[test]
fn doclings_files_end_ingested_or_refused() {
    let Some((ingested, _)) = ingest_all("corpora/docling_pdf_xlsx_small.zip") else { return };
    assert!(ingested > 40);
}

#[test]
fn pdf_js_files_end_ingested_or_refused() {
    let Some((ingested, _)) = ingest_all("corpora/pdfjs_small_pdfs.zip") else { return };
    assert!(ingested > 300);
}

#[test]
fn zip_rs_archives_end_ingested_or_refused() {
    let Some((ingested, _)) = ingest_all("corpora/zip-rs_tests.zip") else { return };
    assert!(ingested > 10);
}

#[test]
fn product_files_end_ingested_or_refused() {
    let Some((ingested, _)) = ingest_all("product") else { return };
    assert!(ingested > 10);
}
