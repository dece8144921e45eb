//! Speculation by prompt lookup: what followed the last time is guessed to follow again.
//!
//! Answers over documents, code and tables quote what they were given. The guesses cost no model: the longest earlier
//! match of the last tokens is found through chains of equal pairs (as LZ77 finds its matches), which grow with the
//! sequence, so a token costs the same however long the context is.
//!
//! When to guess is a ledger in units of one plain step. A further row of a step costs
//! [`SpeculationConfig::row_cost`]; an accepted guess saves a step. The credit starts at [`ALLOWANCE`], grows by
//! [`PROBING`] a token and is never overdrawn: text that cannot be guessed is slowed down by no more than that.

use std::collections::HashMap;

/// When and how far to guess.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpeculationConfig {
    /// Most guesses of a sequence in a step.
    pub max_drafts: usize,
    /// Tokens that must match, at least 2.
    pub min_match: usize,
    /// Guesses are added only to steps of fewer rows, up to this many: so few rows wait for memory, not arithmetic.
    pub max_rows: usize,
    /// What a further row costs, as a part of a step of one row.
    pub row_cost: f32,
}

impl Default for SpeculationConfig {
    fn default() -> SpeculationConfig {
        SpeculationConfig { max_drafts: 8, min_match: 2, max_rows: 12, row_cost: 0.16 }
    }
}

/// Steps that a sequence may lose before its guesses have earned any.
const ALLOWANCE: f32 = 0.4;

/// Steps that each token may spend on finding out whether guessing pays again.
const PROBING: f32 = 0.02;

/// Credit beyond this many steps is forgotten, so that text that turns cannot lose what came before.
const MOST_CREDIT: f32 = 1.5;

/// How much of what was seen of acceptance is kept with each guess.
const MEMORY: f32 = 0.9;

/// Earlier places of a pair that are looked at, latest first.
const CANDIDATES: usize = 16;

/// Longest match that is told from a longer one.
const LONGEST: usize = 16;

const NONE: u32 = u32::MAX;

/// What one sequence knows about its past.
#[derive(Debug)]
pub(super) struct Drafter {
    config: SpeculationConfig,
    /// Where the token after the latest occurrence of a pair stands.
    latest: HashMap<(u32, u32), u32>,
    /// The same of the occurrence before, by position of the token after the pair; `NONE` where there is none.
    earlier: Vec<u32>,
    credit: f32,
    /// Accepted guesses and guesses that were decided, both fading.
    accepted: f32,
    decided: f32,
}

impl Drafter {
    pub(super) fn new(config: SpeculationConfig) -> Drafter {
        Drafter {
            config,
            latest: HashMap::new(),
            earlier: Vec::new(),
            credit: ALLOWANCE,
            accepted: 1.0,
            decided: 2.0,
        }
    }

    /// Guesses at most `room` tokens after `tokens`, which only ever grow from call to call.
    pub(super) fn draft(&mut self, tokens: &[u32], room: usize) -> Vec<u32> {
        self.index(tokens);
        let most = room.min(self.config.max_drafts).min(self.wanted());
        let Some(from) = (most > 0).then(|| self.longest_match(tokens)).flatten() else { return Vec::new() };
        // A match that runs into the end of the text repeats: its own guesses follow.
        let period = tokens.len() - from;
        let mut drafts = Vec::with_capacity(most);
        for at in 0..most {
            drafts.push(if at < period { tokens[from + at] } else { drafts[at - period] });
        }
        drafts
    }

    /// Whether it would guess, did it find a match.
    pub(super) fn may_guess(&self) -> bool {
        self.wanted() > 0
    }

    /// What came of the last guesses; every step of the sequence says so, also without guesses.
    pub(super) fn verified(&mut self, drafted: usize, accepted: usize) {
        let earned = PROBING * (accepted + 1) as f32 + accepted as f32;
        self.credit = (self.credit + earned - drafted as f32 * self.config.row_cost).min(MOST_CREDIT);
        if drafted > 0 {
            let decided = accepted + usize::from(accepted < drafted);
            self.accepted = self.accepted * MEMORY + accepted as f32;
            self.decided = self.decided * MEMORY + decided as f32;
        }
    }

    /// The number of guesses that yields the most tokens for its cost, within the credit.
    fn wanted(&self) -> usize {
        let rate = self.accepted / self.decided;
        let (mut best, mut best_yield) = (1, 0.0);
        let (mut tokens, mut chance) = (1.0, 1.0);
        for drafts in 1..=self.config.max_drafts {
            chance *= rate;
            tokens += chance;
            let found = tokens / (1.0 + drafts as f32 * self.config.row_cost);
            if found > best_yield {
                (best, best_yield) = (drafts, found);
            }
        }
        // With rounding in mind: a credit of three rows buys three.
        let affordable = (self.credit / self.config.row_cost.max(1e-3) + 1e-3) as usize;
        best.min(affordable)
    }

