//! From files to documents: a file is parsed, then the files inside it, level by level.
//!
//! Levels and not a walk in depth, so that all small files of a level share worker processes. What a whole archive
//! may take is counted here over all its levels: a parser only knows the archive that it has at hand.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};

use crate::ingest::document::{Document, Member};
use crate::ingest::error::IngestError;
use crate::ingest::worker::{Answer, Task, parse_isolated};
use crate::lake::document_id;

use super::{Pipeline, SourceFile};

/// Archives in archives are opened to this depth.
const MAX_DEPTH: usize = 3;
/// Unpacked bytes of a file with all archives in it.
const MAX_BYTES: u64 = 2 << 30;
/// Files in a file with all archives in it.
const MAX_MEMBERS: usize = 10_000;
/// Time for all files of an archive, in times of one file.
const MAX_TIMES: u32 = 60;
/// Files of at most this size share a worker process.
const SMALL: u64 = 256 << 10;
/// Most files that a worker process is started for.
const BATCH: usize = 64;

/// SHA-256, in hex, and size of a file.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) sha256: String,
    pub(super) size: u64,
}

/// A file of a group with its content.
pub(super) struct Root {
    /// Its place in the group.
    pub(super) at: usize,
    pub(super) source: SourceFile,
    pub(super) content: Content,
}

/// A parsed file.
pub(super) struct Parsed {
    pub(super) source: SourceFile,
    pub(super) parent: Option<String>,
    pub(super) content: Content,
    pub(super) document: Document,
}

/// A file of a group and the files inside it, or why it was refused.
pub(super) struct Tree {
    pub(super) at: usize,
    /// The file itself is the first.
    pub(super) files: Result<Vec<Parsed>, IngestError>,
}

/// A file that waits for its parser.
struct Waiting {
    tree: usize,
    /// Its archive: the place in the tree, and its id.
    parent: Option<(usize, String)>,
    label: String,
    source: SourceFile,
    content: Content,
}

/// What is left for the files of one tree.
struct Budget {
    bytes: u64,
    members: usize,
    until: Instant,
}

impl Budget {
    fn new(time: Duration) -> Budget {
        Budget { bytes: MAX_BYTES, members: MAX_MEMBERS, until: Instant::now() + time * MAX_TIMES }
    }

    fn take(&mut self, members: &[Content]) -> Result<(), String> {
        let bytes = members.iter().map(|content| content.size).sum();
        match (self.members.checked_sub(members.len()), self.bytes.checked_sub(bytes)) {
            (None, _) => Err(format!("it has more than {MAX_MEMBERS} files in its archives: split it")),
            (_, None) => Err(format!("its archives unpack to more than {} GiB: split it", MAX_BYTES >> 30)),
            (Some(members), Some(bytes)) => {
                (self.members, self.bytes) = (members, bytes);
                Ok(())
            }
        }
    }
}

impl Pipeline {
    /// Parses each file and the files inside it, which are unpacked to `folder` and removed once parsed. A member that
    /// is refused is a warning of its archive.
    pub(super) async fn unpack(
        &self,
        customer: &str,
        roots: Vec<Root>,
        folder: &Path,
    ) -> Result<Vec<Tree>, IngestError> {
        let mut budgets: Vec<Budget> = roots.iter().map(|_| Budget::new(self.config.limits.time)).collect();
        let (mut trees, mut level) = (Vec::new(), Vec::new());
        for (tree, Root { at, source, content }) in roots.into_iter().enumerate() {
            trees.push(Tree { at, files: Ok(Vec::new()) });
            level.push(Waiting { tree, parent: None, label: source.name.clone(), source, content });
        }
        for depth in 0.. {
            level.retain(|waiting| trees[waiting.tree].files.is_ok());
            if level.is_empty() {
                break;
            }
            let folder = folder.join(depth.to_string());
            let answers = self.parse_level(&level, &budgets, &folder, depth > 0).await?;
            let mut next = Vec::new();
            for (at, (one, answer)) in level.into_iter().zip(answers).enumerate() {
                let tree = &mut trees[one.tree].files;
                let Ok(files) = tree else { continue };
                match (answer, one.parent) {
                    (Err(reason), None) => {
                        *tree = Err(IngestError::Refused { name: one.source.name, reason });
                    }
                    (Err(reason), Some((archive, _))) => {
                        files[archive].document.warnings.push(format!("`{}`: {reason}", one.label));
                    }
                    (Ok(mut document), parent) => {
                        let mut members = std::mem::take(&mut document.members);
                        if depth + 1 >= MAX_DEPTH && !members.is_empty() {
                            members.clear();
                            let warning =
                                "its files were left out: it is an archive in an archive in an archive";
                            document.warnings.push(warning.to_owned());
                        }
                        let unpacked = folder.join(at.to_string());
                        let inside = inside(&one.source, members, &unpacked);
                        let (id, place) = (document_id(customer, &one.source.source_uri), files.len());
                        let parent = parent.map(|(_, id)| id);
                        files.push(Parsed { source: one.source, parent, content: one.content, document });
                        let paths = inside.iter().map(|(_, source)| source.path.clone()).collect();
                        let contents: Vec<Content> =
                            digests(paths).await?.into_iter().collect::<Result<_, _>>()?;
                        if let Err(reason) = budgets[one.tree].take(&contents) {
                            let name = files[0].source.name.clone();
                            *tree = Err(IngestError::Refused { name, reason });
                            continue;
                        }
                        next.extend(inside.into_iter().zip(contents).map(|((label, source), content)| {
                            Waiting {
                                tree: one.tree,
                                parent: Some((place, id.clone())),
                                label,
                                source,
                                content,
                            }
                        }));
                    }
                }
            }
            level = next;
        }
        Ok(trees)
    }

