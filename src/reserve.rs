//! The allocator of the extension: the system's, and a reserve of 64 slots for when that has no memory left.
//!
//! Rust ends the process where an allocation fails. What can grow large is asked for by `try_reserve()`, which answers with a
//! MemoryError. Small and short-lived blocks (the text of an error, the arguments of a call, a box) come from the reserve then, so
//! that the MemoryError can be made and reported.
//!
//! Blocks that stay, of which there is one for each transport or callback, would use up the reserve. They are asked for by
//! [`has_room`], which leaves half of it to the others.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a slot. A block takes a whole slot.
const SLOT: usize = 16 * 1024;
/// Words of 64 bits that say which slots are taken.
const WORDS: usize = 1;
const ALIGNMENT: usize = 64;
/// Slots for blocks that stay.
const FOR_STAYING: u32 = WORDS as u32 * 64 / 2;

#[repr(align(64))]
struct Slots(UnsafeCell<[u8; SLOT * WORDS * 64]>);

// SAFETY: a slot belongs to the block whose allocation has set its bit.
unsafe impl Sync for Slots {}

/// The system's allocator, with a reserve.
pub struct Allocator {
    slots: Slots,
    taken: [AtomicU64; WORDS],
}

impl Allocator {
    pub const fn new() -> Allocator {
        Allocator {
            slots: Slots(UnsafeCell::new([0; SLOT * WORDS * 64])),
            taken: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    /// A block of the reserve. Null if it is too large, or all slots are taken.
    #[cold]
    fn take(&self, layout: Layout) -> *mut u8 {
        if layout.size() > SLOT || layout.align() > ALIGNMENT {
            return std::ptr::null_mut();
        }
        for (index, word) in self.taken.iter().enumerate() {
            let mut taken = word.load(Ordering::Relaxed);
            while taken != u64::MAX {
                let bit = taken.trailing_ones();
                match word.compare_exchange_weak(
                    taken,
                    taken | 1 << bit,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        let slot = index * 64 + bit as usize;
                        return self.slots.0.get().cast::<u8>().wrapping_add(slot * SLOT);
                    }
                    Err(now) => taken = now,
                }
            }
        }
        std::ptr::null_mut()
    }

    /// Whether there is memory for a block of this size that stays.
    fn has_room(&self, size: usize) -> bool {
        let taken: u32 = self.taken.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
        taken < FOR_STAYING || is_in_system(size)
    }

    /// The number of a block's slot. None if the block is the system's.
    fn slot(&self, block: *mut u8) -> Option<usize> {
        let offset = block.addr().wrapping_sub(self.slots.0.get().addr());
        (offset < SLOT * WORDS * 64).then_some(offset / SLOT)
    }

    #[cold]
    fn give_back(&self, slot: usize) {
        self.taken[slot / 64].fetch_and(!(1 << (slot % 64)), Ordering::Release);
    }
}

// SAFETY: blocks are the system's, or slots that no other block has, large enough and aligned.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        let block = unsafe { System.alloc(layout) };
        if block.is_null() { self.take(layout) } else { block }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            return block;
        }
        let block = self.take(layout);
        if !block.is_null() {
            // SAFETY: the slot has room for the block.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match self.slot(block) {
            Some(slot) => self.give_back(slot),
            // SAFETY: as the caller says; the block is the system's.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if self.slot(block).is_none() {
            // SAFETY: as the caller says; the block is the system's.
            let moved = unsafe { System.realloc(block, layout, size) };
            if !moved.is_null() {
                return moved;
            }
        } else if size <= SLOT {
            return block;
        }
        // SAFETY: as the caller says; both blocks have room for the smaller of their sizes.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

/// Whether the system has a block of this size.
#[cold]
fn is_in_system(size: usize) -> bool {
    let Ok(layout) = Layout::from_size_align(size.max(1), align_of::<usize>()) else { return false };
    // SAFETY: the layout has a size; the block is given back unused.
    unsafe {
        // The compiler may leave out an allocation that is not used.
        let block = std::hint::black_box(System.alloc(layout));
        System.dealloc(block, layout);
        !block.is_null()
    }
}

