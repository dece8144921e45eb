//! How families of models write calls.

/// A family's way to write calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`: Hermes, Qwen, SmolLM, and whatever says nothing else.
    Hermes,
    /// `[TOOL_CALLS] [{"name": .., "arguments": {..}}]`: Mistral up to its third tokenizer.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]{..}`: Mistral since.
    MistralArgs,
    /// `{"name": .., "parameters": {..}}`, perhaps after `<|python_tag|>`: Llama 3.1 and later.
    Llama,
}

impl ToolFormat {
    /// What the source of a chat template shows.
    #[must_use]
    pub fn detect(template: &str) -> ToolFormat {
        let has = |text: &str| template.contains(text);
        if has("[TOOL_CALLS]") {
            if has("[ARGS]") { ToolFormat::MistralArgs } else { ToolFormat::Mistral }
        } else if has("<tool_call>") {
            ToolFormat::Hermes
        } else if has("<|python_tag|>") || has("\"parameters\": dictionary of argument name") {
            ToolFormat::Llama
        } else {
            ToolFormat::Hermes
        }
    }

    /// By vLLM's names of its parsers.
    #[must_use]
    pub fn named(name: &str) -> Option<ToolFormat> {
        match name {
            "hermes" | "qwen" => Some(ToolFormat::Hermes),
            "mistral" => Some(ToolFormat::Mistral),
            "mistral_args" => Some(ToolFormat::MistralArgs),
            "llama3_json" | "llama4_json" => Some(ToolFormat::Llama),
            _ => None,
        }
    }

    /// What opens a call.
    #[must_use]
    pub fn mark(self) -> &'static str {
        match self {
            ToolFormat::Hermes => "<tool_call>",
            ToolFormat::Mistral | ToolFormat::MistralArgs => "[TOOL_CALLS]",
            ToolFormat::Llama => "<|python_tag|>",
        }
    }

    /// What closes a call, if anything does.
    pub(super) fn close(self) -> Option<&'static str> {
        (self == ToolFormat::Hermes).then_some("</tool_call>")
    }

    /// Whether an object without a mark may be a call.
    pub(super) fn bare(self) -> bool {
        self == ToolFormat::Llama
    }

    /// Whether a mark opens a list of calls, or a name before its arguments. Both are read for either kind.
    pub(super) fn lists(self) -> bool {
        matches!(self, ToolFormat::Mistral | ToolFormat::MistralArgs)
    }

    /// Whether ids of calls are nine letters and digits, as Mistral's templates insist.
    #[must_use]
    pub fn short_ids(self) -> bool {
        self.lists()
    }
}
