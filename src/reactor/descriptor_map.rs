//! A map by the number of a descriptor.
//!
//! The kernel gives out the smallest free number, so most numbers are small: a vector has them. A program can choose a larger
//! number with dup2(), or pass one that is not open: a hash map has those, so that memory does not grow with the number.

use std::collections::HashMap;
use std::os::fd::RawFd;

/// Numbers from here on are in the hash map. The vector has at most 12 bytes for each smaller number: 768 KiB.
const SPARSE: usize = 1 << 16;

pub struct DescriptorMap<T> {
    dense: Vec<Option<T>>,
    sparse: HashMap<RawFd, T>,
}

impl<T: Copy> Default for DescriptorMap<T> {
    fn default() -> Self {
        DescriptorMap { dense: Vec::new(), sparse: HashMap::new() }
    }
}

impl<T: Copy> DescriptorMap<T> {
    pub fn get(&self, fd: RawFd) -> Option<T> {
        match self.dense.get(fd as usize) {
            Some(value) => *value,
            None => self.get_sparse(fd),
        }
    }

    #[inline(never)]
    fn get_sparse(&self, fd: RawFd) -> Option<T> {
        if self.sparse.is_empty() { None } else { self.sparse.get(&fd).copied() }
    }

    /// Makes room for a number. False if there is no memory.
    pub fn reserve(&mut self, fd: RawFd) -> bool {
        let number = fd as usize;
        if number >= SPARSE {
            return self.sparse.try_reserve(1).is_ok();
        }
        number < self.dense.len() || self.dense.try_reserve(number + 1 - self.dense.len()).is_ok()
    }

    pub fn insert(&mut self, fd: RawFd, value: T) {
        // A negative number becomes a large one.
        let number = fd as usize;
        if number >= SPARSE {
            self.sparse.insert(fd, value);
            return;
        }
        if number >= self.dense.len() {
            self.dense.resize(number + 1, None);
        }
        self.dense[number] = Some(value);
    }

    pub fn remove(&mut self, fd: RawFd) {
        match self.dense.get_mut(fd as usize) {
            Some(value) => *value = None,
            None => _ = self.sparse.remove(&fd),
        }
    }

    pub fn clear(&mut self) {
        self.dense.clear();
        self.sparse.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: [RawFd; 8] =
        [0, 1, 1023, SPARSE as RawFd - 1, SPARSE as RawFd, 50_000_000, RawFd::MAX, -1];

    #[test]
    fn each_number_has_its_value() {
        let mut map = DescriptorMap::default();
        for fd in NUMBERS {
            assert_eq!(map.get(fd), None);
            map.insert(fd, fd);
        }
        for fd in NUMBERS {
            assert_eq!(map.get(fd), Some(fd));
            map.insert(fd, 7);
            assert_eq!(map.get(fd), Some(7));
            map.remove(fd);
            map.remove(fd);
            assert_eq!(map.get(fd), None);
        }
    }

    #[test]
    fn memory_does_not_follow_the_number() {
        let mut map = DescriptorMap::default();
        for fd in NUMBERS {
            map.insert(fd, fd);
            map.remove(fd);
        }
        assert!(map.dense.capacity() <= SPARSE);
        assert!(map.sparse.capacity() <= 16);
    }
}
