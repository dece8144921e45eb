//! `/v1/embeddings`.

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::AppState;
use super::super::error::{ApiError, Body};
use super::fields::{Fields, Refused};
use crate::embed::{InputKind, Priority};

/// What vLLM's embeddings take and Tarn's do not.
const REFUSED: &[Refused] = &[
    ("messages", &[]),
    ("add_special_tokens", &["true"]),
    ("normalize", &["true"]),
    ("softmax", &[]),
    ("activation", &[]),
    ("priority", &["0"]),
];

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "it must be a text, a list of texts, a list of token ids or a list of such lists"
)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

pub(in crate::server) async fn create(
    State(state): State<AppState>,
    Body(mut fields): Body<Fields>,
) -> Result<Json<Value>, ApiError> {
    let info = state.embed.info();
    let model: String = fields.take("model")?.unwrap_or_default();
    if !model.is_empty() && model != info.id {
        return Err(ApiError::no_model(&model));
    }
    if fields.take("dimensions")?.is_some_and(|dimensions: usize| dimensions != info.dim) {
        return Err(ApiError::invalid(
            "dimensions",
            format!("this model's vectors have {} numbers and cannot be cut", info.dim),
        ));
    }
    let cut = cut(fields.take("truncate_prompt_tokens")?, info.max_tokens)?;
    // `query` or `passage` puts the model's words for it before each text. Without it texts go in as they are.
    let kind = match fields.take::<String>("input_type")?.as_deref() {
        None => InputKind::Raw,
        Some("query") => InputKind::Query,
        Some("passage" | "document") => InputKind::Passage,
        Some(other) => {
            return Err(ApiError::invalid(
                "input_type",
                format!("input_type is `{other}`, but must be query or passage"),
            ));
        }
    };
    let base64 = match fields.take::<String>("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(ApiError::invalid(
                "encoding_format",
                format!("encoding_format is `{other}`, but must be float or base64"),
            ));
        }
    };
    let input: Input = fields.need("input")?;
    fields.refuse(REFUSED)?;
    let lists = match input {
        Input::Text(text) => tokenized(&state, kind, vec![text], cut).await?,
        Input::Texts(texts) => tokenized(&state, kind, texts, cut).await?,
        Input::Tokens(ids) => checked(&state, vec![ids], cut)?,
        Input::TokenLists(lists) => checked(&state, lists, cut)?,
    };
    let tokens: usize = lists.iter().map(Vec::len).sum();
    let priority = if lists.len() > 8 { Priority::Bulk } else { Priority::Interactive };
    let vectors = state.embed.embed_tokens(lists, priority).await?;
    let data: Vec<Value> = vectors
        .into_iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = if base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    Ok(Json(json!({"object": "list", "data": data, "model": info.id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})))
}

/// What `truncate_prompt_tokens` asks for: `None` refuses what is too long, as vLLM does; -1 cuts at the model's length.
fn cut(asked: Option<i64>, max_tokens: usize) -> Result<Option<usize>, ApiError> {
    match asked {
        None => Ok(None),
        Some(-1) => Ok(Some(max_tokens)),
        Some(n) => match usize::try_from(n) {
            Ok(n) if (1..=max_tokens).contains(&n) => Ok(Some(n)),
            _ => Err(ApiError::invalid(
                "truncate_prompt_tokens",
                format!("truncate_prompt_tokens is {n}, but must be -1 or 1 to {max_tokens}"),
            )),
        },
    }
}

fn count(count: usize, any_empty: bool) -> Result<(), ApiError> {
    if count == 0 || count > 2048 || any_empty {
        return Err(ApiError::invalid("input", "input must hold 1 to 2048 texts, none of them empty"));
    }
    Ok(())
}

fn too_long(at: usize, length: &str, max_tokens: usize) -> ApiError {
    ApiError::context_length(
        "input",
        format!(
            "input {at} is {length} long, but this model takes {max_tokens} tokens; shorten it, or send \
             truncate_prompt_tokens: -1"
        ),
    )
}

/// The token ids of `texts`, made off the async threads.
async fn tokenized(
    state: &AppState,
    kind: InputKind,
    texts: Vec<String>,
    cut: Option<usize>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    count(texts.len(), texts.iter().any(String::is_empty))?;
    let (tokenizer, info) = (state.embed.tokenizer().clone(), state.embed.info().clone());
    let longest = info.max_tokens.saturating_mul(tokenizer.longest_token());
    let prefix = match kind {
        InputKind::Query => info.query_prefix,
        InputKind::Passage => info.passage_prefix,
        InputKind::Raw => String::new(),
    };
    super::off_thread(move || {
        let one = |(at, text): (usize, String)| {
            let mut text = format!("{prefix}{text}");
            // What cannot fit need not be tokenized to its end.
            if text.len() > longest {
                if cut.is_none() {
                    return Err(too_long(at, &format!("{} bytes", text.len()), info.max_tokens));
                }
                text.truncate(text.floor_char_boundary(longest));
            }
            let ids = tokenizer
                .encode(&text, true)
                .map_err(|error| ApiError::invalid("input", error.to_string()))?;
            let closes = |id: &u32| tokenizer.is_special(*id);
            fit(at, ids, closes, cut, info.max_tokens)
        };
        texts.into_iter().enumerate().map(one).collect()
    })
    .await
}

/// Token ids that the caller made.
fn checked(state: &AppState, lists: Vec<Vec<u32>>, cut: Option<usize>) -> Result<Vec<Vec<u32>>, ApiError> {
    count(lists.len(), lists.iter().any(Vec::is_empty))?;
    let vocab = state.embed.tokenizer().vocab_size();
    if let Some(id) = lists.iter().flatten().find(|id| **id as usize >= vocab) {
        return Err(ApiError::invalid(
            "input",
            format!("token id {id} is outside the model's vocabulary of {vocab}"),
        ));
    }
    let max_tokens = state.embed.info().max_tokens;
    let closes = |id: &u32| state.embed.tokenizer().is_special(*id);
    lists.into_iter().enumerate().map(|(at, ids)| fit(at, ids, closes, cut, max_tokens)).collect()
}

/// Cuts `ids` where that was asked for, before the closing special token, which stays.
fn fit(
    at: usize,
    mut ids: Vec<u32>,
    closes: impl Fn(&u32) -> bool,
    cut: Option<usize>,
    max_tokens: usize,
) -> Result<Vec<u32>, ApiError> {
    match cut {
        None if ids.len() > max_tokens => Err(too_long(at, &format!("{} tokens", ids.len()), max_tokens)),
        Some(most) if ids.len() > most => {
            let last = ids.last().copied().filter(closes);
            ids.truncate(most - usize::from(last.is_some()));
            ids.extend(last);
            Ok(ids)
        }
        _ => Ok(ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_is_cut_only_where_that_was_asked_for() {
        let closes = |id: &u32| *id == 2;
        let ids = vec![1, 5, 6, 7, 2];
        assert!(fit(0, ids.clone(), closes, None, 4).is_err());
        assert_eq!(fit(0, ids.clone(), closes, None, 5).expect("fits"), ids);
        assert_eq!(fit(0, ids.clone(), closes, Some(4), 4).expect("cut"), [1, 5, 6, 2]);
        assert_eq!(fit(0, vec![5, 6, 7], closes, Some(2), 4).expect("cut"), [5, 6]);
        assert_eq!(cut(Some(-1), 512).expect("valid"), Some(512));
        assert!(cut(Some(0), 512).is_err() && cut(Some(513), 512).is_err());
    }
}
