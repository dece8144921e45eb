use super::*;
use crate::ingest::pipeline::tests::{WORKER, pipeline};

/// Jobs that wait for a [`Jobs::run`] of the test's: no permit is left for those that start themselves.
fn jobs(pipeline: Pipeline) -> Jobs {
    Jobs { pipeline, running: Arc::new(Semaphore::new(0)), pauses: Arc::new([Duration::ZERO; 2]) }
}

async fn submit(jobs: &Jobs, names: &[&str]) -> JobStatus {
    let upload = jobs.prepare("default").await.expect("prepares");
    for (at, name) in names.iter().enumerate() {
        std::fs::write(upload.folder().join(at.to_string()), format!("text of {name}")).expect("writes");
    }
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    jobs.submit(upload, names).await.expect("submits")
}

fn age(path: &Path, age: Duration) {
    File::open(path).and_then(|file| file.set_modified(SystemTime::now() - age)).expect("sets its time");
}

#[tokio::test]
async fn a_job_is_done_when_each_file_is_committed_or_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipeline, _thread) = pipeline(dir.path(), WORKER, 8);
    let jobs = jobs(pipeline);
    let job = submit(&jobs, &["a", "refuse", "b"]).await;
    assert_eq!(jobs.status("default", &job.id).await, Some(job.clone()));
    let done = jobs.run("default", &job.id).await.expect("runs").expect("is not run elsewhere");
    assert_eq!(jobs.status("default", &job.id).await.as_ref(), Some(&done));
    assert_eq!((done.status, done.outcomes.len(), &done.error), (JobState::Done, 3, &None));
    let refused: Vec<bool> = done.outcomes.iter().map(|file| file.error.is_some()).collect();
    assert_eq!(refused, [false, true, false]);
    assert!(!jobs.folder("default", &job.id).join("0").exists());
    assert!(unfinished(jobs.pipeline.lakes().root()).is_empty());
}

#[tokio::test]
async fn what_is_no_refusal_fails_the_job_keeps_its_files_and_is_taken_up_by_the_next_start() {
    let dir = tempfile::tempdir().expect("dir");
    let (broken, _thread) = pipeline(dir.path(), "/no/such/program", 8);
    let before = jobs(broken);
    let job = submit(&before, &["a", "b"]).await;
    let failed = before.run("default", &job.id).await.expect("runs").expect("is not run elsewhere");
    assert_eq!((failed.status, failed.outcomes.len()), (JobState::Failed, 0));
    assert!(failed.error.is_some_and(|error| error.contains("/no/such/program")));
    assert!(before.folder("default", &job.id).join("0").exists());

    let (working, _thread) = pipeline(dir.path(), WORKER, 8);
    let after = jobs(working);
    let found = unfinished(after.pipeline.lakes().root());
    assert_eq!(found.iter().map(|job| &job.id).collect::<Vec<_>>(), [&job.id]);
    let done = after.run("default", &job.id).await.expect("runs").expect("is not run elsewhere");
    assert_eq!((done.status, done.outcomes.len(), done.error), (JobState::Done, 2, None));
}

#[tokio::test]
async fn a_job_that_another_process_runs_is_left_alone() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipeline, _thread) = pipeline(dir.path(), WORKER, 8);
    let jobs = jobs(pipeline);
    let job = submit(&jobs, &["a"]).await;
    let held = lock(&jobs.folder("default", &job.id)).expect("locks");
    assert!(held.is_some());
    assert_eq!(jobs.run("default", &job.id).await.expect("looks"), None);
    assert_eq!(jobs.status("default", &job.id).await, Some(job.clone()));
    drop(held);
    let done = jobs.run("default", &job.id).await.expect("runs");
    assert_eq!(done.map(|job| job.status), Some(JobState::Done));
}

#[tokio::test]
async fn a_start_keeps_records_that_it_cannot_read_and_uploads_that_another_process_receives() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipeline, _thread) = pipeline(dir.path(), WORKER, 8);
    let jobs = jobs(pipeline);
    let strange = jobs.folder("default", &uuid::Uuid::now_v7().to_string());
    std::fs::create_dir_all(&strange).expect("folder");
    std::fs::write(strange.join("job.json"), r#"{"status": "of tomorrow"}"#).expect("writes");
    let (receiving, left) =
        (jobs.prepare("default").await.expect("prepares"), jobs.prepare("default").await.expect("prepares"));
    age(left.folder(), ABANDONED + Duration::from_secs(60));
    assert!(unfinished(jobs.pipeline.lakes().root()).is_empty());
    clear_abandoned(&dir.path().join("lake/default/tmp"));
    assert!(strange.join("job.json").exists());
    assert!(receiving.folder().exists());
    assert!(!left.folder().exists(), "after a day nobody sends it any more");
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let (pipeline, _thread) = pipeline(dir.path(), WORKER, 8);
    let upload = jobs(pipeline).prepare("default").await.expect("prepares");
    let folder = upload.folder().to_owned();
    std::fs::write(folder.join("0"), "half a fi").expect("writes");
    drop(upload);
    assert!(!folder.exists());
    assert!(!dir.path().join("lake/default/jobs").exists());
}
