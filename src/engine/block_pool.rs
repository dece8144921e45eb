//! KV blocks: reference counts, reuse by content, eviction of the least recently used.
//!
//! - A block is *used* (reference count above 0), *cached* (count 0, content known by its hash) or *free* (count 0).
//! - `allocate` takes a free block, else evicts the cached block that was released longest ago. O(1).
//! - `acquire` finds a cached or used block by its hash and takes a reference. O(1).
//! - A hash covers the parent block's hash, the 16 tokens and a seed made of adapter and customer salt, so equal
//!   hashes mean equal prefixes of one customer. It is cut from SHA-256: a collision would hand one prompt's keys to
//!   another, and tokens are chosen by strangers.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

/// Identity of a block's content and all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 16]);

impl BlockHash {
    /// The parent of a sequence's first block.
    #[must_use]
    pub fn root(salt: &str) -> BlockHash {
        BlockHash::of(&[b"tarn block\0", salt.as_bytes()])
    }

    /// The block with `tokens` after `self`.
    #[must_use]
    pub fn child(&self, tokens: &[u32]) -> BlockHash {
        let mut bytes = Vec::with_capacity(tokens.len() * 4);
        tokens.iter().for_each(|token| bytes.extend(token.to_le_bytes()));
        BlockHash::of(&[&self.0, &bytes])
    }

    fn of(parts: &[&[u8]]) -> BlockHash {
        let mut hasher = Sha256::new();
        parts.iter().for_each(|part| hasher.update(part));
        let mut cut = [0; 16];
        cut.copy_from_slice(&hasher.finalize()[..16]);
        BlockHash(cut)
    }
}

/// Whether a known block counts as available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// Without references: taking it leaves one block fewer to allocate.
    Cached,
    /// With references: taking it costs nothing.
    Used,
}

/// End of the list.
const NIL: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Block {
    references: u32,
    hash: Option<BlockHash>,
    /// Neighbours in the list of unreferenced blocks.
    previous: u32,
    next: u32,
}

/// The blocks of a KV cache.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    by_hash: HashMap<BlockHash, u32>,
    /// Unreferenced blocks: evicted from the head; free ones are put before it, cached ones at the tail.
    head: u32,
    tail: u32,
    unreferenced: usize,
}

impl BlockPool {
    /// `blocks` free blocks.
    #[must_use]
    pub fn new(blocks: usize) -> BlockPool {
        let mut pool =
            BlockPool { blocks: Vec::new(), by_hash: HashMap::new(), head: NIL, tail: NIL, unreferenced: 0 };
        pool.blocks = vec![Block { references: 0, hash: None, previous: NIL, next: NIL }; blocks];
        for block in 0..blocks as u32 {
            pool.push_back(block);
        }
        pool
    }

    /// All blocks.
    #[must_use]
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that can be allocated, cached ones included.
    #[must_use]
    pub fn available(&self) -> usize {
        self.unreferenced
    }

    /// Blocks with references.
    #[must_use]
    pub fn used(&self) -> usize {
        self.blocks.len() - self.unreferenced
    }

    /// A block without content, with one reference.
    pub fn allocate(&mut self) -> Option<u32> {
        let block = self.head;
        if block == NIL {
            return None;
        }
        self.unlink(block);
        let entry = &mut self.blocks[block as usize];
        entry.references = 1;
        if let Some(hash) = entry.hash.take() {
            self.by_hash.remove(&hash);
        }
        Some(block)
    }

    /// Whether the block with this content has references; `None` when no block has it. Takes nothing.
    #[must_use]
    pub fn find(&self, hash: &BlockHash) -> Option<BlockState> {
        let block = *self.by_hash.get(hash)?;
        Some(if self.blocks[block as usize].references == 0 { BlockState::Cached } else { BlockState::Used })
    }

    /// Takes a reference to the block with this content.
    pub fn acquire(&mut self, hash: &BlockHash) -> Option<u32> {
        let block = *self.by_hash.get(hash)?;
        if self.blocks[block as usize].references == 0 {
            self.unlink(block);
        }
        self.blocks[block as usize].references += 1;
        Some(block)
    }

    /// Takes another reference to a used block.
    pub fn share(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        debug_assert!(entry.references > 0, "block {block} is shared, but nobody holds it");
        entry.references += 1;
    }

    /// Says what a used, full block holds. A block with the same content that is there already stays the known one.
    pub fn publish(&mut self, block: u32, hash: BlockHash) {
        if self.blocks[block as usize].hash.is_none() && !self.by_hash.contains_key(&hash) {
            self.by_hash.insert(hash, block);
            self.blocks[block as usize].hash = Some(hash);
        }
    }

