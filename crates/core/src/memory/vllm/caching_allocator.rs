//! PyTorch's caching allocator, replayed: tensors go into segments, and the device sees segments.
//!
//! `c10/cuda/CUDACachingAllocator.cpp`: sizes are multiples of 512 bytes; up to 1 MiB they share
//! segments of 2 MiB, below 10 MiB segments of 20 MiB, larger ones have a segment of their own,
//! rounded up to 2 MiB. A free block is split where enough is left, and joined to its neighbours when
//! it is freed. Segments stay until the cache is emptied.

const GRANULE: u64 = 512;
const SMALL: u64 = 1 << 20;
const SMALL_SEGMENT: u64 = 2 << 20;
const LARGE_SEGMENT: u64 = 20 << 20;
const OWN_SEGMENT_FROM: u64 = 10 << 20;
const SEGMENT_STEP: u64 = 2 << 20;
/// Room for the blocks of most models, so that it needn't grow.
const BLOCKS: usize = 2048;
/// A block that may not be split is used only where this much less would be wasted.
const MAX_WASTE: u64 = 20 << 20;

/// The kind of segment that a tensor goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentClass {
    /// Segments of 2 MiB.
    Small,
    /// Segments of 20 MiB.
    Shared,
    /// A segment of its own.
    Own,
}

/// Where a tensor of so many bytes goes.
pub fn segment_class(bytes: u64) -> SegmentClass {
    match bytes {
        bytes if bytes <= SMALL => SegmentClass::Small,
        bytes if bytes < OWN_SEGMENT_FROM => SegmentClass::Shared,
        _ => SegmentClass::Own,
    }
}

/// A tensor's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockId(u32);

/// No block: what is before the first of a segment and after its last.
const NONE: u32 = u32::MAX;

/// Kept small, as a start has thousands: what a replay takes is mostly their memory. One of no size is no longer
/// there.
#[derive(Clone, Copy, Debug)]
struct Block {
    size: u64,
    before: u32,
    after: u32,
    is_free: bool,
    is_small: bool,
}

/// Free blocks, the smallest first.
type FreeList = Vec<Free>;

/// A free block's size, and below it its number: one word compares faster than two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Free(u128);

impl Free {
    fn new(size: u64, id: u32) -> Self {
        Self(u128::from(size) << u32::BITS | u128::from(id))
    }

    fn size(self) -> u64 {
        (self.0 >> u32::BITS) as u64
    }

    fn id(self) -> u32 {
        self.0 as u32
    }
}

/// The allocator's state.
#[derive(Clone, Debug)]
pub struct Allocator {
    blocks: Vec<Block>,
    small: FreeList,
    large: FreeList,
    /// Bytes of all segments.
    pub reserved: u64,
    /// Bytes of all tensors.
    pub allocated: u64,
    /// The most that `allocated` has been.
    pub peak_allocated: u64,
    /// The most that `reserved` has been.
    pub peak_reserved: u64,
    /// Blocks from this size on are not split (`max_split_size_mb`).
    pub max_split: u64,
    /// What the device can give.
    pub limit: u64,
    /// The first segment that the device could not give.
    pub failed: Option<u64>,
}

