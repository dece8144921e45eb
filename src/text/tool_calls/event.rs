//! What there is in an answer: content and calls.

/// What was found in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolEvent {
    /// Text for the reader.
    Content(String),
    /// A call begins. Calls are numbered in their order.
    Begin {
        /// The function.
        name: String,
    },
    /// More of the call's arguments, which are JSON.
    Arguments(String),
    /// The call ends.
    End {
        /// The call as the model wrote it.
        raw: String,
        /// Whether its arguments are a JSON object: else it is none.
        valid: bool,
    },
}

/// A complete call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The function.
    pub name: String,
    /// Its arguments: a JSON object, as the model wrote it.
    pub arguments: String,
}
