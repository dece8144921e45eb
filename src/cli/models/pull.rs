//! One pull: which files, what is here already, get the rest, check it, put it in place.
//!
//! A file grows under `<name>.<id>.part` and gets its name only when its size and SHA-256
//! are right, so whatever bears its name is whole. A broken connection goes on from the
//! bytes that are here, in the same run or the next.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use hf_hub::HFError;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::error::PullError;
use super::hub::{Hub, RemoteFile};
use super::manifest::{Manifest, manifests};
use super::select::choose;
use super::{ModelsSettings, PullArgs};

/// Attempts in a row without a new byte after which a pull gives up.
const ATTEMPTS: u32 = 5;
/// Bytes that a pull leaves free on the disk.
const SPARE: u64 = 64 << 20;
/// How many new bytes are worth an event.
const REPORT_EVERY: u64 = 1 << 20;

/// What to get.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// `owner/name`.
    pub(super) repository: String,
    /// Branch, tag or commit.
    pub(super) revision: String,
    /// Patterns of files; none: what a model needs.
    pub(super) include: Vec<String>,
    /// What is known of it.
    pub(super) manifest: Option<Manifest>,
    /// The pause after a broken connection; it doubles each time.
    pub(super) pause: Duration,
}

/// What a pull tells while it runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PullEvent {
    /// What it will get.
    Start {
        /// The repository.
        repository: String,
        /// The commit that the revision is now.
        commit: String,
        /// How many files.
        files: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// More of a file is here.
    Progress {
        /// The file.
        file: String,
        /// Bytes of it that are here.
        bytes: u64,
        /// Its size.
        size: u64,
    },
    /// The connection broke; it goes on from `bytes`.
    Resume {
        /// The file.
        file: String,
        /// Bytes of it that are here.
        bytes: u64,
        /// What broke.
        reason: String,
    },
    /// A file is whole and in place.
    File {
        /// The file.
        file: String,
        /// The SHA-256 of its bytes.
        sha256: String,
        /// Whether that was compared with what the hub or the manifest says (small files have no hash there).
        verified: bool,
    },
    /// All is here.
    Done {
        /// The folder.
        path: PathBuf,
    },
}

/// What a pull left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The folder.
    pub path: PathBuf,
    /// The commit.
    pub commit: String,
    /// The files.
    pub files: Vec<String>,
}

