use super::*;

/// The fixture `worker.sh` with a second a document.
async fn parse(dir: &Path, names: &[&str]) -> Vec<Answer> {
    let exe = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ingest/fixtures/worker.sh");
    let tasks: Vec<Task> = names.iter().map(|name| task(dir, name)).collect();
    let limits = WorkerLimits { time: Duration::from_secs(2), memory: 1 << 30 };
    parse_isolated(&exe, &tasks, limits).await.expect("starts")
}

fn task(dir: &Path, name: &str) -> Task {
    let path = dir.join(name);
    std::fs::write(&path, format!("text of {name}\n")).expect("writes");
    Task { path, name: name.to_owned(), extract: dir.join("extract"), until: None }
}

fn words(answer: &Answer) -> &str {
    match answer {
        Ok(document) => &document.blocks[0].text,
        Err(reason) => reason,
    }
}

fn starts(dir: &Path) -> Vec<String> {
    std::fs::read_to_string(dir.join("starts")).expect("some").lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn one_process_parses_many_documents_and_a_refusal_does_not_end_it() {
    let dir = tempfile::tempdir().expect("dir");
    let answers = parse(dir.path(), &["a", "refuse", "b"]).await;
    assert_eq!(answers.iter().map(words).collect::<Vec<_>>(), ["text of a", "it is not wanted", "text of b"]);
    assert_eq!(starts(dir.path()), ["a"]);
}

#[tokio::test]
async fn a_crash_or_a_hang_fails_the_document_at_hand_and_the_rest_go_on() {
    let dir = tempfile::tempdir().expect("dir");
    let answers = parse(dir.path(), &["a", "crash", "b", "hang", "c"]).await;
    let words: Vec<&str> = answers.iter().map(words).collect();
    assert_eq!((words[0], words[2], words[4]), ("text of a", "text of b", "text of c"));
    assert!(words[1].contains("ended early") && words[1].contains("--parse-mb"), "{}", words[1]);
    assert!(words[3].contains("--parse-seconds"), "{}", words[3]);
    // The one that crashed was tried alone, in case the documents before it were the reason.
    assert_eq!(starts(dir.path()), ["a", "crash", "b", "c"]);
}

#[tokio::test]
async fn an_answer_without_end_is_refused_for_its_size() {
    let dir = tempfile::tempdir().expect("dir");
    let tasks = [task(dir.path(), "huge"), task(dir.path(), "a")];
    let exe = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ingest/fixtures/worker.sh");
    let limits = WorkerLimits { time: Duration::from_secs(60), memory: 1 << 30 };
    let answers = parse_isolated(&exe, &tasks, limits).await.expect("starts");
    assert!(words(&answers[0]).contains("256 MiB: split"), "{}", words(&answers[0]));
    assert_eq!(words(&answers[1]), "text of a");
}

#[tokio::test]
async fn a_worker_that_cannot_be_started_is_no_refusal_of_the_file() {
    let dir = tempfile::tempdir().expect("dir");
    let limits = WorkerLimits { time: Duration::from_secs(2), memory: 1 << 30 };
    let failed = parse_isolated(Path::new("/no/such/program"), &[task(dir.path(), "a")], limits).await;
    assert!(matches!(failed, Err(IngestError::Io { .. })), "{failed:?}");
}

#[test]
fn the_worker_answers_each_line_with_a_line() {
    let dir = tempfile::tempdir().expect("dir");
    let mut requests = Vec::new();
    for name in ["a.txt", "b.exe"] {
        requests.push(Ok(serde_json::to_string(&task(dir.path(), name)).expect("json")));
    }
    std::fs::write(dir.path().join("b.exe"), b"MZ\x00\x01\x02\x03\x00\x00").expect("writes");
    let mut out = Vec::new();
    answer_all(requests.into_iter(), &mut out).expect("answers");
    let answers: Vec<Answer> = String::from_utf8(out)
        .expect("text")
        .lines()
        .map(|l| serde_json::from_str(l).expect("json"))
        .collect();
    assert_eq!(words(&answers[0]), "text of a.txt");
    assert!(answers[1].is_err());
}

#[test]
fn this_program_is_started_through_its_open_file() {
    let own = std::env::current_exe().expect("path");
    assert_eq!(program(own), Path::new("/proc/self/exe"));
    assert_eq!(program("/bin/false".into()), Path::new("/bin/false"));
}
