//! A grammar in the middle of an answer.

use llguidance::Matcher;
use llguidance::api::StopReason;

/// Follows one answer through a grammar.
pub struct GrammarMatcher {
    matcher: Matcher,
    bytes: usize,
}

impl std::fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMatcher").field("stop", &self.matcher.stop_reason()).finish_non_exhaustive()
    }
}

impl GrammarMatcher {
    pub(super) fn new(matcher: Matcher, bytes: usize) -> GrammarMatcher {
        GrammarMatcher { matcher, bytes }
    }

    /// Bytes of memory that it took when it was compiled, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the token that was chosen. One that the grammar does not admit leaves nothing that could follow.
    pub fn advance(&mut self, id: u32) {
        if self.matcher.is_stopped() {
            return;
        }
        if let Err(error) = self.matcher.consume_token(id) {
            tracing::warn!(id, %error, "a token left its grammar");
        }
    }

    /// Sets bit `id % 64` of word `id / 64` for every token that may come next: none once the grammar failed, only
    /// the model's end tokens once it is complete. The words come zeroed.
    pub fn fill(&mut self, words: &mut [u64]) {
        if self.failed() {
            return;
        }
        match self.matcher.compute_mask_or_eos() {
            Ok(mask) => {
                for (word, halves) in words.iter_mut().zip(mask.as_slice().chunks(2)) {
                    let high = halves.get(1).copied().unwrap_or(0);
                    *word |= u64::from(halves[0]) | u64::from(high) << 32;
                }
            }
            Err(error) => tracing::warn!(%error, "a grammar admits nothing more"),
        }
    }

    /// Whether the answer is complete: no text can follow.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.failed()
    }

    /// Whether the grammar was left, or is beyond the limits.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.matcher.is_error()
            || !matches!(
                self.matcher.stop_reason(),
                StopReason::NotStopped | StopReason::NoExtension | StopReason::EndOfSentence
            )
    }

    /// The same place in the same grammar, for another answer; they share no state, so workers fill both at once.
    #[must_use]
    pub fn fork(&self) -> GrammarMatcher {
        GrammarMatcher { matcher: self.matcher.deep_clone(), bytes: self.bytes }
    }
}
