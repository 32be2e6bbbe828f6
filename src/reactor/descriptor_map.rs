//! A map by the number of a descriptor.
//!
//! The kernel gives out the smallest number that is free, so most numbers are small, and are found in a vector without
//! hashing. But a program may choose a number, with dup2() or by inventing one: the vector ends where it would be large
//! for a single number, and a hash map has the others. Its memory follows how many there are.

use std::collections::HashMap;
use std::os::fd::RawFd;

/// Numbers from here on are in the hash map. The vector has at most 12 bytes for each number below: 768 KiB.
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
            Some(place) => *place,
            None => self.get_sparse(fd),
        }
    }

    #[inline(never)]
    fn get_sparse(&self, fd: RawFd) -> Option<T> {
        if self.sparse.is_empty() { None } else { self.sparse.get(&fd).copied() }
    }

    pub fn insert(&mut self, fd: RawFd, value: T) {
        // What is negative becomes large: it is no descriptor, and the hash map takes it as any other number.
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
            Some(place) => *place = None,
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
