//! Log probabilities in the shapes of completions, of chats and of vLLM.

use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use super::fields::Fields;
use crate::rag::{TokenText, TopToken};

/// How tokens are named in log probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenNames {
    /// By their text.
    Text,
    /// vLLM's `return_tokens_as_token_ids`: `token_id:ID`, which is never ambiguous.
    Ids,
}

impl TokenNames {
    fn of(self, id: u32, text: &str) -> String {
        match self {
            TokenNames::Text => text.to_owned(),
            TokenNames::Ids => format!("token_id:{id}"),
        }
    }
}

impl TokenNames {
    /// As a request wants them.
    pub(super) fn take(fields: &mut Fields) -> Result<TokenNames, ApiError> {
        let as_ids = fields.take("return_tokens_as_token_ids")?.unwrap_or(false);
        Ok(if as_ids { TokenNames::Ids } else { TokenNames::Text })
    }
}

/// A field that says how many of the likeliest tokens are told.
pub(super) fn up_to_twenty(fields: &mut Fields, name: &str) -> Result<Option<u8>, ApiError> {
    match fields.take::<i64>(name)? {
        None => Ok(None),
        Some(asked) => match u8::try_from(asked) {
            Ok(most) if most <= 20 => Ok(Some(most)),
            _ => Err(ApiError::invalid(name, format!("{name} is {asked}, but must be 0 to 20"))),
        },
    }
}

/// The shape of chats and responses: one object a token.
pub(super) fn chat(tokens: &[TokenText], names: TokenNames) -> Vec<Value> {
    let one = |token: &TokenText| {
        let top = token.top.iter().map(
            |top| json!({"token": names.of(top.id, &top.text), "logprob": top.logprob, "bytes": top.bytes}),
        );
        json!({"token": names.of(token.id, &token.text), "logprob": token.logprob, "bytes": token.bytes,
            "top_logprobs": top.collect::<Vec<Value>>()})
    };
    tokens.iter().map(one).collect()
}

/// The legacy shape of completions, with the `most` likeliest tokens at each place.
pub(super) fn completion(tokens: &[TokenText], most: u8, names: TokenNames) -> Value {
    // The token itself is always among them, as with OpenAI and vLLM, however unlikely it was.
    let top = |token: &TokenText| {
        let Some(logprob) = token.logprob else { return Value::Null };
        let likeliest = token.top.iter().take(usize::from(most));
        let mut all: Map<String, Value> =
            likeliest.map(|top| (names.of(top.id, &top.text), json!(top.logprob))).collect();
        all.entry(names.of(token.id, &token.text)).or_insert_with(|| json!(logprob));
        Value::Object(all)
    };
    json!({
        "tokens": tokens.iter().map(|token| names.of(token.id, &token.text)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
    })
}

/// vLLM's `prompt_logprobs`: for each token of the prompt, token ids with what is known of them, the prompt's own
/// first. The first token has none. The rank of a token that is not among the `most` likeliest is not known.
pub(super) fn prompt(tokens: &[TokenText], most: u8) -> Value {
    let places = tokens.iter().map(|token| {
        let Some(logprob) = token.logprob else { return Value::Null };
        let likeliest = &token.top[..token.top.len().min(usize::from(most))];
        let own = token.top.iter().position(|top| top.id == token.id);
        let mut all = Map::new();
        all.insert(token.id.to_string(), known(logprob, own, &token.text));
        for (at, TopToken { id, text, logprob, .. }) in likeliest.iter().enumerate() {
            all.entry(id.to_string()).or_insert_with(|| known(*logprob, Some(at), text));
        }
        Value::Object(all)
    });
    places.collect()
}

fn known(logprob: f32, at: Option<usize>, text: &str) -> Value {
    json!({"logprob": logprob, "rank": at.map(|at| at + 1), "decoded_token": text})
}
