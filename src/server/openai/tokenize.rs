//! vLLM's `/tokenize` and `/detokenize`. Both run off the async threads: texts may be as long as a body.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::super::AppState;
use super::super::error::{ApiError, Body};
use super::chat::Conversation;
use super::fields::{Fields, Refused};
use super::tools::Tools;
use crate::rag::Prompt;

const REFUSED: &[Refused] =
    &[("continue_final_message", &["false"]), ("chat_template", &[]), ("documents", &["[]"])];

pub(in crate::server) async fn tokenize(
    State(state): State<AppState>,
    Body(mut fields): Body<Fields>,
) -> Result<Json<Value>, ApiError> {
    let generator = super::target(&state, &fields.take::<String>("model")?.unwrap_or_default())?.generator;
    let special: Option<bool> = fields.take("add_special_tokens")?;
    let with_pieces = fields.take("return_token_strs")?.unwrap_or(false);
    let tools = Tools::take(&mut fields)?;
    // A chat's template writes the special tokens itself.
    let (prompt, special) = match (fields.take("prompt")?, fields.peek("messages").is_some()) {
        (Some(prompt), false) => (Prompt::Text(prompt), special.unwrap_or(true)),
        (None, true) => {
            let conversation = Conversation::take(&mut fields, &generator, tools.as_ref())?;
            (conversation.prompt, special.unwrap_or(false))
        }
        _ => return Err(ApiError::invalid("prompt", "give either prompt or messages")),
    };
    fields.refuse(REFUSED)?;
    super::off_thread(move || {
        let text = generator.render(&prompt)?.unwrap_or_default();
        let tokenizer = generator.tokenizer();
        let tokens = tokenizer
            .encode(&text, special)
            .map_err(|error| ApiError::invalid("prompt", error.to_string()))?;
        let mut answer =
            json!({"count": tokens.len(), "max_model_len": generator.max_model_len(), "tokens": tokens});
        if with_pieces {
            answer["token_strs"] = tokens.iter().map(|id| json!(tokenizer.piece(*id))).collect();
        }
        Ok(Json(answer))
    })
    .await
}

pub(in crate::server) async fn detokenize(
    State(state): State<AppState>,
    Body(mut fields): Body<Fields>,
) -> Result<Json<Value>, ApiError> {
    let generator = super::target(&state, &fields.take::<String>("model")?.unwrap_or_default())?.generator;
    let tokens: Vec<u32> = fields.need("tokens")?;
    let vocab = generator.engine().limits().vocab_size;
    if let Some(id) = tokens.iter().find(|id| **id >= vocab) {
        return Err(ApiError::invalid(
            "tokens",
            format!("token id {id} is outside the model's vocabulary of {vocab}"),
        ));
    }
    super::off_thread(move || Ok(Json(json!({"prompt": generator.tokenizer().decode(&tokens, false)})))).await
}
