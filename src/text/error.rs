//! What can be wrong with a tokenizer or a template.

/// Why a text could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The tokenizer's data are damaged or of an unknown kind.
    #[error("the tokenizer cannot be used: {message}")]
    Tokenizer {
        /// What is wrong.
        message: String,
    },
    /// A text could not be encoded.
    #[error("the text could not be tokenized: {message}")]
    Encode {
        /// What the tokenizer said.
        message: String,
    },
    /// The chat template does not compile.
    #[error("the chat template does not compile: {message}")]
    Template {
        /// Where and what.
        message: String,
    },
    /// The chat template refused the messages.
    #[error("the chat template refused the messages: {message}")]
    Refused {
        /// What it said.
        message: String,
    },
}
