use std::time::Duration;

use super::*;
use crate::embed::EmbedThread;
use crate::lake::{Failpoints, LakeConfig};
use crate::testing::fake_embedder;

/// A pipeline over a lake in `dir` with an embedder of `dim` numbers and the program `exe` as its parser.
pub(in crate::ingest) fn pipeline(dir: &Path, exe: &str, dim: usize) -> (Pipeline, EmbedThread) {
    let (embed, thread) = fake_embedder(dim);
    let lake = LakeConfig {
        root: dir.join("lake"),
        retention: Duration::from_secs(60),
        scan_threads: 1,
        failpoints: Failpoints::default(),
    };
    let config = PipelineConfig {
        worker_exe: exe.into(),
        limits: WorkerLimits { time: Duration::from_secs(20), memory: 1 << 30 },
        chunk_tokens: 64,
        parallel: 2,
    };
    (Pipeline::new(config, embed, Arc::new(Lakes::open(lake).expect("lakes"))), thread)
}

/// A parser that does what a file's name says.
pub(in crate::ingest) const WORKER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/src/ingest/fixtures/worker.sh");

fn source(dir: &Path, name: &str, text: &str) -> SourceFile {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("writes");
    SourceFile {
        source_uri: name.to_owned(),
        name: name.to_owned(),
        path,
        collections: Vec::new(),
        acl: Vec::new(),
    }
}

async fn ingest(pipeline: &Pipeline, group: Vec<SourceFile>) -> GroupOutcome {
    pipeline.ingest("default", group, &|_| {}).await.expect("nothing keeps all of them out")
}

async fn documents(pipeline: &Pipeline) -> Vec<DocumentRow> {
    let lake = pipeline.lakes().customer("default").expect("lake");
    let snapshot = lake.snapshot(None, &Viewer::all()).await.expect("snapshot");
    snapshot.documents(&DocumentFilter::default(), usize::MAX, 0)
}

fn count(folder: PathBuf) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_group_is_one_commit_and_a_refused_file_takes_nothing_from_the_others() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipeline, _thread) = pipeline(dir.path(), WORKER, 8);
    let names = ["a", "b", "refuse", "crash", "c"];
    let group = names.map(|name| source(dir.path(), name, &format!("text of {name}"))).to_vec();
    let outcomes = ingest(&pipeline, group).await;
    let versions: Vec<Option<i64>> =
        outcomes.iter().map(|outcome| outcome.as_ref().ok().map(|outcome| outcome.version)).collect();
    let version = versions[0];
    assert!(version.is_some());
    assert_eq!(versions, [version, version, None, None, version]);
    assert!(matches!(&outcomes[2], Err(IngestError::Refused { name, .. }) if name == "refuse"));
    assert_eq!(documents(&pipeline).await.len(), 3);
    assert_eq!(count(dir.path().join("lake/default/files")), 3, "what is refused leaves no original");
    assert_eq!(count(dir.path().join("lake/default/tmp")), 0);
    let starts = std::fs::read_to_string(dir.path().join("starts")).expect("some");
    assert!(starts.lines().count() < names.len(), "small files share processes: {starts}");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_fails_alone() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipeline, _thread) = pipeline(dir.path(), WORKER, 8);
    let missing = SourceFile { path: dir.path().join("missing"), ..source(dir.path(), "a", "text") };
    let outcomes = ingest(&pipeline, vec![missing, source(dir.path(), "b", "text")]).await;
    assert!(matches!(outcomes[..], [Err(IngestError::Io { .. }), Ok(_)]), "{outcomes:?}");
}

#[tokio::test]
async fn a_text_that_documents_of_one_commit_share_is_embedded_once() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipeline, _thread) = pipeline(dir.path(), WORKER, 8);
    let group = (0..20).map(|at| source(dir.path(), &format!("f{at}"), "the same words")).collect();
    let outcomes = ingest(&pipeline, group).await;
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_ok_and(|outcome| outcome.chunks == 1)));
    assert_eq!(pipeline.embed.tokens_computed(), "the same words".len());
}

#[tokio::test]
async fn an_archive_is_one_commit_whose_refused_members_are_warnings() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipeline, _thread) = pipeline(dir.path(), WORKER, 8);
    let members: Vec<String> = (0..200).map(|at| format!("m{at}")).collect();
    let archive = source(dir.path(), "all.zip", &(members.join(" ") + " refuse crash"));
    let outcome = ingest(&pipeline, vec![archive.clone()]).await.remove(0).expect("ingested");
    assert_eq!((outcome.children, outcome.chunks, outcome.unchanged), (200, 200, false));
    assert_eq!(outcome.warnings.len(), 2, "{:?}", outcome.warnings);
    assert!(outcome.warnings[0].contains("in/refuse") && outcome.warnings[1].contains("in/crash"));
    assert_eq!(documents(&pipeline).await.len(), 201);
    let again = ingest(&pipeline, vec![archive]).await.remove(0).expect("ingested");
    let expected = IngestOutcome { unchanged: true, ..outcome };
    assert_eq!(again, expected, "an unchanged archive still says what is inside");
}

#[tokio::test]
async fn archives_are_opened_three_deep_by_content_and_the_rest_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipeline, _thread) = pipeline(dir.path(), WORKER, 8);
    // Each member is an archive with one member, without end.
    let archive = source(dir.path(), "endless.zip", "x.zip");
    let outcome = ingest(&pipeline, vec![archive]).await.remove(0).expect("ingested");
    assert_eq!(outcome.children, 2);
    let documents = documents(&pipeline).await;
    let named: Vec<&DocumentRow> = documents.iter().filter(|row| !row.warnings.is_empty()).collect();
    assert_eq!(named.len(), 1);
    assert!(named[0].warnings[0].contains("left out"));
    assert_eq!(count(dir.path().join("lake/default/tmp")), 0, "what was unpacked is removed");
}

#[tokio::test]
async fn a_lake_of_another_embedder_refuses_before_anything_is_parsed() {
    let dir = tempfile::tempdir().expect("dir");
    let (first, _thread) = pipeline(dir.path(), WORKER, 8);
    ingest(&first, vec![source(dir.path(), "a", "text")]).await.remove(0).expect("ingested");
    let (other, _thread) = pipeline(dir.path(), WORKER, 16);
    let refused = other.ingest("default", vec![source(dir.path(), "b", "text")], &|_| {}).await;
    assert!(matches!(refused, Err(IngestError::Lake(LakeError::Embedder { .. }))), "{refused:?}");
    assert_eq!(std::fs::read_to_string(dir.path().join("starts")).expect("some"), "a\n");
}

#[test]
fn groups_are_bounded_by_files_and_bytes_and_have_each_document_once() {
    let dir = tempfile::tempdir().expect("dir");
    let small = source(dir.path(), "small", "x");
    let named = |at: usize| SourceFile { source_uri: at.to_string(), ..small.clone() };
    let lengths = |files| Pipeline::groups(files).iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths((0..130).map(named).collect()), [64, 64, 2]);
    assert_eq!(lengths(vec![named(0), named(1), named(0)]), [2, 1]);
    let large = source(dir.path(), "large", &"x".repeat(GROUP_BYTES as usize));
    assert_eq!(lengths(vec![large, named(0), named(1)]), [1, 2]);
}
