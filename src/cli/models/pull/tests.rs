//! Against a local server that speaks the hub's protocol: revision, tree, resolve with a
//! redirect to a storage on another address, ranges, linked ETags, and its accidents.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use axum::routing::get;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A path, and the range that was asked for.
type Asked = (String, Option<String>);

/// What the hub has and what it did.
#[derive(Clone, Default)]
struct FakeHub {
    files: Arc<HashMap<String, Vec<u8>>>,
    /// Storage answers of a file that break off: after how many bytes, one an answer.
    breaks: Arc<Mutex<HashMap<String, Vec<usize>>>>,
    /// Hashes that the hub names instead of the right ones.
    lies: Arc<HashMap<String, String>>,
    ignores_ranges: bool,
    storage: String,
    /// Range headers (or none) of the storage's answers.
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeHub {
    fn with(files: &[(&str, Vec<u8>)]) -> FakeHub {
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.clone())).collect();
        FakeHub { files: Arc::new(files), ..FakeHub::default() }
    }

    /// Serves hub and storage on two ports; returns the hub's address.
    async fn serve(mut self) -> String {
        let storage = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.storage = format!("http://{}", storage.local_addr().unwrap());
        let hub = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", hub.local_addr().unwrap());
        let blobs = Router::new().route("/blob/{*path}", get(blob)).with_state(self.clone());
        let pages = Router::new()
            .route("/api/models/{owner}/{name}/revision/{revision}", get(revision))
            .route("/api/models/{owner}/{name}/tree/{revision}", get(tree))
            .route("/{owner}/{name}/resolve/{revision}/{*path}", get(resolve))
            .with_state(self);
        tokio::spawn(async move { axum::serve(storage, blobs).await });
        tokio::spawn(async move { axum::serve(hub, pages).await });
        address
    }

    fn sha256(&self, path: &str) -> String {
        self.lies.get(path).cloned().unwrap_or_else(|| sha256(&self.files[path]))
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".gguf")
}

fn json(value: serde_json::Value) -> Response<Body> {
    Response::builder()
        .header("content-type", "application/json")
        .body(Body::from(value.to_string()))
        .unwrap()
}

async fn revision(UrlPath((owner, name, revision)): UrlPath<(String, String, String)>) -> Response<Body> {
    match revision.as_str() {
        "main" | COMMIT => json(serde_json::json!({"id": format!("{owner}/{name}"), "sha": COMMIT})),
        _ => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .header("x-error-code", "RevisionNotFound")
            .body(Body::empty())
            .unwrap(),
    }
}

async fn tree(State(hub): State<FakeHub>) -> Response<Body> {
    let mut entries =
        vec![serde_json::json!({"type": "directory", "oid": "d", "path": "1_Pooling", "size": 0})];
    for (path, bytes) in hub.files.iter() {
        let mut entry = serde_json::json!({
            "type": "file", "path": path, "size": bytes.len(), "oid": sha256(path.as_bytes())[..40].to_owned(),
        });
        if is_large(path) {
            // As the hub does it: the field is `oid`, which hf-hub does not read.
            entry["lfs"] =
                serde_json::json!({"oid": hub.sha256(path), "size": bytes.len(), "pointerSize": 134});
        }
        entries.push(entry);
    }
    json(entries.into())
}

async fn resolve(
    State(hub): State<FakeHub>,
    UrlPath((_, _, _, path)): UrlPath<(String, String, String, String)>,
) -> Response<Body> {
    let Some(bytes) = hub.files.get(&path) else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
    };
    let answer = Response::builder().header("x-repo-commit", COMMIT).header("accept-ranges", "bytes");
    match is_large(&path) {
        false => {
            answer.header("etag", "\"0123456789012345678901234567890123456789\"").body(bytes.clone().into())
        }
        true => answer
            .status(StatusCode::FOUND)
            .header("location", format!("{}/blob/{path}", hub.storage))
            .header("x-linked-etag", format!("\"{}\"", hub.sha256(&path)))
            .header("x-linked-size", bytes.len())
            .body(Body::empty()),
    }
    .unwrap()
}

async fn blob(
    State(hub): State<FakeHub>,
    UrlPath(path): UrlPath<String>,
    method: Method,
    headers: HeaderMap,
) -> Response<Body> {
    let bytes = hub.files[&path].clone();
    if method == Method::HEAD {
        return Response::builder().header("content-length", bytes.len()).body(Body::empty()).unwrap();
    }
    let range = headers.get("range").map(|range| range.to_str().unwrap().to_owned());
    hub.asked.lock().unwrap().push((path.clone(), range.clone()));
    let start = match (&range, hub.ignores_ranges) {
        (Some(range), false) => range["bytes=".len()..].split('-').next().unwrap().parse().unwrap(),
        _ => 0,
    };
    let rest = bytes[start..].to_vec();
    let broken = hub.breaks.lock().unwrap().get_mut(&path).and_then(Vec::pop);
    let mut answer = Response::builder().header("content-length", rest.len());
    if start > 0 {
        answer = answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()));
    }
    match broken {
        None => answer.body(Body::from(rest)).unwrap(),
        Some(after) => {
            let head = bytes::Bytes::from(rest[..after].to_vec());
            // What is there goes out when the body has to be waited for; then the cable is pulled.
            let cut = futures::stream::once(async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("the cable was pulled"))
            });
            answer.body(Body::from_stream(futures::stream::iter([Ok(head)]).chain(cut))).unwrap()
        }
    }
}

