//! Several answers to one prompt: computed once, its blocks shared.

use super::super::sequence::Sequence;
use super::{BLOCK, Scheduler};

impl Scheduler {
    /// Lets an answer begin beside running sequence `parent`, whose prompt it shares and whose prompt was just
    /// computed. Without a place or a block for it, it waits and finds the prompt in the prefix cache.
    pub(in super::super) fn join(&mut self, parent: usize, mut sibling: Sequence) {
        if self.share_blocks(parent, &mut sibling) {
            self.admissions += 1;
            sibling.admitted = self.admissions;
            self.running.push(sibling);
        } else {
            self.free(&mut sibling);
            self.enqueue(sibling);
        }
    }

    /// Full blocks of the prompt by reference, a partial last one as a copy.
    fn share_blocks(&mut self, parent: usize, sibling: &mut Sequence) -> bool {
        let (full, rest) = (sibling.prompt_len / BLOCK, sibling.prompt_len % BLOCK);
        let customer = &self.groups[&sibling.group].customer;
        if !self.may_take_place(customer) || (rest > 0 && self.pool.available() == 0) {
            return false;
        }
        let parent = &self.running[parent];
        for block in &parent.blocks[..full] {
            self.pool.share(*block);
            sibling.blocks.push(*block);
        }
        if let Some(own) = (rest > 0).then(|| self.pool.allocate()).flatten() {
            self.copies.push((parent.blocks[full], own));
            sibling.blocks.push(own);
        }
        sibling.published = parent.published.min(full);
        true
    }
}
