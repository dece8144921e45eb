//! Grammars, as the engine sees them: which tokens may come next.
//!
//! A mask takes up to milliseconds. On a CPU the team's threads are busy with the forward pass until its end, and a
//! mask beside it would only hold up a worker that the others wait for: so a step's masks are filled between the pass
//! and the sampling, by all workers at once. A sequence lends its [`Grammar`] to the step's plan for that.

use std::time::{Duration, Instant};

use super::sequence::caught;

/// A mask that takes longer is worth a line in the log.
const SLOW: Duration = Duration::from_millis(50);

/// One bit a token; a set bit allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitMask {
    words: Vec<u64>,
}

impl BitMask {
    /// Nothing allowed, for `tokens` tokens.
    #[must_use]
    pub fn none(tokens: usize) -> BitMask {
        BitMask { words: vec![0; tokens.div_ceil(64)] }
    }

    /// Allows `id`; an id outside the vocabulary is ignored.
    pub fn allow(&mut self, id: u32) {
        if let Some(word) = self.words.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
        }
    }

    /// Whether `id` is allowed.
    #[must_use]
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// The words: bit `id % 64` of word `id / 64`.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The words, to write in bulk.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }
}

/// A grammar's matcher. `text` implements it; the engine only asks.
pub trait Constraint: Send {
    /// The token that was chosen.
    fn advance(&mut self, id: u32);
    /// Sets the bits of the tokens that may come next; the mask comes empty.
    fn fill(&mut self, mask: &mut BitMask);
    /// Whether the answer is complete: nothing can follow, not even the end token.
    fn is_complete(&self) -> bool;
    /// The same matcher for another answer to the same prompt.
    fn fork(&self) -> Box<dyn Constraint>;
}

/// The grammar of an answer and what it allows next.
pub struct Grammar {
    constraint: Box<dyn Constraint>,
    mask: BitMask,
    /// What it said when it panicked; it is not asked again.
    failed: Option<String>,
    slow: bool,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Follows `constraint` over a vocabulary of `tokens` tokens.
    #[must_use]
    pub fn new(constraint: Box<dyn Constraint>, tokens: usize) -> Grammar {
        Grammar { constraint, mask: BitMask::none(tokens), failed: None, slow: false }
    }

    /// Finds out what may come next. Whatever a grammar does in here is its own request's misfortune only.
    pub fn fill(&mut self) {
        if self.failed.is_some() {
            return;
        }
        self.mask.words.fill(0);
        let began = Instant::now();
        let (constraint, mask) = (&mut self.constraint, &mut self.mask);
        self.failed = caught(|| constraint.fill(mask)).err();
        let took = began.elapsed();
        if took > SLOW && !std::mem::replace(&mut self.slow, true) {
            tracing::warn!(
                ms = took.as_millis() as u64,
                "a grammar is slow: every request of the step waits for it"
            );
        }
    }

    /// What may come next, since the last [`Grammar::fill`]; nothing where that failed.
    #[must_use]
    pub fn mask(&self) -> Option<&BitMask> {
        self.failed.is_none().then_some(&self.mask)
    }

    /// Takes over the token that was chosen; whether the answer is complete with it.
    ///
    /// # Errors
    /// What the grammar said when it panicked.
    pub(super) fn advance(&mut self, id: u32) -> Result<bool, String> {
        caught(|| {
            self.constraint.advance(id);
            self.constraint.is_complete()
        })
    }

    /// The same for another answer to the same prompt.
    ///
    /// # Errors
    /// What the grammar said when it panicked.
    pub(super) fn fork(&self) -> Result<Grammar, String> {
        let constraint = caught(|| self.constraint.fork())?;
        Ok(Grammar { constraint, mask: self.mask.clone(), failed: None, slow: self.slow })
    }

    /// What it said when it panicked in the last step.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }
}
