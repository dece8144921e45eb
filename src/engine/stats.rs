//! What the engine says about itself.

/// Counters since the start and gauges of the last step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EngineStats {
    /// Sequences in the running batch.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// KV blocks with references.
    pub blocks_used: usize,
    /// All KV blocks.
    pub blocks_total: usize,
    /// Prompt tokens computed or found in the cache.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Sequences that were put back to make room.
    pub preemptions: u64,
    /// Tokens that were guessed.
    pub drafted_tokens: u64,
    /// Guesses that turned out right.
    pub accepted_tokens: u64,
    /// Steps.
    pub steps: u64,
    /// Steps that were launched before the one before them was over.
    pub steps_ahead: u64,
    /// Steps that failed.
    pub failed_steps: u64,
    /// Requests that ended by a stop.
    pub finished_stop: u64,
    /// Requests that ended by length.
    pub finished_length: u64,
    /// Requests whose caller went away or whose deadline passed.
    pub finished_abort: u64,
}
