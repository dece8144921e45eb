//! `stream_options`.

use serde::Deserialize;

/// What a stream says beside its choices.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

impl StreamOptions {
    /// Whether a last chunk has the usage of the request.
    pub(super) fn include_usage(self) -> bool {
        self.include_usage.unwrap_or(false)
    }

    /// Whether every chunk has the usage of its choice so far, as vLLM does it: only where a last chunk is asked for.
    pub(super) fn continuous(self) -> bool {
        self.include_usage() && self.continuous_usage_stats.unwrap_or(false)
    }
}