impl PullRequest {
    /// Resolves `owner/name[@revision]` or a manifest's name.
    ///
    /// # Errors
    /// [`PullError::UnknownModel`].
    pub fn of(args: &PullArgs) -> Result<PullRequest, PullError> {
        let (name, revision) = match args.model.rsplit_once('@') {
            Some((name, revision)) if !revision.is_empty() => (name, Some(revision)),
            _ => (args.model.as_str(), None),
        };
        let known = manifests().unwrap_or_default();
        let manifest = known.iter().find(|manifest| manifest.name == name || manifest.repository == name);
        if manifest.is_none() && !is_repository(name) {
            let known = known.iter().map(|manifest| manifest.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(PullError::UnknownModel { name: name.to_owned(), known });
        }
        let default = manifest.map_or("main", |manifest| &manifest.revision);
        let include = match manifest {
            Some(manifest) if args.include.is_empty() => manifest.include.clone(),
            _ => args.include.clone(),
        };
        Ok(PullRequest {
            repository: manifest.map_or(name, |manifest| &manifest.repository).to_owned(),
            revision: revision.unwrap_or(default).to_owned(),
            include,
            manifest: manifest.cloned(),
            pause: Duration::from_millis(500),
        })
    }
}

/// Gets a model.
///
/// # Errors
/// See [`PullError`]; what is here by then stays and need not be fetched again.
pub async fn pull(
    request: &PullRequest,
    settings: &ModelsSettings,
    tell: &mut dyn FnMut(PullEvent),
) -> Result<Pulled, PullError> {
    let PullRequest { repository, revision, .. } = request;
    let hub_error = |source| PullError::Hub { repository: repository.clone(), source: Box::new(source) };
    let hub = Hub::new(&settings.hub, settings.token.as_deref(), repository).map_err(hub_error)?;
    let commit = hub
        .commit(revision)
        .await
        .map_err(hub_error)?
        .ok_or_else(|| PullError::NoCommit { repository: repository.clone(), revision: revision.clone() })?;
    let files = choose(request, hub.files(&commit).await.map_err(hub_error)?)?;
    let folder = settings.folder(repository);
    create_dir(&folder)?;
    tell(PullEvent::Start {
        repository: repository.clone(),
        commit: commit.clone(),
        files: files.len(),
        bytes: files.iter().map(|file| file.size).sum(),
    });
    let missing = files.iter().map(|file| missing_bytes(&folder, file)).sum();
    check_room(&folder, missing)?;
    let mut names = Vec::new();
    for mut file in files {
        if file.sha256.is_none() {
            file.sha256 = hub.sha256(&commit, &file.path).await.map_err(hub_error)?;
        }
        let promised = request.manifest.as_ref().and_then(|manifest| manifest.sha256.get(&file.path));
        let expected: Vec<String> = promised.cloned().into_iter().chain(file.sha256.clone()).collect();
        let sha256 = fetch(&hub, &commit, &file, &folder, &expected, request.pause, tell).await?;
        tell(PullEvent::File { file: file.path.clone(), sha256, verified: !expected.is_empty() });
        names.push(file.path);
    }
    tell(PullEvent::Done { path: folder.clone() });
    Ok(Pulled { path: folder, commit, files: names })
}

/// Brings one file into place; returns its SHA-256.
async fn fetch(
    hub: &Hub,
    commit: &str,
    file: &RemoteFile,
    folder: &Path,
    expected: &[String],
    pause: Duration,
    tell: &mut dyn FnMut(PullEvent),
) -> Result<String, PullError> {
    let place = folder.join(&file.path);
    let part = part_of(folder, file);
    if let Some(parent) = place.parent() {
        create_dir(parent)?;
    }
    // Without a hash to compare, a file of the right size may still be another commit's.
    if !expected.is_empty() && size_of(&place) == Some(file.size) {
        let found = hash_file(&place).await?;
        if expected.contains(&found) {
            return Ok(found);
        }
    }
    let mut failures = 0;
    loop {
        let before = size_of(&part).unwrap_or(0);
        let Err(source) = append(hub, commit, file, &part, tell).await? else { break };
        let bytes = size_of(&part).unwrap_or(0);
        failures = if bytes > before { 1 } else { failures + 1 };
        if failures >= ATTEMPTS || !worth_another_try(&source) {
            let source = Box::new(source);
            return Err(PullError::Broken { file: file.path.clone(), attempts: failures, bytes, source });
        }
        tell(PullEvent::Resume { file: file.path.clone(), bytes, reason: source.to_string() });
        tokio::time::sleep(pause * 2u32.pow(failures - 1)).await;
    }
    let found = hash_file(&part).await?;
    if let Some(expected) = expected.iter().find(|expected| **expected != found) {
        tokio::fs::remove_file(&part).await.map_err(io(&part))?;
        return Err(PullError::WrongHash { file: file.path.clone(), expected: expected.clone(), found });
    }
    std::fs::rename(&part, &place).map_err(io(&place))?;
    Ok(found)
}

/// Appends to `part` what it lacks. The inner error is the connection's: what came is kept.
async fn append(
    hub: &Hub,
    commit: &str,
    file: &RemoteFile,
    part: &Path,
    tell: &mut dyn FnMut(PullEvent),
) -> Result<Result<(), HFError>, PullError> {
    let mut have = size_of(part).unwrap_or(0);
    if have > file.size {
        std::fs::remove_file(part).map_err(io(part))?;
        have = 0;
    }
    let mut out =
        tokio::fs::OpenOptions::new().create(true).append(true).open(part).await.map_err(io(part))?;
    if have < file.size {
        let mut stream = match hub.stream(commit, file, have).await {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        let mut told = have;
        while let Some(bytes) = stream.next().await {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => {
                    out.flush().await.map_err(io(part))?;
                    return Ok(Err(error));
                }
            };
            have += bytes.len() as u64;
            if have > file.size {
                // The server sent the whole file instead of its rest: what is here is not its beginning.
                drop(out);
                std::fs::remove_file(part).map_err(io(part))?;
                return Ok(Err(HFError::InvalidParameter("the server does not honour ranges".to_owned())));
            }
            out.write_all(&bytes).await.map_err(io(part))?;
            if have - told >= REPORT_EVERY || have == file.size {
                told = have;
                tell(PullEvent::Progress { file: file.path.clone(), bytes: have, size: file.size });
            }
        }
    }
    out.flush().await.map_err(io(part))?;
    out.sync_all().await.map_err(io(part))?;
    if have < file.size {
        let short = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the answer ended early");
        return Ok(Err(HFError::Io(short)));
    }
    Ok(Ok(()))
}

/// Whether the same request may succeed a moment later.
fn worth_another_try(error: &HFError) -> bool {
    match error {
        HFError::Http { context } => context.status.is_server_error(),
        HFError::AuthRequired { .. }
        | HFError::Forbidden { .. }
        | HFError::RepoNotFound { .. }
        | HFError::RevisionNotFound { .. }
        | HFError::EntryNotFound { .. } => false,
        _ => true,
    }
}

fn is_repository(name: &str) -> bool {
    let fits = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    matches!(name.split('/').collect::<Vec<_>>().as_slice(), [owner, name] if fits(owner) && fits(name))
}

/// Where a file grows: its name tells its content, so that another commit's bytes are not continued.
fn part_of(folder: &Path, file: &RemoteFile) -> PathBuf {
    let id: String = file.oid.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    folder.join(format!("{}.{id}.part", file.path))
}

fn missing_bytes(folder: &Path, file: &RemoteFile) -> u64 {
    match size_of(&folder.join(&file.path)) {
        Some(size) if size == file.size => 0,
        _ => file.size.saturating_sub(size_of(&part_of(folder, file)).unwrap_or(0)),
    }
}

fn check_room(folder: &Path, missing: u64) -> Result<(), PullError> {
    let disk = rustix::fs::statvfs(folder).map_err(|error| io(folder)(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    match missing > 0 && free < missing.saturating_add(SPARE) {
        true => Err(PullError::DiskFull { path: folder.to_owned(), needed: missing, free }),
        false => Ok(()),
    }
}

async fn hash_file(path: &Path) -> Result<String, PullError> {
    let owned = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = Sha256::new();
        std::io::copy(&mut std::fs::File::open(owned)?, &mut hasher)?;
        Ok(hex::encode(hasher.finalize()))
    });
    hashed.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic))).map_err(io(path))
}

fn size_of(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.len())
}

fn create_dir(path: &Path) -> Result<(), PullError> {
    std::fs::create_dir_all(path).map_err(io(path))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PullError {
    let path = path.to_owned();
    move |source| PullError::Io { path, source }
}

#[cfg(test)]
mod tests;
