//! `stream_options`.

use serde::Deserialize;

use super::super::error::ApiError;

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

    /// Refuses what is asked of an endpoint whose chunks do not count.
    pub(super) fn refuse_continuous(self) -> Result<(), ApiError> {
        match self.continuous_usage_stats {
            Some(true) => Err(ApiError::invalid(
                "stream_options",
                "continuous_usage_stats is not supported here: leave it out",
            )),
            _ => Ok(()),
        }
    }
}