struct Run {
    dir: tempfile::TempDir,
    events: Vec<PullEvent>,
    result: Result<Pulled, PullError>,
}

impl Run {
    fn file(&self, path: &str) -> Option<Vec<u8>> {
        std::fs::read(self.dir.path().join("acme/tiny").join(path)).ok()
    }
}

async fn pull_from(address: &str, include: &[&str], dir: tempfile::TempDir) -> Run {
    pull_known(address, include, dir, None).await
}

async fn pull_known(
    address: &str,
    include: &[&str],
    dir: tempfile::TempDir,
    manifest: Option<Manifest>,
) -> Run {
    let request = PullRequest {
        repository: "acme/tiny".to_owned(),
        revision: "main".to_owned(),
        include: include.iter().map(|pattern| (*pattern).to_owned()).collect(),
        manifest,
        pause: Duration::from_millis(1),
    };
    let settings = ModelsSettings {
        models_dir: dir.path().to_owned(),
        hub: address.to_owned(),
        token: Some("hf_test".to_owned()),
    };
    let mut events = Vec::new();
    let result = pull(&request, &settings, &mut |event| events.push(event)).await;
    Run { dir, events, result }
}

fn here() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[tokio::test]
async fn a_model_is_pulled_with_what_it_needs_and_large_files_are_verified() {
    let hub = FakeHub::with(&[
        ("config.json", b"{}".to_vec()),
        ("1_Pooling/config.json", b"{ }".to_vec()),
        ("model.safetensors", weights()),
        ("pytorch_model.bin", vec![1; 10]),
        ("onnx/config.json", b"x".to_vec()),
    ]);
    let run = pull_from(&hub.serve().await, &[], here()).await;
    let pulled = run.result.as_ref().unwrap();
    assert_eq!(pulled.commit, COMMIT);
    assert_eq!(run.file("model.safetensors").unwrap(), weights());
    assert_eq!(run.file("1_Pooling/config.json").unwrap(), b"{ }");
    assert_eq!((run.file("pytorch_model.bin"), run.file("onnx/config.json")), (None, None));
    let expected =
        PullEvent::File { file: "model.safetensors".to_owned(), sha256: sha256(&weights()), verified: true };
    assert!(run.events.contains(&expected), "{:?}", run.events);
}

#[tokio::test]
async fn a_connection_that_breaks_goes_on_from_the_bytes_that_are_here() {
    let hub = FakeHub::with(&[("model.safetensors", weights())]);
    hub.breaks.lock().unwrap().insert("model.safetensors".to_owned(), vec![50_000, 100_000]);
    let asked = Arc::clone(&hub.asked);
    let run = pull_from(&hub.serve().await, &[], here()).await;
    run.result.as_ref().unwrap();
    assert_eq!(run.file("model.safetensors").unwrap(), weights());
    assert_eq!(run.events.iter().filter(|event| matches!(event, PullEvent::Resume { .. })).count(), 2);
    let ranges: Vec<_> = asked.lock().unwrap().iter().map(|(_, range)| range.clone()).collect();
    assert_eq!(ranges[0], None);
    assert!(
        ranges[1..].iter().all(|range| range.as_ref().is_some_and(|range| !range.starts_with("bytes=0")))
    );
}

#[tokio::test]
async fn a_pull_that_was_interrupted_goes_on_in_the_next_run() {
    let hub = FakeHub::with(&[("model.safetensors", weights())]);
    hub.breaks.lock().unwrap().insert("model.safetensors".to_owned(), vec![0, 0, 0, 0, 70_000]);
    let asked = Arc::clone(&hub.asked);
    let address = hub.serve().await;
    let run = pull_from(&address, &[], here()).await;
    let Err(PullError::Broken { bytes, .. }) = run.result else { panic!("{:?}", run.result) };
    assert_eq!(run.file("model.safetensors"), None, "a part bore the file's name");
    let before = asked.lock().unwrap().len();
    let run = pull_from(&address, &[], run.dir).await;
    run.result.as_ref().unwrap();
    assert_eq!(run.file("model.safetensors").unwrap(), weights());
    let range = asked.lock().unwrap()[before].1.clone();
    assert_eq!(range, Some(format!("bytes={bytes}-{}", weights().len() - 1)));
    let before = asked.lock().unwrap().len();
    pull_from(&address, &[], run.dir).await.result.unwrap();
    assert_eq!(asked.lock().unwrap().len(), before, "a whole file was fetched again");
}

