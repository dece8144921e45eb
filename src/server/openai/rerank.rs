//! `/v1/rerank` as Jina and Cohere have it and vLLM serves it, and vLLM's `/score`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::AppState;
use super::super::error::{ApiError, Body};
use super::fields::{Fields, Refused};
use crate::embed::{EmbedError, Pair, Priority, RerankerInfo};

/// What vLLM, Jina or Cohere take and Tarn does not.
const REFUSED: &[Refused] = &[
    ("rank_fields", &[]),
    ("max_chunks_per_doc", &[]),
    ("max_tokens_per_doc", &["0"]),
    ("return_embeddings", &["false"]),
    ("mm_processor_kwargs", &[]),
    ("activation", &[]),
    ("use_activation", &["true"]),
    ("softmax", &[]),
    ("priority", &["0"]),
];

/// Most pairs of a request.
const MAX_PAIRS: usize = 2048;

/// Pairs up to which a request goes before bulk work.
const INTERACTIVE: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "each must be a text or {\"text\": …}")]
enum Document {
    Plain(String),
    Object { text: String },
}

impl Document {
    fn text(self) -> String {
        match self {
            Document::Plain(text) | Document::Object { text } => text,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "it must be a text or a list of texts")]
enum Texts {
    One(String),
    Several(Vec<String>),
}

impl Texts {
    fn list(self) -> Vec<String> {
        match self {
            Texts::One(text) => vec![text],
            Texts::Several(texts) => texts,
        }
    }
}

/// `POST /v1/rerank`.
pub(in crate::server) async fn rerank(
    State(state): State<AppState>,
    Body(mut fields): Body<Fields>,
) -> Result<Json<Value>, ApiError> {
    let info = reranker(&state, &mut fields)?.clone();
    let query: String = fields.need("query")?;
    if query.trim().is_empty() {
        return Err(ApiError::invalid("query", "query is empty"));
    }
    let documents: Vec<Document> = fields.need("documents")?;
    let texts: Vec<String> = documents.into_iter().map(Document::text).collect();
    // vLLM's and Cohere's way to say all.
    let top_n = fields.take("top_n")?.filter(|n: &usize| *n > 0).unwrap_or(texts.len());
    let with_documents: bool = fields.take("return_documents")?.unwrap_or(true);
    let max_tokens = cut(fields.take("truncate_prompt_tokens")?, info.max_tokens)?;
    fields.refuse(REFUSED)?;
    count("documents", texts.len())?;
    let query: Arc<str> = query.into();
    let pairs = texts.iter().map(|text| Pair { query: query.clone(), document: text.clone() }).collect();
    let scored = state.embed.score_pairs(pairs, max_tokens, priority(texts.len())).await?;
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by(|a, b| scored.scores[*b].total_cmp(&scored.scores[*a]));
    let result = |index: &usize| {
        let mut result = json!({"index": index, "relevance_score": scored.scores[*index]});
        if with_documents {
            result["document"] = json!({"text": texts[*index]});
        }
        result
    };
    let results: Vec<Value> = order.iter().take(top_n).map(result).collect();
    Ok(Json(json!({"id": super::id("rerank-"), "model": info.id, "results": results,
        "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens}})))
}

/// `POST /score`: one text with one or several, or texts pair by pair.
pub(in crate::server) async fn score(
    State(state): State<AppState>,
    Body(mut fields): Body<Fields>,
) -> Result<Json<Value>, ApiError> {
    let info = reranker(&state, &mut fields)?.clone();
    let first: Vec<String> = fields.need::<Texts>("text_1")?.list();
    let second: Vec<String> = fields.need::<Texts>("text_2")?.list();
    let max_tokens = cut(fields.take("truncate_prompt_tokens")?, info.max_tokens)?;
    fields.refuse(REFUSED)?;
    count("text_2", second.len())?;
    if first.len() != 1 && first.len() != second.len() {
        return Err(ApiError::invalid(
            "text_1",
            format!("text_1 has {} texts and text_2 {}: send one, or as many", first.len(), second.len()),
        ));
    }
    let first: Vec<Arc<str>> = first.into_iter().map(Arc::from).collect();
    let pair =
        |(at, document): (usize, String)| Pair { query: first[at.min(first.len() - 1)].clone(), document };
    let pairs: Vec<Pair> = second.into_iter().enumerate().map(pair).collect();
    let priority = priority(pairs.len());
    let scored = state.embed.score_pairs(pairs, max_tokens, priority).await?;
    let one = |(index, score): (usize, f32)| json!({"index": index, "object": "score", "score": score});
    let data: Vec<Value> = scored.scores.into_iter().enumerate().map(one).collect();
    Ok(Json(json!({"id": super::id("score-"), "object": "list", "created": super::now(), "model": info.id,
        "data": data, "usage": {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens}})))
}

/// The reranker, which `model` must name if it names one.
fn reranker<'a>(state: &'a AppState, fields: &mut Fields) -> Result<&'a RerankerInfo, ApiError> {
    let model: String = fields.take("model")?.unwrap_or_default();
    let info = state.embed.reranker().ok_or(EmbedError::NoReranker)?;
    if model.is_empty() || model == info.id { Ok(info) } else { Err(ApiError::no_model(&model)) }
}

fn count(field: &'static str, count: usize) -> Result<(), ApiError> {
    if (1..=MAX_PAIRS).contains(&count) {
        return Ok(());
    }
    Err(ApiError::invalid(field, format!("{field} must hold 1 to {MAX_PAIRS} texts")))
}

fn priority(pairs: usize) -> Priority {
    if pairs > INTERACTIVE { Priority::Bulk } else { Priority::Interactive }
}

/// Where `truncate_prompt_tokens` wants pairs cut; without it, and for -1, at the model's length.
fn cut(asked: Option<i64>, max_tokens: usize) -> Result<Option<usize>, ApiError> {
    // Three special tokens and one of each text.
    const LEAST: usize = 8;
    match asked {
        None | Some(-1) => Ok(None),
        Some(n) => match usize::try_from(n) {
            Ok(n) if (LEAST..=max_tokens).contains(&n) => Ok(Some(n)),
            _ => Err(ApiError::invalid(
                "truncate_prompt_tokens",
                format!("truncate_prompt_tokens is {n}, but must be -1 or {LEAST} to {max_tokens}"),
            )),
        },
    }
}
