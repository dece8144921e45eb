//! Writers that die: at every named step of the commit, at random moments, and two at a time.
//!
//! Tarn runs as a child process and is killed; what it left is read by this process, through Tarn and through
//! `deltalake`, `parquet` and `lance` alone at the versions that a snapshot names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::{Array, StringArray};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use futures::TryStreamExt;
use serde_json::Value;
use tarn::lake::{DocumentFilter, FailStep, Failpoints, LakeConfig, Lakes, Pins, Viewer};

use super::support::{Server, eventually, tarn, write_embedder};

/// Each document's words by name. Panics when anything is half there.
async fn whole_documents(root: &Path) -> BTreeMap<String, String> {
    let config = LakeConfig {
        root: root.to_owned(),
        retention: Duration::from_secs(3600),
        scan_threads: 1,
        failpoints: Failpoints::default(),
    };
    let lakes = Lakes::open(config).expect("opens");
    let lake = lakes.customer("default").expect("lake");
    let snapshot = lake.snapshot(None, &Viewer::all()).await.expect("snapshot");
    let documents = snapshot.documents(&DocumentFilter::default(), usize::MAX, 0);
    let (mut found, mut chunk_ids) = (BTreeMap::new(), BTreeSet::new());
    for document in &documents {
        let chunks = snapshot.chunks(&document.document_id).await.expect("chunks");
        assert_eq!(chunks.len(), document.chunk_count as usize, "{} is whole", document.name);
        chunk_ids.extend(chunks.iter().map(|chunk| chunk.chunk_id.clone()));
        let words: Vec<&str> = chunks.iter().flat_map(|chunk| chunk.text.split_whitespace()).collect();
        assert!(found.insert(document.name.clone(), words.join(" ")).is_none(), "{} once", document.name);
    }
    if !documents.is_empty() {
        foreign_readers_agree(&root.join("default"), snapshot.pins(), documents.len(), &chunk_ids).await;
    }
    found
}

async fn foreign_readers_agree(dir: &Path, pins: Pins, documents: usize, chunk_ids: &BTreeSet<String>) {
    let table = async |name: &str, version: i64, column: &str| {
        let path = dir.join("delta").join(name);
        let url = url::Url::from_directory_path(&path).expect("absolute");
        let table =
            deltalake::DeltaTableBuilder::from_url(url).expect("url").with_version(version as _).load().await;
        let table = table.expect("opens");
        let mut values = Vec::new();
        for file in table.snapshot().expect("snapshot").log_data().iter() {
            let file = std::fs::File::open(path.join(file.path().as_ref())).expect("file");
            let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file);
            for batch in reader.expect("parquet").build().expect("reader") {
                values.extend(strings(&batch.expect("rows"), column));
            }
        }
        values
    };
    let rows = table("general_documents", pins.general_documents, "document_id").await;
    assert_eq!(rows.len(), documents);
    assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), documents);
    let rows = table("general_chunks", pins.general_chunks, "chunk_id").await;
    assert_eq!(rows.len(), chunk_ids.len());
    assert_eq!(&rows.into_iter().collect::<BTreeSet<_>>(), chunk_ids);
    let path = dir.join("lance/embeddings.lance");
    let dataset = lance::Dataset::open(&path.to_string_lossy()).await.expect("opens");
    let dataset = dataset.checkout_version(pins.embeddings as u64).await.expect("version");
    let mut scanner = dataset.scan();
    scanner.project(&["chunk_id"]).expect("projects");
    let batches: Vec<RecordBatch> =
        scanner.try_into_stream().await.expect("scans").try_collect().await.expect("rows");
    let rows: Vec<String> = batches.iter().flat_map(|batch| strings(batch, "chunk_id")).collect();
    assert_eq!(rows.len(), chunk_ids.len());
    assert_eq!(&rows.into_iter().collect::<BTreeSet<_>>(), chunk_ids);
}

fn strings(batch: &RecordBatch, name: &str) -> Vec<String> {
    let column = arrow::compute::cast(batch.column_by_name(name).expect("column"), &DataType::Utf8);
    let column = column.expect("text");
    let column = column.as_any().downcast_ref::<StringArray>().expect("text");
    column.iter().flatten().map(str::to_owned).collect()
}