#[tokio::test]
async fn a_server_without_ranges_still_ends_with_the_right_bytes() {
    let mut hub = FakeHub::with(&[("model.safetensors", weights())]);
    hub.ignores_ranges = true;
    hub.breaks.lock().unwrap().insert("model.safetensors".to_owned(), vec![100_000]);
    let run = pull_from(&hub.serve().await, &[], here()).await;
    run.result.as_ref().unwrap();
    assert_eq!(run.file("model.safetensors").unwrap(), weights());
}

#[tokio::test]
async fn bytes_with_another_hash_than_promised_are_refused_and_thrown_away() {
    let mut hub = FakeHub::with(&[("model.safetensors", weights())]);
    hub.lies = Arc::new(HashMap::from([("model.safetensors".to_owned(), "0".repeat(64))]));
    let run = pull_from(&hub.serve().await, &[], here()).await;
    let Err(PullError::WrongHash { file, expected, found }) = &run.result else { panic!("{:?}", run.result) };
    assert_eq!((file.as_str(), expected, found), ("model.safetensors", &"0".repeat(64), &sha256(&weights())));
    assert_eq!(std::fs::read_dir(run.dir.path().join("acme/tiny")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_hash_in_the_manifest_holds_against_the_hub() {
    let hub = FakeHub::with(&[("config.json", b"{}".to_vec())]);
    let mut manifest = manifests().unwrap().remove(0);
    manifest.sha256.insert("config.json".to_owned(), sha256(b"{\"other\": 1}"));
    let run = pull_known(&hub.serve().await, &["*.json"], here(), Some(manifest)).await;
    assert!(matches!(run.result, Err(PullError::WrongHash { .. })), "{:?}", run.result);
}

#[tokio::test]
async fn of_several_quantisations_one_must_be_named() {
    let files = [("tiny.Q4_1.gguf", vec![4; 9]), ("tiny.Q8_0.gguf", vec![8; 9]), ("README.md", vec![b'r'])];
    let address = FakeHub::with(&files).serve().await;
    let run = pull_from(&address, &[], here()).await;
    assert!(matches!(run.result, Err(PullError::WhichGguf { .. })), "{:?}", run.result);
    let run = pull_from(&address, &["*Q8_0.gguf"], run.dir).await;
    assert_eq!(run.result.as_ref().unwrap().files, ["tiny.Q8_0.gguf"]);
    let run = pull_from(&address, &["*Q2_K.gguf"], run.dir).await;
    assert!(matches!(run.result, Err(PullError::NothingMatches { .. })), "{:?}", run.result);
}

#[tokio::test]
async fn a_hub_cannot_write_outside_the_folder() {
    let hub = FakeHub::with(&[("../../escape.json", b"{}".to_vec())]);
    let run = pull_from(&hub.serve().await, &[], here()).await;
    assert!(matches!(run.result, Err(PullError::UnsafePath { .. })), "{:?}", run.result);
}

#[tokio::test]
async fn an_unknown_revision_says_so() {
    let hub = FakeHub::with(&[("config.json", b"{}".to_vec())]);
    let dir = here();
    let request = PullRequest {
        repository: "acme/tiny".to_owned(),
        revision: "nope".to_owned(),
        include: Vec::new(),
        manifest: None,
        pause: Duration::from_millis(1),
    };
    let settings = ModelsSettings {
        models_dir: dir.path().to_owned(),
        hub: hub.serve().await,
        token: Some("t".to_owned()),
    };
    let error = pull(&request, &settings, &mut |_| ()).await.unwrap_err();
    let PullError::Hub { source, .. } = &error else { panic!("{error:?}") };
    assert!(
        matches!(**source, HFError::RevisionNotFound { .. } | HFError::RepoNotFound { .. }),
        "{source:?}"
    );
}

#[test]
fn a_model_is_named_by_repository_revision_or_manifest() {
    let of = |model: &str| PullRequest::of(&PullArgs { model: model.to_owned(), include: Vec::new() });
    let known = of("smollm2-135m-instruct").unwrap();
    assert_eq!(known.repository, "HuggingFaceTB/SmolLM2-135M-Instruct");
    assert!(known.include.contains(&"config.json".to_owned()));
    let any = of("acme/tiny@v1.0").unwrap();
    assert_eq!((any.repository.as_str(), any.revision.as_str()), ("acme/tiny", "v1.0"));
    for wrong in ["nothing-known", "a/b/c", "../b", "a/..", "/etc/passwd", ""] {
        assert!(matches!(of(wrong), Err(PullError::UnknownModel { .. })), "{wrong}");
    }
}