impl Allocator {
    /// An empty allocator on a device that can give `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            blocks: Vec::with_capacity(BLOCKS),
            small: Vec::new(),
            large: Vec::new(),
            reserved: 0,
            allocated: 0,
            peak_allocated: 0,
            peak_reserved: 0,
            max_split: u64::MAX,
            limit,
            failed: None,
        }
    }

    fn free_list(&mut self, is_small: bool) -> &mut FreeList {
        if is_small { &mut self.small } else { &mut self.large }
    }

    fn block(&mut self, id: u32) -> &mut Block {
        &mut self.blocks[id as usize]
    }

    /// Memory for a tensor.
    pub fn allocate(&mut self, bytes: u64) -> BlockId {
        let size = bytes.max(1).checked_next_multiple_of(GRANULE).unwrap_or(u64::MAX);
        let is_small = size <= SMALL;
        let id = match self.best_fit(size, is_small) {
            Some(at) => self.take(at, size, is_small),
            None => {
                let id = self.new_segment(size);
                if let Some(tail) = self.split(id, size) {
                    self.enlist(tail);
                }
                id
            }
        };
        let block = self.block(id);
        block.is_free = false;
        let taken = block.size;
        self.allocated = self.allocated.saturating_add(taken);
        self.peak_allocated = self.peak_allocated.max(self.allocated);
        BlockId(id)
    }

    /// Where the smallest free block stands that may be used. A larger one may be used less.
    fn best_fit(&mut self, size: u64, is_small: bool) -> Option<usize> {
        let max_split = self.max_split;
        let list = self.free_list(is_small);
        let at = list.partition_point(|free| *free < Free::new(size, 0));
        let free = list.get(at)?.size();
        let is_too_large = match size < max_split {
            true => free >= max_split,
            false => free >= size.saturating_add(MAX_WASTE),
        };
        (!is_too_large).then_some(at)
    }

    /// Takes the block at a place of its list; what is left of it moves down to its own place.
    fn take(&mut self, at: usize, size: u64, is_small: bool) -> u32 {
        let id = self.free_list(is_small)[at].id();
        match self.split(id, size) {
            Some(tail) => {
                let free = Free::new(self.block(tail).size, tail);
                let list = self.free_list(is_small);
                let to = list[..at].partition_point(|other| *other < free);
                list.copy_within(to..at, to + 1);
                list[to] = free;
            }
            None => {
                self.free_list(is_small).remove(at);
            }
        }
        id
    }

    fn enlist(&mut self, id: u32) {
        let Block { size, is_small, .. } = *self.block(id);
        let list = self.free_list(is_small);
        let at = list.partition_point(|other| *other < Free::new(size, id));
        list.insert(at, Free::new(size, id));
    }

    fn new_segment(&mut self, size: u64) -> u32 {
        let segment = match segment_class(size) {
            SegmentClass::Small => SMALL_SEGMENT,
            SegmentClass::Shared => LARGE_SEGMENT,
            SegmentClass::Own => size.checked_next_multiple_of(SEGMENT_STEP).unwrap_or(u64::MAX),
        };
        if self.reserved.saturating_add(segment) > self.limit {
            // What is cached is given back before the device is said to be full.
            self.empty_cache();
            if self.reserved.saturating_add(segment) > self.limit {
                self.failed.get_or_insert(segment);
            }
        }
        self.reserved = self.reserved.saturating_add(segment);
        self.peak_reserved = self.peak_reserved.max(self.reserved);
        let is_small = size <= SMALL;
        self.push(Block { size: segment, before: NONE, after: NONE, is_free: true, is_small })
    }

    fn push(&mut self, block: Block) -> u32 {
        self.blocks.push(block);
        (self.blocks.len() - 1) as u32
    }

    /// Cuts a block to a size; gives the free rest, on no list yet.
    fn split(&mut self, id: u32, size: u64) -> Option<u32> {
        let block = *self.block(id);
        let rest = block.size - size;
        let is_split = match block.is_small {
            true => rest >= GRANULE,
            false => size < self.max_split && rest > SMALL,
        };
        is_split.then(|| {
            let tail = self.push(Block { size: rest, is_free: true, before: id, ..block });
            if block.after != NONE {
                self.block(block.after).before = tail;
            }
            let head = self.block(id);
            (head.after, head.size) = (tail, size);
            tail
        })
    }

    /// Gives a tensor's memory back to the cache.
    pub fn release(&mut self, BlockId(id): BlockId) {
        let mut block = *self.block(id);
        self.allocated = self.allocated.saturating_sub(block.size);
        let mut joined = None;
        if let Some(before) = self.free_neighbour(block.before) {
            joined = Some(Free::new(before.size, block.before));
            block.size += before.size;
            self.block(block.before).size = 0;
            block.before = before.before;
            if block.before != NONE {
                self.block(block.before).after = id;
            }
        }
        if let Some(after) = self.free_neighbour(block.after) {
            if let Some(before) = joined.replace(Free::new(after.size, block.after)) {
                self.unlist(before, block.is_small);
            }
            block.size += after.size;
            self.block(block.after).size = 0;
            block.after = after.after;
            if block.after != NONE {
                self.block(block.after).before = id;
            }
        }
        block.is_free = true;
        *self.block(id) = block;
        match joined {
            Some(smaller) => self.relist(smaller, Free::new(block.size, id), block.is_small),
            None => self.enlist(id),
        }
    }

    fn free_neighbour(&self, id: u32) -> Option<Block> {
        self.blocks.get(id as usize).copied().filter(|block| block.is_free)
    }

    fn unlist(&mut self, free: Free, is_small: bool) {
        let list = self.free_list(is_small);
        if let Ok(at) = list.binary_search(&free) {
            list.remove(at);
        }
    }

    /// Puts a block that has grown in the place of what it was.
    fn relist(&mut self, smaller: Free, larger: Free, is_small: bool) {
        let list = self.free_list(is_small);
        if let Ok(from) = list.binary_search(&smaller) {
            let passed = list[from + 1..].partition_point(|other| *other < larger);
            list.copy_within(from + 1..=from + passed, from);
            list[from + passed] = larger;
        }
    }

    /// Gives segments without tensors back to the device.
    pub fn empty_cache(&mut self) {
        let blocks = &self.blocks;
        let is_whole = |free: &Free| {
            let block = blocks[free.id() as usize];
            block.before == NONE && block.after == NONE
        };
        let whole = self.small.iter().chain(&self.large).filter(|free| is_whole(free));
        let whole: Vec<Free> = whole.copied().collect();
        self.small.retain(|free| !is_whole(free));
        self.large.retain(|free| !is_whole(free));
        for free in whole {
            self.reserved = self.reserved.saturating_sub(free.size());
            self.block(free.id()).size = 0;
        }
    }

    /// Sizes of the segments that are there.
    pub fn segments(&self) -> impl Iterator<Item = u64> {
        let first = self.blocks.iter().filter(|block| block.before == NONE && block.size > 0);
        first.map(|first| {
            let next = |block: &&Block| self.blocks.get(block.after as usize);
            std::iter::successors(Some(first), next).map(|block| block.size).sum()
        })
    }

    /// Keeps what is free within its segments from later tensors: they belong to a pool of their own.
    pub fn close_pool(&mut self) {
        self.small.clear();
        self.large.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn segments_are_what_the_device_sees() {
        for (tensors, reserved) in [
            (vec![1], 2 * MIB),
            (vec![MIB, MIB], 2 * MIB),
            (vec![MIB, MIB, 1], 4 * MIB),
            (vec![2 * MIB], 20 * MIB),
            (vec![9 * MIB, 9 * MIB], 20 * MIB),
            (vec![11 * MIB], 12 * MIB),
            (vec![11 * MIB, 11 * MIB + 1], 24 * MIB),
        ] {
            let mut allocator = Allocator::new(u64::MAX);
            for bytes in &tensors {
                allocator.allocate(*bytes);
            }
            assert_eq!(allocator.reserved, reserved, "{tensors:?}");
        }
    }

    #[test]
    fn freed_blocks_join_and_are_used_again() {
        let mut allocator = Allocator::new(u64::MAX);
        let [a, b, c] = [4 * MIB, 4 * MIB, 4 * MIB].map(|bytes| allocator.allocate(bytes));
        allocator.release(a);
        allocator.release(b);
        allocator.allocate(8 * MIB);
        assert_eq!(allocator.reserved, 20 * MIB, "two neighbours make room for eight");
        allocator.release(c);
        allocator.empty_cache();
        assert_eq!((allocator.reserved, allocator.allocated), (20 * MIB, 8 * MIB));
        assert_eq!(allocator.peak_allocated, 12 * MIB);
    }

    #[test]
    fn a_full_device_is_noticed_once_the_cache_is_empty() {
        let mut allocator = Allocator::new(40 * MIB);
        let cached = allocator.allocate(30 * MIB);
        allocator.release(cached);
        allocator.allocate(36 * MIB);
        assert_eq!((allocator.failed, allocator.reserved), (None, 36 * MIB));
        allocator.allocate(12 * MIB);
        assert_eq!(allocator.failed, Some(12 * MIB));
    }
}
