//! The child process that parses untrusted bytes.
//!
//! One process a document: it sets limits on itself before it reads, gets a request as JSON on its standard input and
//! answers with the document as JSON on its standard output. The parent kills it at its time limit. Whatever a file
//! does to its parser, the server sees a refusal. (LAKE.md had Arrow IPC on the pipe; blocks are a tree of optional
//! fields, which JSON carries as it is and Arrow would flatten.)

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::document::Document;
use super::parse;

/// What parsing one document may take.
#[derive(Debug, Clone, Copy)]
pub struct WorkerLimits {
    /// Wall time.
    pub time: Duration,
    /// Address space in bytes.
    pub memory: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    path: PathBuf,
    name: String,
    extract: PathBuf,
    memory: u64,
    seconds: u64,
}

/// Parses the file `path` called `name` in a child process of the program `exe`.
pub(super) async fn parse_isolated(
    exe: &Path,
    path: &Path,
    name: &str,
    extract: &Path,
    limits: WorkerLimits,
) -> Result<Document, String> {
    let job = Job {
        path: path.to_owned(),
        name: name.to_owned(),
        extract: extract.to_owned(),
        memory: limits.memory,
        seconds: limits.time.as_secs().max(1),
    };
    let request = serde_json::to_vec(&job).map_err(|error| error.to_string())?;
    let failed = |error: std::io::Error| format!("its parser could not be started: {error}");
    let mut child = tokio::process::Command::new(exe)
        .arg("parse-worker")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (mut input, mut output) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        if let Some(input) = &mut input {
            input.write_all(&request).await?;
        }
        drop(input.take());
        let mut answer = Vec::new();
        if let Some(output) = &mut output {
            // An answer is never larger than what the worker may allocate.
            output.take(limits.memory).read_to_end(&mut answer).await?;
        }
        Ok::<_, std::io::Error>((answer, child.wait().await?))
    };
    match tokio::time::timeout(limits.time, talk).await {
        Err(_) => Err(format!(
            "parsing took longer than {} s; split the file, or raise --parse-seconds",
            limits.time.as_secs()
        )),
        Ok(Err(error)) => Err(format!("its parser failed: {error}")),
        Ok(Ok((answer, status))) => match serde_json::from_slice::<Result<Document, String>>(&answer) {
            Ok(result) => result,
            Err(_) => Err(format!(
                "its parser ended early ({status}): the file is damaged, or needs more than {} MiB (--parse-mb)",
                limits.memory >> 20
            )),
        },
    }
}

/// The worker's whole life.
#[must_use]
pub fn parse_worker_main() -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let mut request = Vec::new();
    let job = std::io::stdin()
        .read_to_end(&mut request)
        .ok()
        .and_then(|_| serde_json::from_slice::<Job>(&request).ok());
    let Some(job) = job else { return ExitCode::from(2) };
    limit(&job);
    // Parsers recurse; a deep stack is cheap and a hostile file finds its end all the same.
    let run = move || {
        std::panic::catch_unwind(|| parse::parse(&job.path, &job.name, &job.extract))
            .unwrap_or_else(|_| Err("the file is damaged: its parser gave up".to_owned()))
    };
    let result =
        std::thread::Builder::new().stack_size(64 << 20).spawn(run).map(std::thread::JoinHandle::join);
    let result = match result {
        Ok(Ok(result)) => result,
        _ => Err("the file is damaged: its parser gave up".to_owned()),
    };
    let answer = serde_json::to_vec(&result).unwrap_or_default();
    match std::io::stdout().write_all(&answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Address space, processor time, no core dump, few files, no large files.
fn limit(job: &Job) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let both = |value: u64| Rlimit { current: Some(value), maximum: Some(value) };
    let _ = setrlimit(Resource::As, both(job.memory));
    let _ = setrlimit(Resource::Cpu, both(job.seconds + 5));
    let _ = setrlimit(Resource::Core, both(0));
    let _ = setrlimit(Resource::Nofile, both(64));
    let _ = setrlimit(Resource::Fsize, both(4 << 30));
}
