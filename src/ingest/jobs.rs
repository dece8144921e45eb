//! Uploads that outlive a request and a crash.
//!
//! An upload is a folder `<lake>/<customer>/jobs/<id>` with its files and `job.json`, synced before the upload is
//! acknowledged. A job is done when every file is committed or refused; a restart takes up what is not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::error::IngestError;
use super::pipeline::{IngestOutcome, Pipeline, SourceFile};

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
}

/// All jobs; cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs {
    pipeline: Pipeline,
    running: Arc<Semaphore>,
}

fn valid(id: &str) -> bool {
    uuid::Uuid::try_parse(id).is_ok()
}

impl Jobs {
    /// Jobs over `pipeline`, `parallel` of them at a time.
    #[must_use]
    pub fn new(pipeline: Pipeline, parallel: usize) -> Jobs {
        Jobs { pipeline, running: Arc::new(Semaphore::new(parallel.max(1))) }
    }

    fn folder(&self, customer: &str, id: &str) -> PathBuf {
        self.pipeline.lakes().root().join(customer).join("jobs").join(id)
    }

    /// A fresh folder for an upload's files; [`Jobs::submit`] makes it a job.
    ///
    /// # Errors
    /// [`IngestError`] for a customer's name that is none, or when the folder cannot be made.
    pub fn prepare(&self, customer: &str) -> Result<(String, PathBuf), IngestError> {
        self.pipeline.lakes().customer(customer)?;
        let id = uuid::Uuid::now_v7().to_string();
        let folder = self.folder(customer, &id);
        std::fs::create_dir_all(&folder).map_err(|source| io(&folder, source))?;
        Ok((id, folder))
    }

    /// Accepts an upload whose files lie in its folder as `0`, `1`, … When this returns, it survives a crash.
    ///
    /// # Errors
    /// [`IngestError::Io`].
    pub fn submit(&self, customer: &str, id: &str, files: Vec<String>) -> Result<JobStatus, IngestError> {
        let folder = self.folder(customer, id);
        for at in 0..files.len() {
            let file = folder.join(at.to_string());
            std::fs::File::open(&file)
                .and_then(|file| file.sync_all())
                .map_err(|source| io(&file, source))?;
        }
        let job = JobStatus {
            id: id.to_owned(),
            customer: customer.to_owned(),
            status: JobState::Queued,
            files,
            outcomes: Vec::new(),
        };
        record(&folder, &job)?;
        self.start(job.clone());
        Ok(job)
    }

    /// A job's record.
    #[must_use]
    pub fn status(&self, customer: &str, id: &str) -> Option<JobStatus> {
        if !valid(id) || self.pipeline.lakes().customer(customer).is_err() {
            return None;
        }
        serde_json::from_slice(&std::fs::read(self.folder(customer, id).join("job.json")).ok()?).ok()
    }

    /// Takes up every job that is not done.
    pub fn resume(&self) {
        let folders =
            |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        for customer in folders(self.pipeline.lakes().root()) {
            for job in folders(&customer.join("jobs")) {
                let status = std::fs::read(job.join("job.json")).ok();
                match status.and_then(|bytes| serde_json::from_slice::<JobStatus>(&bytes).ok()) {
                    Some(status) if status.status != JobState::Done => self.start(status),
                    Some(_) => {}
                    // An upload that was never acknowledged.
                    None => drop(std::fs::remove_dir_all(&job)),
                }
            }
        }
    }

    fn start(&self, job: JobStatus) {
        let this = self.clone();
        tokio::spawn(async move {
            let id = job.id.clone();
            let _permit = this.running.clone().acquire_owned().await;
            if let Err(error) = this.run(job).await {
                tracing::error!(job = id, %error, "a job could not keep its record");
            }
        });
    }

    async fn run(&self, mut job: JobStatus) -> Result<(), IngestError> {
        let folder = self.folder(&job.customer, &job.id);
        job.status = JobState::Running;
        record(&folder, &job)?;
        for at in job.outcomes.len()..job.files.len() {
            let name = job.files[at].clone();
            let source = SourceFile {
                source_uri: name.clone(),
                name: name.clone(),
                path: folder.join(at.to_string()),
                collections: Vec::new(),
                acl: Vec::new(),
            };
            let result = self.pipeline.ingest(&job.customer, source, &|_| {}).await;
            let (outcome, error) = match result {
                Ok(outcome) => (Some(outcome), None),
                Err(error) => (None, Some(error.to_string())),
            };
            job.outcomes.push(FileOutcome { name, outcome, error });
            record(&folder, &job)?;
        }
        job.status = JobState::Done;
        record(&folder, &job)?;
        for at in 0..job.files.len() {
            let _ = std::fs::remove_file(folder.join(at.to_string()));
        }
        Ok(())
    }
}

/// Replaces a job's record, synced.
fn record(folder: &Path, job: &JobStatus) -> Result<(), IngestError> {
    let write = || -> std::io::Result<()> {
        let temporary = folder.join("job.json.new");
        std::fs::write(&temporary, serde_json::to_vec_pretty(job).map_err(std::io::Error::other)?)?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, folder.join("job.json"))?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| io(folder, source))
}

fn io(path: &Path, source: std::io::Error) -> IngestError {
    IngestError::Io { path: path.display().to_string(), source }
}
