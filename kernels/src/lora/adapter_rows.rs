//! Which rows of a batch have which adapter.

use std::ops::Range;

use super::NO_ADAPTER;
use super::low_rank::Entry;
use crate::buf::{Buf, DType};
use crate::error::{Result, at_least, inside, same};
use crate::expert_groups::ExpertGroups;

/// Rows that share a low-rank update.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    pub(super) adapter: u32,
    pub(super) expert: u32,
    /// Its positions: rows of the scratch.
    pub(super) start: u32,
    pub(super) end: u32,
}

/// Where a row's `x · Aᵀ` is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) group: u32,
    pub(super) position: u32,
}

const NOWHERE: Place = Place { group: NO_ADAPTER, position: 0 };

/// Which rows of a batch have which adapter, and scratch for their `x · Aᵀ`; sized once.
#[derive(Debug)]
pub struct AdapterRows {
    max_rows: usize,
    pub(super) rows: usize,
    pub(super) positions: usize,
    pub(super) groups: Vec<Group>,
    pub(super) entries: Vec<Entry>,
    /// Of each row of the output.
    pub(super) places: Vec<Place>,
    /// The output row of each position.
    pub(super) outputs: Vec<u32>,
    /// The token of each position.
    pub(super) tokens: Vec<u32>,
    /// Rows of each adapter of one expert; then where its next row goes.
    counts: Vec<u32>,
    /// First task of each group.
    pub(super) tasks: Vec<u32>,
    pub(super) shrunk: Buf,
}

impl AdapterRows {
    /// Scratch for `max_rows` rows whose updates have up to `width` ranks together.
    ///
    /// # Errors
    /// [`crate::KernelError::OutOfMemory`].
    pub fn new(max_rows: usize, width: usize) -> Result<AdapterRows> {
        Ok(AdapterRows {
            max_rows,
            rows: 0,
            positions: 0,
            groups: Vec::with_capacity(max_rows),
            entries: Vec::with_capacity(max_rows),
            places: vec![NOWHERE; max_rows],
            outputs: vec![0; max_rows],
            tokens: vec![0; max_rows],
            counts: vec![0; max_rows],
            tasks: Vec::with_capacity(max_rows),
            shrunk: Buf::zeros(DType::F32, &[max_rows, width])?,
        })
    }

    /// Memory in bytes of scratch for one row whose updates have up to `width` ranks together.
    #[must_use]
    pub fn row_bytes(width: usize) -> usize {
        let lists = size_of::<Group>() + size_of::<Entry>() + size_of::<Place>() + 4 * size_of::<u32>();
        lists + width * size_of::<f32>()
    }

    /// Memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.groups.capacity() * size_of::<Group>()
            + self.entries.capacity() * size_of::<Entry>()
            + self.places.len() * size_of::<Place>()
            + (self.outputs.len() + self.tokens.len() + self.counts.len() + self.tasks.capacity())
                * size_of::<u32>()
            + self.shrunk.bytes().len()
    }

    /// Groups the rows of a batch by the adapter of each, `of`, below `adapters` or [`NO_ADAPTER`].
    ///
    /// # Errors
    /// [`crate::KernelError`] when there are too many, or one does not exist.
    pub fn group(&mut self, of: &[u32], adapters: usize) -> Result<()> {
        self.begin(of.len(), of, adapters)?;
        self.section(0, 0..of.len(), of, |row| row, adapters);
        Ok(())
    }

    /// Groups the sorted rows of `groups` by expert and by the adapter of their token.
    ///
    /// # Errors
    /// As [`AdapterRows::group`].
    pub fn group_experts(&mut self, of: &[u32], adapters: usize, groups: &ExpertGroups) -> Result<()> {
        same("lora", "tokens", of.len() * groups.k(), groups.rows())?;
        self.begin(groups.rows(), of, adapters)?;
        for expert in 0..groups.experts() {
            let token = |row: usize| groups.tokens().map_or(row, |tokens| tokens[row] as usize);
            self.section(expert, groups.range(expert), of, token, adapters);
        }
        Ok(())
    }

    fn begin(&mut self, rows: usize, of: &[u32], adapters: usize) -> Result<()> {
        at_least("lora", "room for rows", self.max_rows, rows)?;
        at_least("lora", "room for adapters", self.max_rows, adapters)?;
        for adapter in of.iter().filter(|adapter| **adapter != NO_ADAPTER) {
            inside("lora", "adapter", *adapter as usize, adapters)?;
        }
        (self.rows, self.positions) = (rows, 0);
        self.groups.clear();
        self.places[..rows].fill(NOWHERE);
        Ok(())
    }

    /// Appends the groups of `rows`, which one expert has.
    fn section(
        &mut self,
        expert: usize,
        rows: Range<usize>,
        of: &[u32],
        token: impl Fn(usize) -> usize,
        adapters: usize,
    ) {
        let counts = &mut self.counts[..adapters];
        counts.fill(0);
        for row in rows.clone() {
            if let Some(count) = counts.get_mut(of[token(row)] as usize) {
                *count += 1;
            }
        }
        for (adapter, count) in counts.iter_mut().enumerate() {
            if *count == 0 {
                continue;
            }
            let start = self.positions as u32;
            self.positions += *count as usize;
            // From here on the count is the group.
            *count = self.groups.len() as u32;
            self.groups.push(Group { adapter: adapter as u32, expert: expert as u32, start, end: start });
        }
        for row in rows {
            let token = token(row);
            let Some(group) = counts.get(of[token] as usize) else { continue };
            let at = self.groups[*group as usize].end;
            self.groups[*group as usize].end += 1;
            self.places[row] = Place { group: *group, position: at };
            self.outputs[at as usize] = row as u32;
            self.tokens[at as usize] = token as u32;
        }
    }
}
