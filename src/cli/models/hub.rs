//! What a hub says about a repository: its commit, its files, their hashes.
//!
//! hf-hub lists the files and streams them, ranges included. It does not hand on the
//! SHA-256 that the hub keeps for large files: its listing drops the field, and its
//! metadata request follows the redirect to the storage, whose answer no longer has it.
//! So one request of ours, which follows no redirect to another host, asks for it.

use futures::StreamExt;
use hf_hub::repository::download::HFByteStream;
use hf_hub::repository::{HFRepository, RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFError, split_id};
use reqwest::Url;
use reqwest::header::{HeaderMap, LOCATION};

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Its path inside the repository.
    pub(super) path: String,
    /// Its size in bytes.
    pub(super) size: u64,
    /// What changes with its content: git's id.
    pub(super) oid: String,
    /// Its SHA-256, where the hub says it: large files only.
    pub(super) sha256: Option<String>,
}

/// A repository of a hub.
pub(super) struct Hub {
    address: Url,
    name: String,
    token: Option<String>,
    repository: HFRepository<RepoTypeModel>,
    plain: reqwest::Client,
}

impl Hub {
    /// The repository `owner/name` of the hub at `address`.
    pub(super) fn new(address: &str, token: Option<&str>, repository: &str) -> Result<Hub, HFError> {
        let mut builder = HFClient::builder()
            .endpoint(address)
            .cache_enabled(false)
            .user_agent(concat!("tarn/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = token {
            builder = builder.token(token);
        }
        let (owner, name) = split_id(repository);
        let plain = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("tarn/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(HFError::from)?;
        Ok(Hub {
            address: Url::parse(&format!("{}/", address.trim_end_matches('/')))?,
            name: repository.to_owned(),
            token: token.map(str::to_owned),
            repository: builder.build()?.model(owner, name),
            plain,
        })
    }

    /// The commit that a revision is now.
    pub(super) async fn commit(&self, revision: &str) -> Result<Option<String>, HFError> {
        Ok(self.repository.info().revision(revision).send().await?.sha)
    }

    /// All files of a commit.
    pub(super) async fn files(&self, commit: &str) -> Result<Vec<RemoteFile>, HFError> {
        let entries = self.repository.list_tree().revision(commit).recursive(true).send()?;
        let mut entries = std::pin::pin!(entries);
        let mut files = Vec::new();
        while let Some(entry) = entries.next().await {
            if let RepoTreeEntry::File { path, size, oid, lfs, .. } = entry? {
                files.push(RemoteFile { path, size, oid, sha256: lfs.and_then(|lfs| lfs.sha256) });
            }
        }
        Ok(files)
    }

    /// The SHA-256 that the hub keeps of a file: `X-Linked-Etag` of the answer that points to the storage.
    pub(super) async fn sha256(&self, commit: &str, path: &str) -> Result<Option<String>, HFError> {
        let mut url = self.address.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments
                .pop_if_empty()
                .extend(self.name.split('/'))
                .extend(["resolve", commit])
                .extend(path.split('/'));
        }
        for _ in 0..5 {
            let mut request = self.plain.head(url.clone());
            if let Some(token) = &self.token {
                request = request.bearer_auth(token);
            }
            let answer = request.send().await.map_err(HFError::from)?;
            if let Some(hash) = linked_sha256(answer.headers()) {
                return Ok(Some(hash));
            }
            let next = answer.headers().get(LOCATION).and_then(|to| url.join(to.to_str().ok()?).ok());
            match next {
                // A renamed repository redirects inside the hub; the token goes nowhere else.
                Some(next) if next.origin() == url.origin() => url = next,
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The bytes of a file from `start` to its end.
    pub(super) async fn stream(
        &self,
        commit: &str,
        file: &RemoteFile,
        start: u64,
    ) -> Result<HFByteStream, HFError> {
        let request = self.repository.download_file_stream().filename(&file.path).revision(commit);
        let (_, bytes) = match start {
            0 => request.send().await?,
            start => request.range(start..file.size).send().await?,
        };
        Ok(bytes)
    }
}

fn linked_sha256(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get("x-linked-etag")?.to_str().ok()?;
    let hash = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
    (hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(hash)
}
