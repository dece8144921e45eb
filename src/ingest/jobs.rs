//! Uploads that outlive a request and a crash.
//!
//! An upload is received in `<lake>/<customer>/tmp`. Once its files and `job.json` are synced it is renamed to
//! `jobs/<id>`, and only then acknowledged: what is in `jobs` is a promise, and nothing but finishing it removes its
//! files. A job is done when every file is committed or refused. What else goes wrong (a full disk, the embedder) is
//! tried again, first at once, then at the next start.
//!
//! Several processes may serve one lake: a job is run by the one that holds its `lock`.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::error::IngestError;
use super::pipeline::{IngestOutcome, Pipeline, SourceFile, scratch_dir};

/// Waits before a group of files is tried again.
const PAUSES: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];
/// An unfinished upload of this age has no sender any more.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Accepted.
    Queued,
    /// At work.
    Running,
    /// Every file is committed or refused.
    Done,
    /// Something else than the files was in the way; the next start tries again.
    Failed,
}

/// What became of one file of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOutcome {
    /// Its name.
    pub name: String,
    /// What it became, if it was ingested.
    pub outcome: Option<IngestOutcome>,
    /// Why it was not.
    pub error: Option<String>,
}

/// A job as its record has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its name.
    pub id: String,
    /// Whose it is.
    pub customer: String,
    /// How far it is.
    pub status: JobState,
    /// Names of its files; file `i` is kept as `i`.
    pub files: Vec<String>,
    /// Outcomes of the first files.
    pub outcomes: Vec<FileOutcome>,
    /// What was in the way of a failed job.
    #[serde(default)]
    pub error: Option<String>,
}

/// An upload that is being received; dropped before [`Jobs::submit`], it is gone.
#[derive(Debug)]
pub struct Incoming {
    id: String,
    customer: String,
    folder: tempfile::TempDir,
}

impl Incoming {
    /// Where its files go, as `0`, `1`, …
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// All jobs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs {
    pipeline: Pipeline,
    running: Arc<Semaphore>,
    pauses: Arc<[Duration]>,
}

impl Jobs {
    /// Jobs over `pipeline`, `parallel` of them at a time.
    #[must_use]
    pub fn new(pipeline: Pipeline, parallel: usize) -> Jobs {
        Jobs { pipeline, running: Arc::new(Semaphore::new(parallel.max(1))), pauses: Arc::new(PAUSES) }
    }

    fn folder(&self, customer: &str, id: &str) -> PathBuf {
        self.pipeline.lakes().root().join(customer).join("jobs").join(id)
    }

    /// A fresh folder for an upload's files; [`Jobs::submit`] makes it a job.
    ///
    /// # Errors
    /// [`IngestError`] for a customer's name that is none, or when the folder cannot be made.
    pub async fn prepare(&self, customer: &str) -> Result<Incoming, IngestError> {
        let scratch = scratch_dir(self.pipeline.lakes().customer(customer)?.dir());
        let (id, customer) = (uuid::Uuid::now_v7().to_string(), customer.to_owned());
        blocking(scratch, move |scratch| {
            std::fs::create_dir_all(scratch)?;
            let folder = tempfile::Builder::new().prefix(&id).rand_bytes(0).tempdir_in(scratch)?;
            Ok(Incoming { id, customer, folder })
        })
        .await
    }

    /// Accepts an upload whose `files` lie in its folder. When this returns, it survives a crash.
    ///
    /// # Errors
    /// [`IngestError::Io`]; the upload is then not accepted, though a later start may find and finish it.
    pub async fn submit(&self, upload: Incoming, files: Vec<String>) -> Result<JobStatus, IngestError> {
        let Incoming { id, customer, folder: received } = upload;
        let job =
            JobStatus { id, customer, status: JobState::Queued, files, outcomes: Vec::new(), error: None };
        let (record, root) = (job.clone(), self.pipeline.lakes().root().to_owned());
        blocking(self.folder(&job.customer, &job.id), move |folder| {
            for at in 0..record.files.len() {
                sync(&received.path().join(at.to_string()))?;
            }
            write(received.path(), &record)?;
            let jobs = folder.parent().unwrap_or(folder);
            std::fs::create_dir_all(jobs)?;
            std::fs::rename(received.path(), folder)?;
            let _ = received.keep();
            // Each folder may be new, and is durable when the one above it says so.
            for above in folder.ancestors().skip(1).take_while(|above| above.starts_with(&root)) {
                sync(above)?;
            }
            Ok(())
        })
        .await?;
        self.start(job.customer.clone(), job.id.clone());
        Ok(job)
    }

    /// A job's record.
    pub async fn status(&self, customer: &str, id: &str) -> Option<JobStatus> {
        if uuid::Uuid::try_parse(id).is_err() || self.pipeline.lakes().customer(customer).is_err() {
            return None;
        }
        blocking(self.folder(customer, id), read).await.ok()
    }

    /// Takes up every job that is not done and that no other process runs, and clears what was never acknowledged.
    pub fn resume(&self) {
        let this = self.clone();
        tokio::spawn(async move {
            let root = this.pipeline.lakes().root().to_owned();
            let found = blocking(root, |root| {
                for customer in entries(root) {
                    clear_abandoned(&scratch_dir(&customer));
                }
                Ok(unfinished(root))
            });
            for job in found.await.unwrap_or_default() {
                this.start(job.customer, job.id);
            }
        });
    }

    fn start(&self, customer: String, id: String) {
        let this = self.clone();
        tokio::spawn(async move {
            let _permit = this.running.clone().acquire_owned().await;
            if let Err(error) = this.run(&customer, &id).await {
                tracing::error!(job = id, %error, "a job could not keep its record; the next start tries again");
            }
        });
    }