    /// Gives a reference back.
    pub fn release(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        debug_assert!(entry.references > 0, "block {block} was released twice");
        entry.references = entry.references.saturating_sub(1);
        if entry.references == 0 {
            if entry.hash.is_some() { self.push_back(block) } else { self.push_front(block) }
        }
    }

    /// Whether free + cached + used == total, the list is whole and the index points at what it says.
    ///
    /// # Errors
    /// What is broken.
    pub fn check_integrity(&self) -> Result<(), String> {
        let (mut at, mut previous, mut listed) = (self.head, NIL, 0);
        while at != NIL {
            let block = &self.blocks[at as usize];
            if block.references != 0 || block.previous != previous || listed > self.blocks.len() {
                return Err(format!("block {at} in the list of unreferenced blocks: {block:?}"));
            }
            (previous, at, listed) = (at, block.next, listed + 1);
        }
        let unreferenced = self.blocks.iter().filter(|block| block.references == 0).count();
        if previous != self.tail || listed != self.unreferenced || listed != unreferenced {
            return Err(format!(
                "{listed} listed, {} counted, {unreferenced} unreferenced",
                self.unreferenced
            ));
        }
        for (hash, block) in &self.by_hash {
            if self.blocks[*block as usize].hash != Some(*hash) {
                return Err(format!("the index names block {block} for content that it does not have"));
            }
        }
        let hashed = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        if hashed != self.by_hash.len() {
            return Err(format!("{hashed} blocks with content, {} in the index", self.by_hash.len()));
        }
        Ok(())
    }

    fn unlink(&mut self, block: u32) {
        let Block { previous, next, .. } = self.blocks[block as usize];
        if previous == NIL {
            self.head = next
        } else {
            self.blocks[previous as usize].next = next
        }
        if next == NIL {
            self.tail = previous
        } else {
            self.blocks[next as usize].previous = previous
        }
        self.unreferenced -= 1;
    }

    fn push_back(&mut self, block: u32) {
        let tail = std::mem::replace(&mut self.tail, block);
        (self.blocks[block as usize].previous, self.blocks[block as usize].next) = (tail, NIL);
        if tail == NIL {
            self.head = block
        } else {
            self.blocks[tail as usize].next = block
        }
        self.unreferenced += 1;
    }

    fn push_front(&mut self, block: u32) {
        let head = std::mem::replace(&mut self.head, block);
        (self.blocks[block as usize].previous, self.blocks[block as usize].next) = (NIL, head);
        if head == NIL {
            self.tail = block
        } else {
            self.blocks[head as usize].previous = block
        }
        self.unreferenced += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_block_is_found_by_content_until_it_is_evicted() {
        let mut pool = BlockPool::new(2);
        let hash = BlockHash::root("a").child(&[1; 16]);
        let first = pool.allocate().expect("free");
        pool.publish(first, hash);
        pool.release(first);
        assert_eq!(pool.find(&hash), Some(BlockState::Cached));
        assert_eq!(pool.acquire(&hash), Some(first));
        assert_eq!(pool.find(&hash), Some(BlockState::Used));
        pool.release(first);
        let other = pool.allocate().expect("the free block goes first");
        assert_ne!(other, first);
        assert_eq!(pool.allocate(), Some(first));
        assert_eq!(pool.acquire(&hash), None);
        assert_eq!(pool.allocate(), None);
        pool.check_integrity().expect("whole");
    }

    #[test]
    fn salts_keep_equal_prompts_apart() {
        let tokens = [7; 16];
        assert_ne!(BlockHash::root("a").child(&tokens), BlockHash::root("b").child(&tokens));
        assert_ne!(BlockHash::root("a").child(&tokens), BlockHash::root("a").child(&tokens).child(&tokens));
    }

    proptest::proptest! {
        #[test]
        fn any_order_of_calls_keeps_the_pool_whole(calls in proptest::collection::vec((0_u8..4, 0_u32..6), 0..200)) {
            let mut pool = BlockPool::new(5);
            let mut held: Vec<u32> = Vec::new();
            for (call, key) in calls {
                let hash = BlockHash::root("p").child(&[key]);
                match call {
                    0 => held.extend(pool.allocate()),
                    1 => held.extend(pool.acquire(&hash)),
                    2 => if let Some(block) = held.last() { pool.publish(*block, hash) },
                    _ => if let Some(block) = held.pop() { pool.release(block) },
                }
                proptest::prop_assert_eq!(pool.check_integrity(), Ok(()));
            }
            held.drain(..).for_each(|block| pool.release(block));
            proptest::prop_assert_eq!(pool.used(), 0);
        }
    }
}
