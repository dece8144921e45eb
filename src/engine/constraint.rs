//! Grammars, as the engine sees them: which tokens may come next.

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
