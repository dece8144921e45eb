//! From a file to a commit: parse, chunk, embed, write.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::embed::{EmbedHandle, InputKind, Priority};
use crate::lake::{
    Applied, ChunkRow, DocumentBundle, DocumentChange, DocumentRow, Lakes, Viewer, chunk_id, document_id,
    ingest_id,
};
use crate::text::{analyze, language};

use super::chunk::{self, Chunk};
use super::document::Document;
use super::error::IngestError;
use super::worker::{WorkerLimits, parse_isolated};

/// The parsers' name and version, kept with every document.
const PARSER: &str = "tarn-parse/1";
/// Archives in archives are opened to this depth.
const MAX_DEPTH: usize = 3;
/// Texts embedded in one call.
const EMBED_BATCH: usize = 512;

/// How files are ingested.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// The program whose `parse-worker` parses; usually this one.
    pub worker_exe: PathBuf,
    /// What parsing one document may take.
    pub limits: WorkerLimits,
    /// Tokens of a chunk.
    pub chunk_tokens: usize,
    /// Documents parsed at a time.
    pub parallel: usize,
}

/// A file to ingest.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// What identifies the document: an upload's name, a path.
    pub source_uri: String,
    /// What it is called.
    pub name: String,
    /// Its bytes.
    pub path: PathBuf,
    /// Collections that it belongs to.
    pub collections: Vec<String>,
    /// Groups that may see it; empty for all.
    pub acl: Vec<String>,
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IngestOutcome {
    /// The document.
    pub document_id: String,
    /// The lake's version that has it.
    pub version: i64,
    /// Its chunks, those of the files inside it included.
    pub chunks: usize,
    /// Files inside it that became documents.
    pub children: usize,
    /// The same bytes by the same pipeline were there.
    pub unchanged: bool,
    /// What a reader should know.
    pub warnings: Vec<String>,
}

/// Ingests files; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pipeline {
    config: Arc<PipelineConfig>,
    embed: EmbedHandle,
    lakes: Arc<Lakes>,
    parsing: Arc<Semaphore>,
}

/// A parsed file with the files inside it.
struct Parsed {
    source: SourceFile,
    parent: Option<String>,
    sha256: String,
    size: u64,
    original: Option<String>,
    document: Document,
}

impl Pipeline {
    /// Puts the parts together.
    #[must_use]
    pub fn new(config: PipelineConfig, embed: EmbedHandle, lakes: Arc<Lakes>) -> Pipeline {
        let parsing = Arc::new(Semaphore::new(config.parallel.max(1)));
        Pipeline { config: Arc::new(config), embed, lakes, parsing }
    }

    /// The lakes that it writes to.
    #[must_use]
    pub fn lakes(&self) -> &Arc<Lakes> {
        &self.lakes
    }

    fn chunker(&self) -> String {
        format!("{};tokens={}", chunk::NAME, self.config.chunk_tokens)
    }

    /// Ingests one file as one commit, the files inside it included. `progress` is told what happens.
    ///
    /// # Errors
    /// [`IngestError::Refused`] when the file is the reason.
    pub async fn ingest(
        &self,
        customer: &str,
        source: SourceFile,
        progress: &(dyn Fn(&str) + Sync),
    ) -> Result<IngestOutcome, IngestError> {
        let lake = self.lakes.customer(customer)?;
        let id = document_id(customer, &source.source_uri);
        let snapshot = lake.snapshot(None, &Viewer::all()).await?;
        let (sha256, size) = digest(&source.path).await?;
        if let Some(old) = snapshot.document(&id)
            && old.content_sha256 == sha256
            && (old.parser.as_str(), old.chunker, old.embedder)
                == (PARSER, self.chunker(), self.embed.fingerprint())
        {
            let (version, chunks) = (snapshot.version(), old.chunk_count as usize);
            return Ok(IngestOutcome {
                document_id: id,
                version,
                chunks,
                children: 0,
                unchanged: true,
                warnings: old.warnings,
            });
        }
        progress("parsing");
        let folder = tempfile::tempdir()
            .map_err(|source| IngestError::Io { path: "a temporary folder".to_owned(), source })?;
        let mut parsed = Vec::new();
        let original = lake.store_original(source.path.clone()).await?.path;
        let root = Parsed {
            source,
            parent: None,
            sha256,
            size,
            original: Some(original),
            document: Document::default(),
        };
        self.parse_all(customer, root, folder.path(), 0, &mut parsed).await?;
        let mut changes = Vec::new();
        let (mut chunks, children) = (0, parsed.len() - 1);
        let mut warnings = Vec::new();
        for (at, one) in parsed.into_iter().enumerate() {
            if at == 0 {
                warnings.clone_from(&one.document.warnings);
            }
            progress(&format!("embedding {}", one.source.name));
            let bundle = self.bundle(customer, &snapshot, one).await?;
            chunks += bundle.chunks.len();
            changes.push(DocumentChange::Put(Box::new(bundle)));
        }
        progress("committing");
        let receipt = lake.commit(changes).await?;
        let unchanged = receipt.applied.first() == Some(&Applied::Unchanged);
        Ok(IngestOutcome { document_id: id, version: receipt.version, chunks, children, unchanged, warnings })
    }

