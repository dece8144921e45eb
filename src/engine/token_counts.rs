//! How often each token occurs in an answer, for penalties.

use std::collections::HashMap;

/// The distinct tokens of a prompt and its answer. Kept beside the sequence and updated token by token: counting the
/// whole answer again for each token would make a long answer quadratic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Times in the answer; 0 for a token of the prompt alone.
    counts: HashMap<u32, u32>,
}

impl TokenCounts {
    /// Before the first token of the answer.
    #[must_use]
    pub fn of_prompt(prompt: &[u32]) -> TokenCounts {
        TokenCounts { counts: prompt.iter().map(|id| (*id, 0)).collect() }
    }

    /// Counts a token of the answer.
    pub fn push(&mut self, id: u32) {
        *self.counts.entry(id).or_insert(0) += 1;
    }

    /// Every distinct token with its times in the answer, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.counts.iter().map(|(id, count)| (*id, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_known_and_only_the_answer_is_counted() {
        let mut counts = TokenCounts::of_prompt(&[5, 6, 5]);
        counts.push(6);
        counts.push(7);
        counts.push(7);
        let mut all: Vec<(u32, u32)> = counts.iter().collect();
        all.sort_unstable();
        assert_eq!(all, [(5, 0), (6, 1), (7, 2)]);
    }
}
