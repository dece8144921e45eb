//! The child process that parses untrusted bytes.
//!
//! It sets limits on itself before it reads, then answers each request, a line of JSON on its standard input, with the
//! document as a line of JSON on its standard output. The parent asks for one document at a time, kills the process at
//! that document's time limit and goes on in a new one. So a thousand small files cost one start, and what a file does
//! to its parser is a refusal of that file alone. (LAKE.md had Arrow IPC on the pipe; blocks are a tree of optional
//! fields, which JSON carries as it is and Arrow would flatten.)
//!
//! The process leaves the network where the system lets it: it is a best effort, as containers often forbid it.

use std::io::{BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::document::Document;
use super::error::IngestError;
use super::parse;

/// The longest answer: a file with more text than this is no document.
const MAX_ANSWER: u64 = 256 << 20;

/// What parsing one document may take.
#[derive(Debug, Clone, Copy)]
pub struct WorkerLimits {
    /// Wall time.
    pub time: Duration,
    /// Address space in bytes.
    pub memory: u64,
}

/// The first line that a worker reads.
#[derive(Debug, Serialize, Deserialize)]
struct ProcessLimits {
    memory: u64,
    cpu_seconds: u64,
}

/// One file to parse.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) path: PathBuf,
    pub(super) name: String,
    /// The folder that its members go to.
    pub(super) extract: PathBuf,
    /// It is not begun after this.
    #[serde(skip)]
    pub(super) until: Option<Instant>,
}

/// A document, or why the file is none.
pub(super) type Answer = Result<Document, String>;

/// The program to start for `configured`. This program is started through its open file: an upgrade replaces the
/// path, and an old parent must not talk to a new child.
pub(super) fn program(configured: PathBuf) -> PathBuf {
    let own = std::env::current_exe().is_ok_and(|own| own == configured);
    if cfg!(target_os = "linux") && own { PathBuf::from("/proc/self/exe") } else { configured }
}

/// Parses `tasks` in turn in child processes of the program `exe`; one answer a task, in order.
///
/// # Errors
/// [`IngestError::Io`] when a child cannot be started.
pub(super) async fn parse_isolated(
    exe: &Path,
    tasks: &[Task],
    limits: WorkerLimits,
) -> Result<Vec<Answer>, IngestError> {
    let mut answers: Vec<Answer> = Vec::with_capacity(tasks.len());
    let mut idle: Option<Worker> = None;
    while let Some(task) = tasks.get(answers.len()) {
        if task.until.is_some_and(|until| Instant::now() > until) {
            answers
                .push(Err("the time for all files of its archive is used up: split the archive".to_owned()));
            continue;
        }
        let used = idle.is_some();
        let mut worker = match idle.take() {
            Some(worker) => worker,
            None => Worker::start(exe, limits, tasks.len() - answers.len()).await?,
        };
        match worker.parse(task, limits).await {
            Ok(answer) => {
                answers.push(answer);
                idle = Some(worker);
            }
            // What earlier documents left in the process may be the reason: this one gets its own before it is blamed.
            Err(Lost::Ended(_)) if used => {}
            Err(Lost::Ended(reason) | Lost::Stopped(reason)) => answers.push(Err(reason)),
        }
    }
    Ok(answers)
}

/// Why a worker is of no use any more, in words about the document that it had.
enum Lost {
    /// It died.
    Ended(String),
    /// It went over a limit and is killed.
    Stopped(String),
}

struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    async fn start(exe: &Path, limits: WorkerLimits, documents: usize) -> Result<Worker, IngestError> {
        let failed = |source| IngestError::Io { path: exe.display().to_string(), source };
        let mut child = Command::new(exe)
            .arg("parse-worker")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(std::io::Error::other("its pipes are missing")));
        };
        let cpu_seconds = (limits.time.as_secs().max(1)).saturating_mul(documents as u64) + 5;
        let first = ProcessLimits { memory: limits.memory, cpu_seconds };
        let line = serde_json::to_string(&first).map_err(|error| failed(error.into()))? + "\n";
        // A child that is gone already is noticed when it does not answer.
        let _ = input.write_all(line.as_bytes()).await;
        Ok(Worker { child, input, output: BufReader::new(output) })
    }

    /// Asks for one document. After [`Lost`], drop the worker: that kills it.
    async fn parse(&mut self, task: &Task, limits: WorkerLimits) -> Result<Answer, Lost> {
        let request = match serde_json::to_string(task) {
            Ok(request) => request + "\n",
            Err(error) => return Ok(Err(format!("its path cannot be passed on: {error}"))),
        };
        let seconds = limits.time.as_secs();
        match tokio::time::timeout(limits.time, self.talk(&request, limits)).await {
            Ok(answer) => answer,
            Err(_) => Err(Lost::Stopped(format!(
                "parsing took longer than {seconds} s; split the file, or raise --parse-seconds"
            ))),
        }
    }

    async fn talk(&mut self, request: &str, limits: WorkerLimits) -> Result<Answer, Lost> {
        let _ = self.input.write_all(request.as_bytes()).await;
        let mut line = Vec::new();
        let read = (&mut self.output).take(MAX_ANSWER + 1).read_until(b'\n', &mut line).await;
        if line.len() as u64 > MAX_ANSWER {
            return Err(Lost::Stopped(format!(
                "its text and tables take more than {} MiB: split the file",
                MAX_ANSWER >> 20
            )));
        }
        if let (Ok(_), Ok(answer)) = (read, serde_json::from_slice(&line)) {
            return Ok(answer);
        }
        let status = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        Err(Lost::Ended(format!(
            "its parser ended early ({status}): the file is damaged, or needs more than {} MiB (--parse-mb)",
            limits.memory >> 20
        )))
    }
}

/// The worker's whole life.
#[must_use]
pub fn parse_worker_main() -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let mut requests = std::io::stdin().lock().lines();
    let limits = requests.next().and_then(Result::ok);
    let Some(limits) = limits.and_then(|line| serde_json::from_str::<ProcessLimits>(&line).ok()) else {
        return ExitCode::from(2);
    };
    leave_network();
    limit(&limits);
    match answer_all(requests, BufWriter::new(std::io::stdout().lock())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One line of `answers` for each line of `requests`.
fn answer_all(
    requests: impl Iterator<Item = std::io::Result<String>>,
    mut answers: impl Write,
) -> std::io::Result<()> {
    for request in requests {
        let task: Task = serde_json::from_str(&request?)?;
        serde_json::to_writer(&mut answers, &answer(task))?;
        answers.write_all(b"\n")?;
        answers.flush()?;
    }
    Ok(())
}

fn answer(task: Task) -> Answer {
    let run = move || std::panic::catch_unwind(|| parse::parse(&task.path, &task.name, &task.extract));
    // Parsers recurse; a deep stack is cheap and a hostile file finds its end all the same.
    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(run);
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(answer))) => answer,
        Ok(_) => Err("the file is damaged: its parser gave up".to_owned()),
        Err(error) => Err(format!("there is too little memory to parse it ({error}): raise --parse-mb")),
    }
}

/// Address space, processor time, no core dump, few files, no large files.
fn limit(limits: &ProcessLimits) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let both = |value: u64| Rlimit { current: Some(value), maximum: Some(value) };
    let _ = setrlimit(Resource::As, both(limits.memory));
    let _ = setrlimit(Resource::Cpu, both(limits.cpu_seconds));
    let _ = setrlimit(Resource::Core, both(0));
    let _ = setrlimit(Resource::Nofile, both(64));
    let _ = setrlimit(Resource::Fsize, both(4 << 30));
}

/// An empty network name space. Root goes without a user name space: in one it could not read others' files.
#[cfg(target_os = "linux")]
fn leave_network() {
    use rustix::thread::UnshareFlags;
    let flags = if rustix::process::geteuid().is_root() {
        UnshareFlags::NEWNET
    } else {
        UnshareFlags::NEWUSER | UnshareFlags::NEWNET
    };
    // It became `unshare_unsafe` because of `FILES`, which is not used here; the call without it has no such effect.
    #[expect(deprecated, reason = "the successor is unsafe for the sake of a flag that is not used")]
    let _ = rustix::thread::unshare(flags);
}

#[cfg(not(target_os = "linux"))]
fn leave_network() {}

#[cfg(test)]
mod tests;