    /// Knows every pair but the last one, which has no successor yet.
    fn index(&mut self, tokens: &[u32]) {
        for next in self.earlier.len()..tokens.len() {
            let before = if next < 2 {
                None
            } else {
                self.latest.insert((tokens[next - 2], tokens[next - 1]), next as u32)
            };
            self.earlier.push(before.unwrap_or(NONE));
        }
    }

    /// Where the token after the longest of the latest matches stands; the latest of equals.
    fn longest_match(&self, tokens: &[u32]) -> Option<usize> {
        let len = tokens.len();
        if len < 2 {
            return None;
        }
        let (mut at, mut best) = (*self.latest.get(&(tokens[len - 2], tokens[len - 1]))?, None);
        let mut best_length = self.config.min_match.max(2) - 1;
        for _ in 0..CANDIDATES {
            let end = at as usize;
            let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
            let length = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
            if length > best_length {
                (best, best_length) = (Some(end), length);
            }
            at = self.earlier[end];
            if at == NONE || best_length == LONGEST {
                break;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drafter() -> Drafter {
        Drafter { credit: 100.0, accepted: 1.0, decided: 1.0, ..Drafter::new(SpeculationConfig::default()) }
    }

    #[test]
    fn the_longest_of_the_latest_matches_is_continued() {
        let text = [7, 1, 2, 3, 9, 1, 2, 3, 8, 5, 2, 3, 4, 7, 1, 2, 3];
        assert_eq!(drafter().draft(&text, 3), [9, 1, 2]);
        assert_eq!(drafter().draft(&[1, 2, 8, 1, 2, 9, 1, 2], 1), [9], "the latest of equals");
        assert_eq!(drafter().draft(&[1, 2, 3, 4], 4), [] as [u32; 0]);
        assert_eq!(drafter().draft(&[1], 4), [] as [u32; 0]);
        assert_eq!(drafter().draft(&[1, 2, 1, 2], 0), [] as [u32; 0]);
    }

    #[test]
    fn a_repetition_is_continued_past_the_end_of_the_text() {
        assert_eq!(drafter().draft(&[5, 1, 2, 3, 1, 2, 3], 7), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(drafter().draft(&[4, 4, 4], 3), [4, 4, 4]);
    }

    #[test]
    fn a_match_below_the_least_length_is_none() {
        let config = SpeculationConfig { min_match: 3, ..SpeculationConfig::default() };
        let mut drafter = Drafter { credit: 9.0, ..Drafter::new(config) };
        assert_eq!(drafter.draft(&[1, 2, 8, 3, 1, 2], 1), [] as [u32; 0]);
        assert_eq!(drafter.draft(&[1, 2, 8, 3, 1, 2, 8], 1), [3]);
    }

    #[test]
    fn accepted_guesses_make_more_and_refused_ones_fewer() {
        let mut drafter = Drafter::new(SpeculationConfig::default());
        let first = drafter.wanted();
        assert!((1..=4).contains(&first), "{first}");
        for _ in 0..20 {
            let drafted = drafter.wanted();
            drafter.verified(drafted, drafted);
        }
        assert_eq!(drafter.wanted(), 8);
        let mut plain = 0;
        for _ in 0..100 {
            let drafted = drafter.wanted();
            plain += usize::from(drafted == 0);
            drafter.verified(drafted, 0);
        }
        assert!(plain > 70, "{plain} of 100 steps without a guess");
        assert!(plain < 100 - 10, "it tries again now and then");
    }

    proptest! {
        /// However a text treats the guesses, it loses no more than the allowance and a fiftieth of its steps.
        #[test]
        fn guesses_never_cost_more_than_they_may(outcomes in proptest::collection::vec(0_usize..4, 1..400)) {
            let config = SpeculationConfig::default();
            let mut drafter = Drafter::new(config);
            let (mut spent, mut tokens) = (0.0_f32, 0);
            for outcome in outcomes {
                let drafted = drafter.wanted();
                let accepted = if outcome == 3 { drafted } else { outcome.min(drafted) / 2 };
                spent += 1.0 + drafted as f32 * config.row_cost;
                tokens += accepted + 1;
                drafter.verified(drafted, accepted);
                prop_assert!(spent <= tokens as f32 * (1.0 + PROBING) + ALLOWANCE + 0.01);
            }
        }

        /// Growing token by token gives what a search over the whole text gives.
        #[test]
        fn the_index_grows_with_the_text(text in proptest::collection::vec(0_u32..4, 0..120)) {
            let mut grown = drafter();
            for end in 0..=text.len() {
                let found = grown.draft(&text[..end], 1);
                prop_assert_eq!(&found, &drafter().draft(&text[..end], 1));
                let occurs = end >= 2 && text[..end - 1].windows(2).any(|pair| pair == &text[end - 2..end]);
                prop_assert_eq!(found.len(), usize::from(occurs));
            }
        }
    }
}