    /// Runs a job as far as it gets; `None` when another process has it.
    async fn run(&self, customer: &str, id: &str) -> Result<Option<JobStatus>, IngestError> {
        let folder = self.folder(customer, id);
        let Some(_lock) = blocking(folder.clone(), lock).await? else { return Ok(None) };
        // Another process may have finished it since it was found.
        let mut job = blocking(folder.clone(), read).await?;
        if job.status == JobState::Done {
            return Ok(Some(job));
        }
        (job.status, job.error) = (JobState::Running, None);
        record(&folder, &job).await?;
        let sources = job.files.iter().enumerate().skip(job.outcomes.len()).map(|(at, name)| SourceFile {
            source_uri: name.clone(),
            name: name.clone(),
            path: folder.join(at.to_string()),
            collections: Vec::new(),
            acl: Vec::new(),
        });
        let sources = sources.collect();
        let groups = blocking(folder.clone(), |_| Ok(Pipeline::groups(sources))).await?;
        for group in groups {
            match self.ingest(customer, group).await {
                Ok(outcomes) => job.outcomes.extend(outcomes),
                Err(error) => {
                    tracing::error!(job = id, %error, "a job failed; the next start tries again");
                    (job.status, job.error) = (JobState::Failed, Some(error.to_string()));
                    break;
                }
            }
            if job.outcomes.len() < job.files.len() {
                record(&folder, &job).await?;
            }
        }
        if job.status == JobState::Running {
            job.status = JobState::Done;
        }
        record(&folder, &job).await?;
        if job.status == JobState::Done {
            let files = job.files.len();
            blocking(folder, move |folder| {
                (0..files).for_each(|at| drop(std::fs::remove_file(folder.join(at.to_string()))));
                Ok(())
            })
            .await?;
        }
        Ok(Some(job))
    }

    /// Outcomes of a group, of which a refusal is one; other errors are tried again, for the files that had them.
    async fn ingest(&self, customer: &str, group: Vec<SourceFile>) -> Result<Vec<FileOutcome>, IngestError> {
        let mut settled: Vec<Option<FileOutcome>> = vec![None; group.len()];
        let mut pauses = self.pauses.iter();
        loop {
            let open: Vec<usize> = (0..group.len()).filter(|at| settled[*at].is_none()).collect();
            let sources = open.iter().map(|at| group[*at].clone()).collect();
            let mut failed = None;
            match self.pipeline.ingest(customer, sources, &|_| {}).await {
                Ok(results) => {
                    for (at, result) in open.into_iter().zip(results) {
                        let name = group[at].name.clone();
                        match result {
                            Ok(outcome) => {
                                settled[at] = Some(FileOutcome { name, outcome: Some(outcome), error: None });
                            }
                            Err(error @ IngestError::Refused { .. }) => {
                                let error = Some(error.to_string());
                                settled[at] = Some(FileOutcome { name, outcome: None, error });
                            }
                            Err(error) => failed = Some(error),
                        }
                    }
                }
                Err(error) => failed = Some(error),
            }
            match (failed, pauses.next()) {
                (None, _) => return Ok(settled.into_iter().flatten().collect()),
                (Some(error), None) => return Err(error),
                (Some(error), Some(pause)) => {
                    tracing::warn!(%error, "an ingest failed and is tried again");
                    tokio::time::sleep(*pause).await;
                }
            }
        }
    }
}

/// Runs `work` on `path` off the async threads.
async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
) -> Result<T, IngestError> {
    let name = path.display().to_string();
    tokio::task::spawn_blocking(move || work(&path))
        .await
        .map_err(std::io::Error::other)
        .and_then(|result| result)
        .map_err(|source| IngestError::Io { path: name, source })
}

async fn record(folder: &Path, job: &JobStatus) -> Result<(), IngestError> {
    let job = job.clone();
    blocking(folder.to_owned(), move |folder| write(folder, &job)).await
}

/// Replaces a job's record, synced.
fn write(folder: &Path, job: &JobStatus) -> std::io::Result<()> {
    let temporary = folder.join("job.json.new");
    std::fs::write(&temporary, serde_json::to_vec_pretty(job)?)?;
    sync(&temporary)?;
    std::fs::rename(&temporary, folder.join("job.json"))?;
    sync(folder)
}

fn read(folder: &Path) -> std::io::Result<JobStatus> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join("job.json"))?)?)
}

fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// The right to run a job, until the file is dropped or its process dies; `None` when another has it.
fn lock(folder: &Path) -> std::io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    // Ids sort by time.
    all.sort();
    all
}

/// Jobs that are not done. A record that cannot be read may be one of a newer Tarn: it is named and kept.
fn unfinished(root: &Path) -> Vec<JobStatus> {
    let mut found = Vec::new();
    for folder in entries(root).iter().flat_map(|customer| entries(&customer.join("jobs"))) {
        match read(&folder) {
            Ok(job) if job.status == JobState::Done => {}
            Ok(job) => found.push(job),
            Err(error) => tracing::error!(job = %folder.display(), %error, "a job's record cannot be read"),
        }
    }
    found
}

/// Removes what has not changed for a day; younger folders may be another process's.
fn clear_abandoned(scratch: &Path) {
    let now = SystemTime::now();
    for folder in entries(scratch) {
        let changed = std::fs::metadata(&folder).and_then(|metadata| metadata.modified());
        if changed.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > ABANDONED)) {
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
}

#[cfg(test)]
mod tests;