fn names(documents: &BTreeMap<String, String>) -> Vec<&str> {
    documents.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_process_that_dies_at_any_step_of_a_commit_leaves_whole_documents() {
    let dir = tempfile::tempdir().expect("dir");
    let embedder = dir.path().join("embedder");
    write_embedder(&embedder);
    for step in FailStep::ALL {
        let (lake, files) = (dir.path().join(format!("{step:?}")), dir.path().join("files"));
        std::fs::create_dir_all(&files).expect("folder");
        let ingest = |name: &str, text: &str, failpoint: Option<FailStep>| {
            let file = files.join(name);
            std::fs::write(&file, text).expect("writes");
            let mut command = tarn(&embedder, &lake);
            if let Some(step) = failpoint {
                command.args(["--failpoint", &format!("{step:?}")]);
            }
            command.arg("ingest").arg(file).output().expect("runs").status
        };
        assert!(ingest("a.txt", "alpha one", None).success());
        assert!(ingest("b.txt", "beta two", None).success());
        let status = ingest("a.txt", "omega three", Some(step));
        assert!(status.code().is_none(), "{step:?}: killed by a signal, not {status}");
        let committed = step == FailStep::DocumentsCommitted;
        let documents = whole_documents(&lake).await;
        assert_eq!(names(&documents), ["a.txt", "b.txt"], "{step:?}");
        assert_eq!(documents["a.txt"], if committed { "omega three" } else { "alpha one" }, "{step:?}");
        assert!(ingest("c.txt", "gamma four", None).success(), "{step:?}: the next writer repairs");
        assert!(ingest("a.txt", "omega three", None).success(), "{step:?}: and what was lost goes in again");
        let documents = whole_documents(&lake).await;
        assert_eq!(names(&documents), ["a.txt", "b.txt", "c.txt"], "{step:?}");
        assert_eq!(documents["a.txt"], "omega three", "{step:?}");
    }
}

/// What may be seen of each document: `None` is absent. One value where the last operation was acknowledged.
type Acceptable = BTreeMap<String, Vec<Option<String>>>;

/// What a client knows when its server dies.
#[derive(Default)]
struct Known {
    acceptable: Acceptable,
    /// An upload that was accepted (202) and not seen done: the next server must finish it.
    promised: Option<(String, String)>,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Option<Value> {
    let response = request.send().await.ok()?;
    assert!(response.status().is_success(), "{}", response.status());
    serde_json::from_slice(&response.bytes().await.ok()?).ok()
}

/// Adds, replaces and deletes documents until the server no longer answers; returns what may be seen then.
async fn change_until_killed(
    url: String,
    acceptable: Acceptable,
    mut random: Random,
    acknowledged: Arc<AtomicUsize>,
) -> Known {
    let client = reqwest::Client::new();
    let mut known = Known { acceptable, ..Known::default() };
    loop {
        let name = format!("d{}.txt", random.below(6));
        let deletes = random.below(3) == 0;
        let text: Option<String> = (!deletes).then(|| {
            let paragraphs: Vec<String> = (0..=random.below(4))
                .map(|_| format!("part {} of {name} is {}.", random.below(1000), "word ".repeat(60).trim()))
                .collect();
            paragraphs.join(" ")
        });
        known.acceptable.entry(name.clone()).or_insert_with(|| vec![None]).push(text.clone());
        let answered = match &text {
            Some(text) => upload(&client, &url, &name, text, &mut known.promised).await,
            None => {
                let id = tarn::lake::document_id("default", &name);
                delete(&client, &format!("{url}/api/documents/{id}")).await
            }
        };
        if answered.is_none() {
            return known;
        }
        known.acceptable.insert(name, vec![text]);
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// A document that is not there is as good as deleted.
async fn delete(client: &reqwest::Client, url: &str) -> Option<()> {
    let response = client.delete(url).send().await.ok()?;
    let status = response.status().as_u16();
    assert!(status == 200 || status == 404, "{status}: {}", response.text().await.unwrap_or_default());
    Some(())
}

/// Resolves once the job is done; in between it is `promised`.
async fn upload(
    client: &reqwest::Client,
    url: &str,
    name: &str,
    text: &str,
    promised: &mut Option<(String, String)>,
) -> Option<()> {
    let body = format!(
        "--b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"{name}\"\r\n\r\n{text}\r\n--b--\r\n"
    );
    let request = client
        .post(format!("{url}/api/upload/files"))
        .header("content-type", "multipart/form-data; boundary=b")
        .body(body);
    let job = answer(request).await?;
    *promised = Some((name.to_owned(), text.to_owned()));
    loop {
        let status = answer(client.get(format!("{url}{}", job["status_url"].as_str()?))).await?;
        if status["status"] == "done" {
            assert!(status["outcomes"][0]["error"].is_null(), "{status}");
            *promised = None;
            return Some(());
        }
    }
}

fn jobs_are_done(lake: &Path) -> Option<()> {
    for job in std::fs::read_dir(lake.join("default/jobs")).into_iter().flatten().flatten() {
        let record = std::fs::read(job.path().join("job.json")).ok()?;
        (serde_json::from_slice::<Value>(&record).ok()?["status"] == "done").then_some(())?;
    }
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_at_random_moments_lose_nothing_acknowledged_and_show_nothing_half() {
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, lake) = (dir.path().join("embedder"), dir.path().join("lake"));
    write_embedder(&embedder);
    let mut known = Known::default();
    let mut random = Random(7);
    let acknowledged = Arc::new(AtomicUsize::new(0));
    for kill in 0..50_u64 {
        let server = Server::start(tarn(&embedder, &lake));
        eventually("unfinished jobs", async || jobs_are_done(&lake)).await;
        if let Some((name, text)) = known.promised.take() {
            known.acceptable.insert(name, vec![Some(text)]);
        }
        // What was sent and not acknowledged is settled now, one way or the other.
        let documents = whole_documents(&lake).await;
        for (name, acceptable) in &mut known.acceptable {
            let now = documents.get(name).cloned();
            assert!(acceptable.contains(&now), "after kill {kill}: {name} is {now:?}, not {acceptable:?}");
            *acceptable = vec![now];
        }
        let wanted = acknowledged.load(Ordering::SeqCst) + random.below(3) as usize;
        let changes =
            change_until_killed(server.url.clone(), known.acceptable, Random(kill), acknowledged.clone());
        let changes = tokio::spawn(changes);
        eventually("acknowledgements", async || {
            (acknowledged.load(Ordering::SeqCst) >= wanted).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_micros(random.below(150_000))).await;
        server.kill();
        known = changes.await.expect("changes");
        let documents = whole_documents(&lake).await;
        for (name, acceptable) in &known.acceptable {
            let now = documents.get(name).cloned();
            assert!(
                acceptable.contains(&now),
                "at kill {kill}: {name} is {now:?}, not one of {acceptable:?}"
            );
        }
    }
    let acknowledged = acknowledged.load(Ordering::SeqCst);
    assert!(acknowledged >= 40, "the kills came too early to mean anything: {acknowledged}");
}

#[tokio::test]
async fn two_processes_ingest_a_hundred_documents_each_and_share_twenty() {
    let dir = tempfile::tempdir().expect("dir");
    let (embedder, lake, files) =
        (dir.path().join("embedder"), dir.path().join("lake"), dir.path().join("files"));
    write_embedder(&embedder);
    std::fs::create_dir(&files).expect("folder");
    let file = |at: usize| {
        let path = files.join(format!("d{at:03}.txt"));
        std::fs::write(&path, format!("document number {at} speaks of item x{at}")).expect("writes");
        path
    };
    let mut children: Vec<std::process::Child> = [0..100, 80..180]
        .into_iter()
        .map(|range| {
            let mut command = tarn(&embedder, &lake);
            command.arg("ingest").args(range.map(file)).stdout(std::process::Stdio::null());
            command.spawn().expect("starts")
        })
        .collect();
    for child in &mut children {
        assert!(child.wait().expect("ends").success());
    }
    let documents = whole_documents(&lake).await;
    let expected: Vec<String> = (0..180).map(|at| format!("d{at:03}.txt")).collect();
    assert_eq!(names(&documents), expected);
}