/// Whether there is memory for a block of this size that stays. To be asked before each that is not one of a few.
pub fn has_room(size: usize) -> bool {
    crate::ALLOCATOR.has_room(size)
}

/// A box that stays. None if there is no memory for it.
pub fn try_box<T>(value: T) -> Option<Box<T>> {
    has_room(size_of::<T>()).then(|| Box::new(value))
}

/// Makes room for this many items in a queue that stays. False if there is no memory.
#[must_use]
pub fn try_grow<T>(queue: &mut VecDeque<T>, count: usize) -> bool {
    let (length, capacity) = (queue.len(), queue.capacity());
    capacity - length >= count
        || (has_room(size_of::<T>() * (length + count).max(2 * capacity)) && queue.try_reserve(count).is_ok())
}

/// Adds data to a vector. False if there is no memory.
#[must_use]
pub fn try_extend(vector: &mut Vec<u8>, data: &[u8]) -> bool {
    if vector.try_reserve(data.len()).is_err() {
        return false;
    }
    vector.extend_from_slice(data);
    true
}

/// A box of `size` zeroes. None if there is no memory for them.
pub fn zeroes(size: usize) -> Option<Box<[u8]>> {
    let layout = Layout::array::<u8>(size).ok().filter(|layout| layout.size() > 0)?;
    // SAFETY: the layout has a size.
    let block = unsafe { std::alloc::alloc_zeroed(layout) };
    // SAFETY: a new block of that layout, whose bytes are initialised.
    (!block.is_null()).then(|| unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(block, size)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_handed_out_once_and_again_when_they_are_given_back() {
        static ALLOCATOR: Allocator = Allocator::new();
        let allocator = &ALLOCATOR;
        let layout = Layout::from_size_align(SLOT, 8).unwrap();
        let mut blocks: Vec<_> = (0..WORDS * 64).map(|_| allocator.take(layout)).collect();
        assert!(allocator.take(layout).is_null());
        blocks.sort();
        blocks.dedup();
        assert_eq!(blocks.len(), WORDS * 64);
        // SAFETY: a block that was handed out.
        unsafe { allocator.dealloc(blocks[50], layout) };
        assert_eq!(allocator.take(layout), blocks[50]);
        assert!(allocator.take(Layout::from_size_align(SLOT + 1, 8).unwrap()).is_null());
    }

    #[test]
    fn half_of_the_slots_is_not_for_blocks_that_stay() {
        static ALLOCATOR: Allocator = Allocator::new();
        let allocator = &ALLOCATOR;
        let (layout, too_large) = (Layout::from_size_align(SLOT, 8).unwrap(), isize::MAX as usize / 2);
        for _ in 0..FOR_STAYING {
            assert!(allocator.has_room(too_large), "nothing is asked of the system while there are slots");
            assert!(!allocator.take(layout).is_null());
        }
        assert!(!allocator.has_room(too_large));
        assert!(allocator.has_room(64), "the system has memory");
    }

    #[test]
    fn a_slot_grows_into_the_systems_memory() {
        static ALLOCATOR: Allocator = Allocator::new();
        let allocator = &ALLOCATOR;
        let layout = Layout::from_size_align(4, 1).unwrap();
        let block = allocator.take(layout);
        // SAFETY: the blocks have room for what is written and read.
        unsafe {
            block.copy_from_nonoverlapping(b"data".as_ptr(), 4);
            assert_eq!(allocator.realloc(block, layout, SLOT), block);
            let layout = Layout::from_size_align(SLOT, 1).unwrap();
            let moved = allocator.realloc(block, layout, 2 * SLOT);
            assert!(allocator.slot(moved).is_none());
            assert_eq!(std::slice::from_raw_parts(moved, 4), b"data");
            allocator.dealloc(moved, Layout::from_size_align(2 * SLOT, 1).unwrap());
        }
        assert_eq!(allocator.taken[0].load(Ordering::Relaxed), 0);
    }
}