    /// One answer a file, in order.
    async fn parse_level(
        &self,
        level: &[Waiting],
        budgets: &[Budget],
        folder: &Path,
        remove: bool,
    ) -> Result<Vec<Answer>, IngestError> {
        let sizes: Vec<u64> = level.iter().map(|one| one.content.size).collect();
        let parallel = self.config.parallel.max(1);
        let mut runs = Vec::new();
        for batch in batches(&sizes, parallel) {
            let tasks: Vec<Task> = batch
                .clone()
                .map(|at| Task {
                    path: level[at].source.path.clone(),
                    name: level[at].source.name.clone(),
                    extract: folder.join(at.to_string()),
                    until: remove.then_some(budgets[level[at].tree].until),
                })
                .collect();
            let this = self.clone();
            runs.push(async move {
                let _permit = this.parsing.acquire().await;
                // Here and not in the worker: a full disk is no fault of the file.
                let folders: Vec<PathBuf> = tasks.iter().map(|task| task.extract.clone()).collect();
                blocking(move || folders.iter().try_for_each(|folder| make(folder))).await??;
                let answers = parse_isolated(&this.config.worker_exe, &tasks, this.config.limits).await?;
                blocking(move || tasks.iter().for_each(|task| clear(task, remove))).await?;
                Ok::<_, IngestError>((batch.start, answers))
            });
        }
        let mut done: Vec<(usize, Vec<Answer>)> =
            stream::iter(runs).buffer_unordered(parallel).try_collect().await?;
        done.sort_unstable_by_key(|(start, _)| *start);
        Ok(done.into_iter().flat_map(|(_, answers)| answers).collect())
    }
}

fn make(folder: &Path) -> Result<(), IngestError> {
    std::fs::create_dir_all(folder)
        .map_err(|source| IngestError::Io { path: folder.display().to_string(), source })
}

/// Removes a parsed member, if it is one, and its folder, unless it was an archive and has put something there.
fn clear(task: &Task, member: bool) {
    if member {
        let _ = std::fs::remove_file(&task.path);
    }
    let _ = std::fs::remove_dir(&task.extract);
}

/// Which files share a process: neighbours that are small, and few enough that every process has work.
fn batches(sizes: &[u64], parallel: usize) -> Vec<std::ops::Range<usize>> {
    let most = sizes.len().div_ceil(parallel).clamp(1, BATCH);
    let mut batches: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, size) in sizes.iter().enumerate() {
        match batches.last_mut() {
            Some(last) if *size <= SMALL && sizes[last.start] <= SMALL && last.len() < most => {
                last.end = at + 1
            }
            _ => batches.push(at..at + 1),
        }
    }
    batches
}

/// The members of an archive as sources with their labels; of members with one name the first is taken.
fn inside(archive: &SourceFile, members: Vec<Member>, unpacked: &Path) -> Vec<(String, SourceFile)> {
    let mut seen = HashSet::new();
    members
        .into_iter()
        .filter(|member| seen.insert(member.name.clone()))
        .map(|member| {
            let source = SourceFile {
                source_uri: format!("{}!/{}", archive.source_uri, member.name),
                name: member.name.rsplit('/').next().unwrap_or(&member.name).to_owned(),
                path: unpacked.join(&member.file),
                ..archive.clone()
            };
            (member.name, source)
        })
        .collect()
}

/// Digests of files, in order.
pub(super) async fn digests(paths: Vec<PathBuf>) -> Result<Vec<Result<Content, IngestError>>, IngestError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    blocking(move || paths.iter().map(|path| digest(path)).collect()).await
}

fn digest(path: &Path) -> Result<Content, IngestError> {
    let read = || {
        let (mut file, mut hasher) = (std::fs::File::open(path)?, Sha256::new());
        let size = std::io::copy(&mut file, &mut hasher)?;
        Ok(Content { sha256: hex::encode(hasher.finalize()), size })
    };
    read().map_err(|source| IngestError::Io { path: path.display().to_string(), source })
}

/// Runs `work` off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, IngestError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| IngestError::Io {
        path: "a task of the ingest".to_owned(),
        source: std::io::Error::other(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_neighbours_share_a_process_and_large_files_have_their_own() {
        assert_eq!(batches(&[1, 2, SMALL + 1, 3, 4, 5], 1), [0..2, 2..3, 3..6]);
        assert_eq!(batches(&[1; 4], 2), [0..2, 2..4]);
        assert_eq!(batches(&[1; 5000], 2).len(), 5000_usize.div_ceil(BATCH));
        assert_eq!(batches(&[], 2), Vec::<std::ops::Range<usize>>::new());
    }

    #[test]
    fn a_tree_of_archives_has_one_budget() {
        let content = |size| Content { sha256: String::new(), size };
        let mut budget = Budget::new(Duration::from_secs(1));
        assert!(budget.take(&[content(MAX_BYTES / 2)]).is_ok());
        assert!(budget.take(&[content(MAX_BYTES / 2 + 1)]).expect_err("bytes").contains("2 GiB"));
        assert!(budget.take(&vec![content(0); MAX_MEMBERS]).expect_err("members").contains("10000 files"));
    }
}
