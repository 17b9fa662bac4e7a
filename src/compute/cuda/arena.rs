//! Memory for a run: taken from the device once, handed out in pieces.
//!
//! A piece is returned when it is dropped and may be another's at once: all work is on one stream, so what the old owner asked for is
//! done before what the new one asks for.

use super::runtime::{ALIGNMENT, Address, CudaError, Runtime};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether an arena may ask the device for more than it took at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// What was taken is all; more is [`CudaError::ArenaFull`].
    Never,
    /// By blocks of at least this many bytes.
    By(usize),
}

/// Blocks of a device's memory and what of them is free.
#[derive(Debug)]
pub struct Arena {
    runtime: Arc<dyn Runtime>,
    growth: Growth,
    blocks: Mutex<Vec<Block>>,
    peak: AtomicUsize,
}

#[derive(Debug)]
struct Block {
    at: Address,
    free: FreeList,
}

impl Arena {
    /// Takes `bytes` of the device at once; none is possible where the arena may grow.
    pub fn new(runtime: Arc<dyn Runtime>, bytes: usize, growth: Growth) -> Result<Arc<Arena>, CudaError> {
        let mut blocks = Vec::new();
        if bytes > 0 {
            let size = bytes.next_multiple_of(ALIGNMENT);
            blocks.push(Block { at: runtime.allocate(size)?, free: FreeList::new(size) });
        }
        Ok(Arc::new(Arena { runtime, growth, blocks: Mutex::new(blocks), peak: AtomicUsize::new(0) }))
    }

    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    /// Bytes in use, and bytes of all blocks.
    pub fn usage(&self) -> (usize, usize) {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        (used(&blocks), blocks.iter().map(|block| block.free.size).sum())
    }

    /// Bytes that are free; none where it may grow.
    pub fn spare(&self) -> Option<usize> {
        let (used, size) = self.usage();
        (self.growth == Growth::Never).then_some(size - used)
    }

    /// The most bytes that were in use at a time.
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// A piece of `bytes`, from the smallest free place that holds it; what it holds is not known. Nothing is a piece, too.
    pub fn take(self: &Arc<Arena>, bytes: usize) -> Result<Piece, CudaError> {
        if bytes == 0 {
            return Ok(Piece::of_nothing(self));
        }
        let piece = |at, bytes| Piece { arena: Arc::clone(self), at, bytes, of_host: false };
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = blocks.iter_mut().filter_map(|block| Some((block.free.best(bytes)?, block)));
        if let Some(((_, at), block)) = fits.min_by_key(|((len, _), _)| *len) {
            block.free.take(at, bytes);
            let place = block.at.offset(at);
            self.note(&blocks);
            return Ok(piece(place, bytes));
        }
        let Growth::By(step) = self.growth else {
            let size: usize = blocks.iter().map(|block| block.free.size).sum();
            return Err(CudaError::ArenaFull {
                device: self.runtime.info().to_string(),
                wanted: bytes,
                size,
                taken: used(&blocks),
                largest: blocks.iter().map(|block| block.free.longest()).max().unwrap_or(0),
            });
        };
        let size = bytes.max(step.next_multiple_of(ALIGNMENT));
        let mut block = Block { at: self.runtime.allocate(size)?, free: FreeList::new(size) };
        block.free.take(0, bytes);
        let at = block.at;
        blocks.push(block);
        self.note(&blocks);
        Ok(piece(at, bytes))
    }

    /// A piece of the host's memory, of zeros, which is not the arena's but goes back to the host when it is dropped.
    pub fn take_of_host(self: &Arc<Arena>, bytes: usize) -> Result<Piece, CudaError> {
        if bytes == 0 {
            return Ok(Piece::of_nothing(self));
        }
        let at = self.runtime.allocate_host(bytes)?;
        Ok(Piece { arena: Arc::clone(self), at, bytes, of_host: true })
    }

    /// Forgets the peak: what is in use now is the most.
    pub fn forget_peak(&self) {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        self.peak.store(used(&blocks), Ordering::Relaxed);
    }

    fn note(&self, blocks: &[Block]) {
        self.peak.fetch_max(used(blocks), Ordering::Relaxed);
    }
}

/// Bytes in use.
fn used(blocks: &[Block]) -> usize {
    blocks.iter().map(|block| block.free.size - block.free.bytes()).sum()
}

impl Drop for Arena {
    fn drop(&mut self) {
        for block in self.blocks.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.runtime.free(block.at);
        }
    }
}

/// A piece of an arena, or of the host's memory beside it, until it is dropped.
#[derive(Debug)]
pub struct Piece {
    arena: Arc<Arena>,
    at: Address,
    bytes: usize,
    of_host: bool,
}

impl Piece {
    pub(super) fn of_nothing(arena: &Arc<Arena>) -> Piece {
        Piece { arena: Arc::clone(arena), at: Address::default(), bytes: 0, of_host: false }
    }

    /// Aligned to [`ALIGNMENT`]; zero of nothing.
    pub fn address(&self) -> Address {
        self.at
    }

    /// All that it has, which may be a little more than was asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        if self.of_host {
            return self.arena.runtime.free_host(self.at);
        }
        let mut blocks = self.arena.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = |block: &&mut Block| (block.at.0..block.at.0 + block.free.size as u64).contains(&self.at.0);
        if let Some(block) = blocks.iter_mut().find(inside) {
            block.free.give((self.at.0 - block.at.0) as usize, self.bytes);
        }
    }
}

/// What of a block is free: beginnings and lengths, no two of which touch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FreeList {
    size: usize,
    free: BTreeMap<usize, usize>,
}

impl FreeList {
    fn new(size: usize) -> FreeList {
        FreeList { size, free: BTreeMap::from([(0, size)]) }
    }

