//! The engine's limits.

use super::in_range;
use crate::config::{ConfigError, RawSettings};
use crate::engine::SpeculationConfig;

/// The engine's limits.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Upper bound of prompt plus answer in tokens, if set.
    pub max_model_len: Option<usize>,
    /// KV cache in bytes, if set.
    pub kv_cache_bytes: Option<usize>,
    /// Sequences in one step.
    pub max_num_seqs: usize,
    /// Tokens in one step.
    pub max_num_batched_tokens: usize,
    /// Requests that wait.
    pub max_waiting: usize,
    /// Reuse equal prompt beginnings.
    pub prefix_cache: bool,
    /// Guess tokens, and how far; `None` is off.
    pub speculation: Option<SpeculationConfig>,
}

impl EngineSettings {
    pub(super) fn resolve(raw: &RawSettings) -> Result<EngineSettings, ConfigError> {
        let max_num_seqs = in_range("max-num-seqs", raw.max_num_seqs.unwrap_or(64), 1, 4096, "1 to 4096")?;
        let batched = in_range(
            "max-num-batched-tokens",
            raw.max_num_batched_tokens.unwrap_or(512),
            16,
            65_536,
            "16 to 65536",
        )?;
        if batched < max_num_seqs {
            return Err(ConfigError::OutOfRange {
                flag: "max-num-batched-tokens",
                given: batched.to_string(),
                expected: "at least --max-num-seqs, so that every running sequence can take a step",
            });
        }
        Ok(EngineSettings {
            max_model_len: raw.max_model_len,
            kv_cache_bytes: kv_cache_bytes(raw)?,
            max_num_seqs,
            max_num_batched_tokens: batched,
            max_waiting: in_range(
                "max-waiting",
                raw.max_waiting.unwrap_or(1024),
                1,
                1 << 20,
                "1 to 1048576",
            )?,
            prefix_cache: raw.prefix_cache.unwrap_or(true),
            speculation: raw.speculation.unwrap_or_default().config(),
        })
    }
}

fn kv_cache_bytes(raw: &RawSettings) -> Result<Option<usize>, ConfigError> {
    match (raw.kv_cache_bytes, raw.kv_cache_mb) {
        (Some(_), Some(_)) => Err(ConfigError::Both { one: "kv-cache-bytes", other: "kv-cache-mb" }),
        (Some(bytes), None) => {
            let bytes = usize::try_from(bytes.0).unwrap_or(usize::MAX);
            in_range("kv-cache-bytes", bytes, 1, 1 << 44, "1 to 17592186044416").map(Some)
        }
        (None, Some(mb)) => in_range("kv-cache-mb", mb, 1, 1 << 24, "1 to 16777216").map(|mb| Some(mb << 20)),
        (None, None) => Ok(None),
    }
}
