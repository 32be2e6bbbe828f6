//! Memory that others may write to meanwhile, such as a bytearray in another thread. It is passed to system calls and not looked into.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Memory to be read from.
#[derive(Clone, Copy)]
pub struct Memory<'a> {
    pointer: *const u8,
    length: usize,
    lender: PhantomData<&'a ()>,
}

impl<'a> Memory<'a> {
    /// # Safety
    /// The memory is there for 'a.
    pub unsafe fn new(pointer: *const u8, length: usize) -> Memory<'a> {
        Memory { pointer, length, lender: PhantomData }
    }

    /// All but the first `count` bytes, of which there must be so many.
    pub fn skip(self, count: usize) -> Memory<'a> {
        assert!(count <= self.length);
        Memory { pointer: self.pointer.wrapping_add(count), length: self.length - count, lender: PhantomData }
    }

    pub fn as_ptr(self) -> *const u8 {
        self.pointer
    }

    pub fn length(self) -> usize {
        self.length
    }
}

impl<'a> From<&'a [u8]> for Memory<'a> {
    fn from(data: &'a [u8]) -> Memory<'a> {
        Memory { pointer: data.as_ptr(), length: data.len(), lender: PhantomData }
    }
}

/// Memory to be written to.
pub struct MemoryMut<'a> {
    pointer: *mut u8,
    length: usize,
    lender: PhantomData<&'a mut ()>,
}

impl<'a> MemoryMut<'a> {
    /// # Safety
    /// The memory is there, and may be written to, for 'a.
    pub unsafe fn new(pointer: *mut u8, length: usize) -> MemoryMut<'a> {
        MemoryMut { pointer, length, lender: PhantomData }
    }

    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.pointer
    }

    pub fn length(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first `length` bytes, if it has as many.
    pub fn limited(self, length: usize) -> MemoryMut<'a> {
        MemoryMut { length: self.length.min(length), ..self }
    }

    /// All but the first `count` bytes, of which there must be so many, for a while.
    pub fn rest(&mut self, count: usize) -> MemoryMut<'_> {
        // SAFETY: it is lent for longer, and to nobody else meanwhile.
        unsafe { MemoryMut::new(self.pointer, self.length) }.skip(count)
    }

    /// Copies bytes to its beginning, for which there must be room.
    pub fn write(&mut self, data: &[u8]) {
        assert!(data.len() <= self.length);
        // SAFETY: there is room. It may be written to, and nobody else has a reference to it.
        unsafe { std::ptr::copy(data.as_ptr(), self.pointer, data.len()) };
    }

    /// All but the first `count` bytes, of which there must be so many.
    pub fn skip(self, count: usize) -> MemoryMut<'a> {
        assert!(count <= self.length);
        MemoryMut {
            pointer: self.pointer.wrapping_add(count),
            length: self.length - count,
            lender: PhantomData,
        }
    }
}

impl<'a> From<&'a mut [u8]> for MemoryMut<'a> {
    fn from(buffer: &'a mut [u8]) -> MemoryMut<'a> {
        MemoryMut { pointer: buffer.as_mut_ptr(), length: buffer.len(), lender: PhantomData }
    }
}

impl<'a> From<&'a mut [MaybeUninit<u8>]> for MemoryMut<'a> {
    fn from(buffer: &'a mut [MaybeUninit<u8>]) -> MemoryMut<'a> {
        MemoryMut { pointer: buffer.as_mut_ptr().cast(), length: buffer.len(), lender: PhantomData }
    }
}
