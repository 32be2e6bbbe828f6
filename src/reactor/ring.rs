//! A ring of the last records of what a loop did.
//!
//! It does not know what a record says: [`Record`] has words of 64 bits. One thread pushes; any thread copies, also meanwhile.
//!
//! Invariant: `written` is raised when the words of a record are there. A reader copies what is written, and then leaves out what may
//! have been overwritten by then: by the records that are written, and by one that is not yet.

use super::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence};

/// Words of a record.
const WORDS: usize = 4;
/// Bytes of a record.
pub const SIZE: usize = WORDS * 8;

pub type Record = [u64; WORDS];

pub struct Ring {
    /// A power of two.
    slots: Box<[[AtomicU64; WORDS]]>,
    /// How many records are written.
    written: AtomicU64,
    /// Records before this number are not copied.
    kept_from: AtomicU64,
}

/// Records that follow each other.
pub struct Copied {
    /// The number of the first, counted from 0: how many were lost before it.
    pub first: u64,
    /// Their words, in the processor's order of bytes.
    pub bytes: Vec<u8>,
}

impl Ring {
    /// A ring of as many slots as fit into this many bytes, a power of two; it keeps one record less. None without memory for it.
    pub fn new(bytes: usize) -> Option<Ring> {
        let count = (bytes / SIZE).max(1);
        let count = if count.is_power_of_two() { count } else { count.next_power_of_two() / 2 };
        let mut slots = Vec::new();
        slots.try_reserve_exact(count).ok()?;
        slots.resize_with(count, Default::default);
        Some(Ring { slots: slots.into(), written: AtomicU64::new(0), kept_from: AtomicU64::new(0) })
    }

    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Called by one thread at a time.
    #[inline(always)]
    pub fn push(&self, record: Record) {
        let number = self.written.load(Relaxed);
        // A reader that sees a new word must see that the record before is written.
        fence(Release);
        let slot = &self.slots[number as usize & (self.slots.len() - 1)];
        for (place, word) in slot.iter().zip(record) {
            place.store(word, Relaxed);
        }
        self.written.store(number + 1, Release);
    }

    /// The last records. None without memory for them.
    pub fn copy(&self) -> Option<Copied> {
        let end = self.written.load(Acquire);
        let capacity = self.slots.len() as u64;
        let from = end.saturating_sub(capacity).max(self.kept_from.load(Relaxed)).min(end);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact((end - from) as usize * SIZE).ok()?;
        for number in from..end {
            let slot = &self.slots[number as usize & (self.slots.len() - 1)];
            for word in slot {
                bytes.extend_from_slice(&word.load(Relaxed).to_ne_bytes());
            }
        }
        // `written` must not be read before the words.
        fence(Acquire);
        let begun = self.written.load(Relaxed) + 1;
        let first = begun.saturating_sub(capacity).clamp(from, end);
        bytes.drain(..(first - from) as usize * SIZE);
        Some(Copied { first, bytes })
    }

    /// How many records have been pushed.
    pub fn count(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Leaves the records so far out of copies. Called by the thread that pushes.
    pub fn forget(&self) {
        self.kept_from.store(self.written.load(Relaxed), Relaxed);
    }
}

#[cfg(test)]
impl Copied {
    pub fn records(&self) -> Vec<Record> {
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
        let record = |bytes: &[u8]| std::array::from_fn(|index| word(&bytes[8 * index..8 * index + 8]));
        self.bytes.chunks_exact(SIZE).map(record).collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn numbered(number: u64) -> Record {
        [number, !number, number ^ 0x5555, number.wrapping_mul(3)]
    }

    #[test]
    fn the_last_records_are_kept_and_the_others_counted() {
        let ring = Ring::new(8 * SIZE + 7).unwrap();
        assert_eq!(ring.capacity(), 8);
        assert_eq!(Ring::new(0).unwrap().capacity(), 1);
        assert_eq!(Ring::new(15 * SIZE).unwrap().capacity(), 8, "no more memory than was asked for");
        for number in 0..5 {
            ring.push(numbered(number));
        }
        let copied = ring.copy().unwrap();
        assert_eq!((copied.first, copied.records().len()), (0, 5));
        for number in 5..21 {
            ring.push(numbered(number));
        }
        let copied = ring.copy().unwrap();
        assert_eq!(copied.first, 14);
        assert_eq!(copied.records(), (14..21).map(numbered).collect::<Vec<_>>());
        ring.forget();
        assert!(ring.copy().unwrap().bytes.is_empty());
        ring.push(numbered(21));
        let copied = ring.copy().unwrap();
        assert_eq!((copied.first, copied.records()), (21, vec![numbered(21)]));
    }

    #[test]
    fn what_is_copied_while_records_are_written_is_whole_and_in_order() {
        let ring = Ring::new(64 * SIZE).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..2_000_000 {
                    ring.push(numbered(number));
                }
                over.store(true, Relaxed);
            });
            let mut seen = 0;
            while !over.load(Relaxed) {
                let copied = ring.copy().unwrap();
                for (record, number) in copied.records().iter().zip(copied.first..) {
                    assert_eq!(*record, numbered(number));
                    seen = number;
                }
            }
            assert!(seen > 0);
        });
        let copied = ring.copy().unwrap();
        assert_eq!((copied.first, copied.records().len()), (2_000_000 - 63, 63));
    }
}
