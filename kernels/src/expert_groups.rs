//! Which rows each expert computes: a counting sort of (token, rank) pairs by expert.

use crate::error::{KernelError, Result, expect_below, expect_shape};

/// (token, rank) pairs sorted by expert, each expert's in token order.
#[derive(Debug)]
pub struct ExpertGroups {
    /// Where each expert's rows start, and the end: `[experts + 1]`.
    offsets: Vec<u32>,
    /// Per sorted row: the token.
    tokens: Vec<u32>,
    /// Per token and rank (`token * k + rank`): its sorted row.
    positions: Vec<u32>,
    k: usize,
    max_rows: usize,
}

impl ExpertGroups {
    /// Memory for up to `max_tokens` tokens of `k` experts each, of `experts`.
    pub fn new(max_tokens: usize, k: usize, experts: usize) -> ExpertGroups {
        let max_rows = max_tokens * k;
        ExpertGroups {
            offsets: Vec::with_capacity(experts + 1),
            tokens: Vec::with_capacity(max_rows),
            positions: Vec::with_capacity(max_rows),
            k,
            max_rows,
        }
    }

    /// All of `tokens` tokens on the one expert of a dense MLP.
    pub fn single(tokens: usize) -> ExpertGroups {
        let mut groups = ExpertGroups::new(tokens, 1, 1);
        groups.offsets.extend([0, tokens as u32]);
        groups.tokens.extend(0..tokens as u32);
        groups.positions.extend(0..tokens as u32);
        groups
    }

    /// Sorts the pairs of a step: `ids` `[T * k]` are each token's experts in rank order.
    pub fn align(&mut self, ids: &[u32], k: usize, experts: usize) -> Result<()> {
        const OP: &str = "ExpertGroups::align";
        expect_below(OP, "expert", ids, experts)?;
        if ids.len() > self.max_rows {
            return Err(KernelError::Index { op: OP, what: "rows", index: ids.len(), limit: self.max_rows + 1 });
        }
        expect_shape(OP, "ids modulo k", &[ids.len() % k.max(1)], &[0])?;
        self.k = k;
        self.offsets.clear();
        self.offsets.resize(experts + 1, 0);
        ids.iter().for_each(|&e| self.offsets[e as usize + 1] += 1);
        (0..experts).for_each(|e| self.offsets[e + 1] += self.offsets[e]);
        self.tokens.clear();
        self.tokens.resize(ids.len(), 0);
        self.positions.clear();
        self.positions.resize(ids.len(), 0);
        // Offsets serve as cursors and are shifted back by one expert afterwards.
        for (i, &e) in ids.iter().enumerate() {
            let row = self.offsets[e as usize];
            self.offsets[e as usize] += 1;
            self.tokens[row as usize] = (i / k) as u32;
            self.positions[i] = row;
        }
        self.offsets.copy_within(0..experts, 1);
        self.offsets[0] = 0;
        Ok(())
    }

    /// Sets the groups to `tokens` tokens on one expert, within the memory of [`ExpertGroups::new`].
    pub fn set_single(&mut self, tokens: usize) -> Result<()> {
        if tokens > self.max_rows {
            let limit = self.max_rows + 1;
            return Err(KernelError::Index { op: "ExpertGroups::set_single", what: "rows", index: tokens, limit });
        }
        self.k = 1;
        self.offsets.clear();
        self.offsets.extend([0, tokens as u32]);
        self.tokens.clear();
        self.tokens.extend(0..tokens as u32);
        self.positions.clear();
        self.positions.extend(0..tokens as u32);
        Ok(())
    }

    /// The number of experts.
    pub fn experts(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Sorted rows: tokens times experts a token.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Experts a token.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The sorted rows of expert `e`.
    pub(crate) fn of(&self, e: usize) -> std::ops::Range<usize> {
        self.offsets[e] as usize..self.offsets[e + 1] as usize
    }

    /// The token of each sorted row.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The sorted rows of a token, in rank order.
    pub(crate) fn positions(&self, token: usize) -> &[u32] {
        &self.positions[token * self.k..(token + 1) * self.k]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_sorted_by_expert_and_keep_their_token_order() {
        let mut groups = ExpertGroups::new(3, 2, 4);
        groups.align(&[2, 0, 0, 3, 2, 3], 2, 4).unwrap();
        assert_eq!(groups.offsets, [0, 2, 2, 4, 6]);
        assert_eq!(groups.tokens, [0, 1, 0, 2, 1, 2]);
        assert_eq!(groups.positions(1), [1, 4]);
        assert!(groups.align(&[4, 0], 2, 4).is_err());
        assert!(groups.align(&[0; 8], 2, 4).is_err());
    }
}
