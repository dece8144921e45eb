//! From documents to rows: chunks, their terms, and vectors for the texts that have none yet.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};

use crate::embed::{InputKind, Priority};
use crate::ingest::chunk::{self, Chunk};
use crate::ingest::error::IngestError;
use crate::lake::{ChunkRow, DocumentBundle, DocumentRow, Snapshot, chunk_id, document_id, ingest_id};
use crate::text::{analyze, language};

use super::unpack::{Parsed, blocking};
use super::{PARSER, Pipeline};

/// Texts embedded in one call.
const EMBED_BATCH: usize = 512;
/// Calls to the embedder at a time: the texts of one are tokenized while it computes another.
const EMBED_CALLS: usize = 2;

/// A parsed file cut to chunks.
pub(super) struct Cut {
    pub(super) parsed: Parsed,
    chunks: Vec<Chunk>,
    language: Option<&'static str>,
    terms: Vec<String>,
    texts: Vec<String>,
    hashes: Vec<String>,
}

impl Pipeline {
    /// Cuts files to chunks, several at a time, in order.
    pub(super) async fn cut_all(&self, files: Vec<Parsed>) -> Result<Vec<Cut>, IngestError> {
        let target = self.config.chunk_tokens;
        let room = target.min(self.embed.info().max_tokens.saturating_sub(8).max(16));
        let cuts: Vec<_> = files
            .into_iter()
            .map(|mut parsed| {
                let tokenizer = self.embed.tokenizer().clone();
                blocking(move || {
                    let blocks = std::mem::take(&mut parsed.document.blocks);
                    let chunks = chunk::chunk(&blocks, &tokenizer, room);
                    let sample: Vec<&str> = chunks.iter().take(20).map(|chunk| chunk.text.as_str()).collect();
                    let language = language::detect(&sample.join(" "));
                    let texts: Vec<String> = chunks.iter().map(Chunk::embed_text).collect();
                    let terms = texts.iter().map(|text| analyze::terms(text, language)).collect();
                    let hashes =
                        texts.iter().map(|text| hex::encode(Sha256::digest(text.as_bytes()))).collect();
                    Cut { parsed, chunks, language, terms, texts, hashes }
                })
            })
            .collect();
        stream::iter(cuts).buffered(self.config.parallel.max(1)).try_collect().await
    }

    /// The vectors of all texts of `cuts` by hash; a text that several documents share is embedded once, and not at
    /// all when the last version of its document has it.
    pub(super) async fn vectors(
        &self,
        customer: &str,
        snapshot: &Snapshot,
        cuts: &[Cut],
    ) -> Result<HashMap<String, Vec<f32>>, IngestError> {
        let mut replaced: Vec<String> = Vec::new();
        let mut wanted: HashSet<String> = HashSet::new();
        let mut replaces = false;
        for cut in cuts {
            let id = document_id(customer, &cut.parsed.source.source_uri);
            // Files follow their archive and are not there without it: a new one is looked up once, not once a member.
            if cut.parsed.parent.is_none() {
                replaces = snapshot.document(&id).is_some();
            }
            if replaces {
                replaced.push(id);
                wanted.extend(cut.hashes.iter().cloned());
            }
        }
        let mut known = snapshot.reusable_vectors(&replaced, &self.embed.fingerprint(), &wanted).await?;
        let mut seen = HashSet::new();
        let missing: Vec<(&String, &String)> = cuts
            .iter()
            .flat_map(|cut| cut.hashes.iter().zip(&cut.texts))
            .filter(|(hash, _)| !known.contains_key(*hash) && seen.insert(*hash))
            .collect();
        let calls: Vec<_> = missing
            .chunks(EMBED_BATCH)
            .map(|part| {
                let (hashes, texts): (Vec<String>, Vec<String>) =
                    part.iter().map(|(hash, text)| ((*hash).clone(), (*text).clone())).unzip();
                let embed = self.embed.clone();
                async move {
                    let vectors = embed.embed(InputKind::Passage, texts, Priority::Bulk).await?;
                    Ok::<_, IngestError>(hashes.into_iter().zip(vectors))
                }
            })
            .collect();
        let mut calls = stream::iter(calls).buffered(EMBED_CALLS);
        while let Some(vectors) = calls.try_next().await? {
            known.extend(vectors);
        }
        Ok(known)
    }

    /// The rows of one file.
    pub(super) fn bundle(
        &self,
        customer: &str,
        cut: Cut,
        original: Option<String>,
        vectors: &HashMap<String, Vec<f32>>,
    ) -> DocumentBundle {
        let Cut {
            parsed: Parsed { source, parent, content, document }, chunks, language, terms, hashes, ..
        } = cut;
        let id = document_id(customer, &source.source_uri);
        let (ingest, chunker) = (ingest_id(), self.chunker());
        let rows: Vec<ChunkRow> = chunks
            .into_iter()
            .zip(&hashes)
            .zip(0..)
            .map(|((chunk, hash), ordinal)| ChunkRow {
                chunk_id: chunk_id(&id, &content.sha256, &chunker, ordinal),
                ingest_id: ingest.clone(),
                document_id: id.clone(),
                ordinal,
                kind: chunk.kind.name().to_owned(),
                embed_text_hash: hash.clone(),
                token_count: chunk.tokens as i32,
                language: language.map(str::to_owned),
                page_start: chunk.place.page,
                page_end: chunk.place.page,
                cell_range: chunk.cell_range(),
                char_start: chunk.place.chars.map(|chars| chars.0),
                char_end: chunk.place.chars.map(|chars| chars.1),
                heading_path: chunk.heading_path,
                header: chunk.header,
                text: chunk.text,
                sheet: chunk.place.sheet,
                xml_path: chunk.place.xml_path,
                ..ChunkRow::default()
            })
            .collect();
        let vectors = hashes.iter().filter_map(|hash| vectors.get(hash)).flatten().copied().collect();
        let row = DocumentRow {
            document_id: id,
            ingest_id: ingest,
            source_uri: source.source_uri,
            name: source.name,
            parent_document_id: parent,
            original,
            content_sha256: content.sha256,
            size_bytes: content.size as i64,
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
            embedder: self.embed.fingerprint(),
            ingested_at: chrono::Utc::now().timestamp_micros(),
            warnings: document.warnings,
            ..DocumentRow::default()
        };
        DocumentBundle { document: row, chunks: rows, terms, vectors }
    }
}
