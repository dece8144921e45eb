//! Which rows go to which expert.

use crate::error::{Result, at_least, inside, same};

/// Rows sorted by expert: the token–expert alignment of a step.
///
/// A worked example: 2 tokens, 2 experts each, of 3 experts; ids `[2, 0 | 0, 1]`. The flat (token, rank) pairs sort to
/// expert 0: pairs 1, 2; expert 1: pair 3; expert 2: pair 0. So `offsets = [0, 2, 3, 4]`, `tokens = [0, 1, 1, 0]`
/// (pair / k), and `position` of pairs 0..4 is `[3, 0, 1, 2]`.
#[derive(Debug)]
pub struct ExpertGroups {
    k: usize,
    offsets: Vec<u32>,
    tokens: Vec<u32>,
    position: Vec<u32>,
    max_pairs: usize,
    rows: usize,
    dense: bool,
}

impl ExpertGroups {
    /// Room for `max_tokens` tokens with `k` experts each.
    #[must_use]
    pub fn new(max_tokens: usize, k: usize, experts: usize) -> ExpertGroups {
        let max_pairs = max_tokens * k;
        ExpertGroups {
            k,
            offsets: vec![0; experts + 1],
            tokens: vec![0; max_pairs],
            position: vec![0; max_pairs],
            max_pairs,
            rows: 0,
            dense: false,
        }
    }

    /// All `tokens` rows to one expert, in order: a dense MLP.
    #[must_use]
    pub fn single(tokens: usize) -> ExpertGroups {
        let offsets = vec![0, tokens as u32];
        ExpertGroups {
            k: 1,
            offsets,
            tokens: vec![],
            position: vec![],
            max_pairs: tokens,
            rows: tokens,
            dense: true,
        }
    }

    /// Sets the number of rows of a [`ExpertGroups::single`] grouping.
    ///
    /// # Errors
    /// [`crate::KernelError`] for a grouping by experts, or when there is no room.
    pub fn set_single(&mut self, tokens: usize) -> Result<()> {
        same("expert_groups", "experts of a single grouping", usize::from(self.dense), 1)?;
        at_least("expert_groups", "room for pairs", self.max_pairs, tokens)?;
        self.rows = tokens;
        self.offsets[1] = tokens as u32;
        Ok(())
    }

    /// Memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.offsets.len() + self.tokens.len() + self.position.len()) * size_of::<u32>()
    }

    /// Sorts `ids` `[tokens * k]` by expert, stable in the order of tokens.
    ///
    /// # Errors
    /// [`crate::KernelError`] when there are too many ids, no whole number of tokens, or one is no expert; the
    /// grouping is then what it was.
    pub fn align(&mut self, ids: &[u32]) -> Result<()> {
        same("expert_groups", "single groupings", usize::from(self.dense), 0)?;
        at_least("expert_groups", "room for pairs", self.max_pairs, ids.len())?;
        same("expert_groups", "ids of the last token", ids.len() % self.k.max(1), 0)?;
        let experts = self.offsets.len() - 1;
        for id in ids {
            inside("expert_groups", "expert", *id as usize, experts)?;
        }
        self.offsets.fill(0);
        for id in ids {
            self.offsets[*id as usize + 1] += 1;
        }
        for expert in 0..experts {
            self.offsets[expert + 1] += self.offsets[expert];
        }
        // `offsets[e]` serves as the cursor of expert e and ends at the start of e + 1; shifted back below.
        for (pair, id) in ids.iter().enumerate() {
            let at = self.offsets[*id as usize];
            self.offsets[*id as usize] += 1;
            self.tokens[at as usize] = (pair / self.k) as u32;
            self.position[pair] = at;
        }
        self.offsets.copy_within(0..experts, 1);
        self.offsets[0] = 0;
        self.rows = ids.len();
        Ok(())
    }

    /// Sorted rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Experts a token.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    pub(crate) fn experts(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The sorted rows of `expert`.
    pub(crate) fn range(&self, expert: usize) -> std::ops::Range<usize> {
        self.offsets[expert] as usize..self.offsets[expert + 1] as usize
    }

    /// The token of each sorted row; `None` for the identity.
    pub(crate) fn tokens(&self) -> Option<&[u32]> {
        (!self.dense).then(|| &self.tokens[..self.rows])
    }

    /// The sorted row of each (token, rank) pair.
    pub(crate) fn position(&self) -> &[u32] {
        &self.position[..if self.dense { 0 } else { self.rows }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example_holds() {
        let mut groups = ExpertGroups::new(4, 2, 3);
        groups.align(&[2, 0, 0, 1]).expect("aligns");
        assert_eq!(groups.offsets, [0, 2, 3, 4]);
        assert_eq!(groups.tokens(), Some(&[0, 1, 1, 0][..]));
        assert_eq!(groups.position(), [3, 0, 1, 2]);
    }

    #[test]
    fn a_refused_alignment_leaves_the_grouping_as_it_was() {
        let mut groups = ExpertGroups::new(4, 2, 3);
        groups.align(&[2, 0, 0, 1]).expect("aligns");
        assert!(groups.align(&[0, 3]).is_err());
        assert!(groups.align(&[0]).is_err());
        assert_eq!(groups.offsets, [0, 2, 3, 4]);
        assert_eq!(groups.tokens(), Some(&[0, 1, 1, 0][..]));
    }

    #[test]
    fn single_and_routed_groupings_do_not_mix() {
        assert!(ExpertGroups::new(4, 2, 3).set_single(2).is_err());
        let mut single = ExpertGroups::single(4);
        assert!(single.set_single(5).is_err());
        assert!(single.align(&[0, 0]).is_err());
        single.set_single(2).expect("fits");
        assert_eq!((single.rows(), single.range(0)), (2, 0..2));
    }
}