    fn bytes(&self) -> usize {
        self.free.values().sum()
    }

    fn longest(&self) -> usize {
        self.free.values().copied().max().unwrap_or(0)
    }

    /// The smallest free place of `bytes` or more, the first of several: its length and where it begins.
    fn best(&self, bytes: usize) -> Option<(usize, usize)> {
        self.free.iter().filter(|(_, len)| **len >= bytes).map(|(at, len)| (*len, *at)).min()
    }

    /// Takes the first `bytes` of the free place at `at`.
    fn take(&mut self, at: usize, bytes: usize) {
        if let Some(len) = self.free.remove(&at)
            && len > bytes
        {
            self.free.insert(at + bytes, len - bytes);
        }
    }

    /// Returns a piece, as one with free neighbours.
    fn give(&mut self, at: usize, bytes: usize) {
        let (mut from, mut end) = (at, at + bytes);
        if let Some((before, len)) = self.free.range(..at).next_back().map(|(at, len)| (*at, *len))
            && before + len == at
        {
            from = before;
        }
        if let Some(len) = self.free.remove(&end) {
            end += len;
        }
        self.free.insert(from, end - from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::cuda::emulator::{Emulator, Order};
    use proptest::prelude::*;

    fn arena(bytes: usize, growth: Growth) -> Arc<Arena> {
        Arena::new(Arc::new(Emulator::new(Order::Forward, 1 << 20)), bytes, growth).unwrap()
    }

    /// No two pieces overlap, all are aligned, and what is in use is their sum.
    fn whole(arena: &Arena, pieces: &[Piece]) {
        let mut ends: Vec<(u64, usize)> = pieces.iter().map(|p| (p.at.0, p.bytes)).filter(|(_, b)| *b > 0).collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|w| w[0].0 + w[0].1 as u64 <= w[1].0), "{ends:?}");
        assert!(ends.iter().all(|(at, bytes)| at % ALIGNMENT as u64 == 0 && bytes % ALIGNMENT == 0));
        assert_eq!(arena.usage().0, ends.iter().map(|(_, bytes)| bytes).sum::<usize>());
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_of_them_come_back(
            grows: bool,
            asked in prop::collection::vec((0usize..5000, any::<prop::sample::Index>(), any::<bool>()), 1..120),
        ) {
            let arena = arena(1 << 15, if grows { Growth::By(1 << 13) } else { Growth::Never });
            let mut pieces = Vec::new();
            for (bytes, which, give) in asked {
                match arena.take(bytes) {
                    Ok(piece) => {
                        prop_assert!(piece.bytes() >= bytes && piece.bytes() < bytes + ALIGNMENT);
                        pieces.push(piece);
                    }
                    Err(CudaError::ArenaFull { wanted, size, taken, largest, .. }) => {
                        prop_assert!(!grows && wanted > largest && largest <= size - taken);
                    }
                    Err(error) => prop_assert!(false, "{}", error),
                }
                if give && !pieces.is_empty() {
                    pieces.swap_remove(which.index(pieces.len()));
                }
                whole(&arena, &pieces);
            }
            drop(pieces);
            // As it was at first: one free place a block.
            let size = arena.usage().1;
            prop_assert_eq!(arena.usage(), (0, size));
            let blocks = arena.blocks.lock().unwrap();
            prop_assert!(blocks.iter().all(|block| block.free == FreeList::new(block.free.size)));
        }
    }

    #[test]
    fn the_smallest_place_that_holds_a_piece_is_taken() {
        let arena = arena(1 << 14, Growth::Never);
        let sizes = [512, 256, 1024, 256, 512, 256];
        let mut pieces: Vec<Option<Piece>> = sizes.iter().map(|bytes| Some(arena.take(*bytes).unwrap())).collect();
        let places: Vec<Address> = pieces.iter().flatten().map(Piece::address).collect();
        [0, 2, 4].into_iter().for_each(|gap| pieces[gap] = None);
        assert_eq!(arena.take(500).unwrap().address(), places[0], "the first of two of a size");
        assert_eq!(arena.take(513).unwrap().address(), places[2]);
        pieces[1] = None;
        assert_eq!(arena.take(1792).unwrap().address(), places[0], "neighbours became one");
    }

    #[test]
    fn the_hosts_memory_is_not_the_arenas() {
        let arena = arena(1 << 14, Growth::Never);
        let _small = arena.take(256).unwrap();
        let free = arena.runtime().memory().unwrap().free;
        let aside = arena.take_of_host(1000).unwrap();
        assert_eq!((arena.usage(), arena.peak(), aside.bytes()), ((256, 1 << 14), 256, 1000));
        let mut bytes = [1u8; 1000];
        arena.runtime().download(aside.address(), &mut bytes).unwrap();
        assert_eq!(bytes, [0; 1000]);
        drop(aside);
        assert_eq!(arena.runtime().memory().unwrap().free, free);
        drop(arena.take(4096).unwrap());
        assert_eq!(arena.peak(), 256 + 4096);
        arena.forget_peak();
        assert_eq!(arena.peak(), 256);
    }

    #[test]
    fn an_arena_gives_its_memory_back_to_the_device() {
        let runtime = Arc::new(Emulator::new(Order::Forward, 1 << 20));
        let arena = Arena::new(Arc::clone(&runtime) as Arc<dyn Runtime>, 1000, Growth::By(1 << 16)).unwrap();
        let large = arena.take(1 << 17).unwrap();
        assert_eq!((arena.usage(), large.bytes()), ((1 << 17, 1024 + (1 << 17)), 1 << 17));
        assert!(matches!(arena.take(1 << 20), Err(CudaError::OutOfMemory { .. })));
        drop((large, arena));
        assert_eq!(runtime.memory().unwrap().free, 1 << 20);
    }
}
