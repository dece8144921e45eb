//! A grammar's matcher, as the engine asks it.

use crate::engine::{BitMask, Constraint};
use crate::text::GrammarMatcher;

/// Follows the grammar of one answer.
pub(super) struct Follow(pub(super) GrammarMatcher);

impl Constraint for Follow {
    fn advance(&mut self, id: u32) {
        self.0.advance(id);
    }

    fn fill(&mut self, mask: &mut BitMask) {
        self.0.fill(mask.words_mut());
    }

    fn is_complete(&self) -> bool {
        self.0.is_complete()
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Follow(self.0.fork()))
    }
}