    /// Parses `one` and, in order, the files inside it. A member that is refused is a warning of its archive.
    async fn parse_all(
        &self,
        customer: &str,
        mut one: Parsed,
        folder: &std::path::Path,
        depth: usize,
        parsed: &mut Vec<Parsed>,
    ) -> Result<(), IngestError> {
        let refused = |reason: String| IngestError::Refused { name: one.source.name.clone(), reason };
        let extract = folder.join(format!("{}", parsed.len()));
        std::fs::create_dir_all(&extract)
            .map_err(|source| IngestError::Io { path: extract.display().to_string(), source })?;
        one.document = {
            let _permit = self.parsing.acquire().await;
            parse_isolated(
                &self.config.worker_exe,
                &one.source.path,
                &one.source.name,
                &extract,
                self.config.limits,
            )
            .await
            .map_err(refused)?
        };
        let members = std::mem::take(&mut one.document.members);
        let (source, id) = (one.source.clone(), document_id(customer, &one.source.source_uri));
        let at = parsed.len();
        parsed.push(one);
        for member in members {
            let path = extract.join(&member.file);
            let name = member.name.rsplit('/').next().unwrap_or(&member.name).to_owned();
            if depth + 1 >= MAX_DEPTH && name.to_lowercase().ends_with(".zip") {
                let warning =
                    format!("`{}` is an archive in archives in an archive: it was left out", member.name);
                parsed[at].document.warnings.push(warning);
                continue;
            }
            let (sha256, size) = digest(&path).await?;
            let child = Parsed {
                source: SourceFile {
                    source_uri: format!("{}!/{}", source.source_uri, member.name),
                    name,
                    path,
                    ..source.clone()
                },
                parent: Some(id.clone()),
                sha256,
                size,
                original: None,
                document: Document::default(),
            };
            match Box::pin(self.parse_all(customer, child, folder, depth + 1, parsed)).await {
                Ok(()) => {}
                Err(IngestError::Refused { reason, .. }) => {
                    parsed[at].document.warnings.push(format!("`{}`: {reason}", member.name));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn bundle(
        &self,
        customer: &str,
        snapshot: &crate::lake::Snapshot,
        one: Parsed,
    ) -> Result<DocumentBundle, IngestError> {
        let Parsed { source, parent, sha256, size, original, document } = one;
        let id = document_id(customer, &source.source_uri);
        let (tokenizer, target) = (self.embed.tokenizer().clone(), self.config.chunk_tokens);
        let room = target.min(self.embed.info().max_tokens.saturating_sub(8).max(16));
        let blocks = document.blocks;
        let work = move || {
            let chunks = chunk::chunk(&blocks, &tokenizer, room);
            let sample: String =
                chunks.iter().take(20).map(|chunk| chunk.text.as_str()).collect::<Vec<_>>().join(" ");
            let language = language::detect(&sample);
            let texts: Vec<String> = chunks.iter().map(Chunk::embed_text).collect();
            let terms: Vec<String> = texts.iter().map(|text| analyze::terms(text, language)).collect();
            let hashes: Vec<String> =
                texts.iter().map(|text| hex::encode(Sha256::digest(text.as_bytes()))).collect();
            (chunks, language, texts, terms, hashes)
        };
        let (chunks, language, texts, terms, hashes) =
            tokio::task::spawn_blocking(work).await.map_err(|error| IngestError::Refused {
                name: source.name.clone(),
                reason: format!("cutting it into chunks failed: {error}"),
            })?;
        let embedder = self.embed.fingerprint();
        let wanted: HashSet<String> = hashes.iter().cloned().collect();
        let mut known = snapshot.reusable_vectors(&id, &embedder, &wanted).await?;
        self.embed_missing(&texts, &hashes, &mut known).await?;
        let ingest = ingest_id();
        let chunker = self.chunker();
        let rows: Vec<ChunkRow> = chunks
            .iter()
            .zip(&hashes)
            .zip(0..)
            .map(|((chunk, hash), ordinal)| ChunkRow {
                chunk_id: chunk_id(&id, &sha256, &chunker, ordinal),
                ingest_id: ingest.clone(),
                document_id: id.clone(),
                ordinal,
                kind: chunk.kind.name().to_owned(),
                heading_path: chunk.heading_path.clone(),
                header: chunk.header.clone(),
                text: chunk.text.clone(),
                embed_text_hash: hash.clone(),
                token_count: chunk.tokens as i32,
                language: language.map(str::to_owned),
                page_start: chunk.place.page,
                page_end: chunk.place.page,
                sheet: chunk.place.sheet.clone(),
                cell_range: chunk.cell_range(),
                xml_path: chunk.place.xml_path.clone(),
                char_start: chunk.place.chars.map(|chars| chars.0),
                char_end: chunk.place.chars.map(|chars| chars.1),
                ..ChunkRow::default()
            })
            .collect();
        let vectors = hashes.iter().flat_map(|hash| known.get(hash).cloned().unwrap_or_default()).collect();
        let row = DocumentRow {
            document_id: id,
            ingest_id: ingest,
            source_uri: source.source_uri,
            name: source.name,
            parent_document_id: parent,
            original,
            content_sha256: sha256,
            size_bytes: size as i64,
            media_type: Some(document.media_type),
            language: language.map(str::to_owned),
            title: document.title,
            collections: source.collections,
            acl: source.acl,
            page_count: document.page_count,
            chunk_count: rows.len() as i32,
            token_count: rows.iter().map(|row| i64::from(row.token_count)).sum(),
            parser: PARSER.to_owned(),
            chunker,
            embedder,
            ingested_at: chrono::Utc::now().timestamp_micros(),
            warnings: document.warnings,
            ..DocumentRow::default()
        };
        Ok(DocumentBundle { document: row, chunks: rows, terms, vectors })
    }

    /// Embeds each distinct text that has no vector yet, once.
    async fn embed_missing(
        &self,
        texts: &[String],
        hashes: &[String],
        known: &mut HashMap<String, Vec<f32>>,
    ) -> Result<(), IngestError> {
        let mut missing: Vec<(&String, &String)> = Vec::new();
        let mut seen = HashSet::new();
        for (hash, text) in hashes.iter().zip(texts) {
            if !known.contains_key(hash) && seen.insert(hash) {
                missing.push((hash, text));
            }
        }
        for part in missing.chunks(EMBED_BATCH) {
            let texts = part.iter().map(|(_, text)| (*text).clone()).collect();
            let vectors = self.embed.embed(InputKind::Passage, texts, Priority::Bulk).await?;
            known.extend(part.iter().map(|(hash, _)| (*hash).clone()).zip(vectors));
        }
        Ok(())
    }

    /// Deletes a document and the files inside it; false when there is none.
    ///
    /// # Errors
    /// [`IngestError::Lake`].
    pub async fn delete(&self, customer: &str, document_id: &str) -> Result<bool, IngestError> {
        let change = DocumentChange::Delete { document_id: document_id.to_owned() };
        let receipt = self.lakes.customer(customer)?.commit(vec![change]).await?;
        Ok(receipt.applied == [Applied::Deleted])
    }
}

/// SHA-256 and size of a file.
async fn digest(path: &std::path::Path) -> Result<(String, u64), IngestError> {
    let path = path.to_owned();
    let named = path.display().to_string();
    let read = move || {
        let (mut file, mut hasher) = (std::fs::File::open(&path)?, Sha256::new());
        let size = std::io::copy(&mut file, &mut hasher)?;
        Ok::<_, std::io::Error>((hex::encode(hasher.finalize()), size))
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(std::io::Error::other)
        .and_then(|result| result)
        .map_err(|source| IngestError::Io { path: named, source })
}
