//! What can go wrong between a question and its answer.

use crate::embed::EmbedError;
use crate::engine::{AdapterError, EngineError, SubmitError};
use crate::lake::LakeError;
use crate::text::TextError;

/// Why a generation was refused or ended early.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The prompt and the wanted answer do not fit the model's window.
    #[error(
        "the prompt is {prompt_tokens} tokens long{}, but this model's context length is {max_model_len} tokens; \
         shorten the prompt or ask for fewer tokens",
        match wanted { Some(n) => format!(" and {n} more were asked for"), None => String::new() }
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens asked for, if the request named a number.
        wanted: Option<u32>,
        /// The window.
        max_model_len: usize,
    },
    /// The prompt is so long that it was not tokenized.
    #[error(
        "the prompt is {bytes} bytes long, which cannot fit this model's context length of {max_model_len} tokens; \
         shorten the prompt"
    )]
    TooManyBytes {
        /// Bytes of the prompt.
        bytes: usize,
        /// The window.
        max_model_len: usize,
    },
    /// The prompt has no token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id that the model does not have.
    #[error("token id {id} is outside the model's vocabulary of {vocab_size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// How many there are.
        vocab_size: usize,
    },
    /// A chat request to a model without a chat template.
    #[error(
        "model {model} has no chat template, so it cannot take messages; \
         use /v1/completions, or a model whose tokenizer_config.json or GGUF has one"
    )]
    NoChatTemplate {
        /// The model's name.
        model: String,
    },
    /// A field whose value makes no sense.
    #[error("{field}: {message}")]
    Invalid {
        /// The field of the request.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Tokenizer or chat template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The engine did not take the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The engine failed on it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine went away before the request was complete.
    #[error("the engine stopped before the request was complete")]
    Interrupted,
}

/// Why a retrieval or an answer failed.
#[derive(Debug, thiserror::Error)]
pub enum RagError {
    /// The query has no word.
    #[error("the query is empty")]
    EmptyQuery,
    /// The lake's vectors come from another embedder.
    #[error(
        "the lake's vectors were made by {lake}, but the loaded embedder is {loaded}; \
         query with mode text, load that embedder, or re-embed the lake"
    )]
    EmbedderMismatch {
        /// What the lake says.
        lake: String,
        /// What is loaded.
        loaded: String,
    },
    /// An answer was asked for, but no model that generates is loaded.
    #[error("no model that generates is loaded; start with --model, or ask with generate: false")]
    NoGenerator,
    /// Reranking was asked for, but no model that scores pairs is loaded.
    #[error("no model that reranks is loaded; start with --reranker, or ask with rerank: false")]
    NoReranker,
    /// The model's window is too small for any context.
    #[error(
        "the question takes {question_tokens} tokens and the answer {answer_tokens}, \
         which leaves no room for sources in the model's {window} tokens; shorten the question or lower max_tokens"
    )]
    NoRoom {
        /// Tokens of the instructions and the question.
        question_tokens: usize,
        /// Tokens kept for the answer.
        answer_tokens: usize,
        /// The window.
        window: usize,
    },
    /// The lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The embedder.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The generation.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}
