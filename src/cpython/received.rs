//! Bytes objects to receive into, used again once the pool has the only reference.
//!
//! A bytes object of more than 512 bytes costs a call of malloc and one of free, some 500 instructions, a large one page
//! faults besides, and what is received is mostly forgotten at once: parsed, or sent on. So the last objects that were
//! handed out are kept, and one that has become ours alone again is filled anew. Its memory may be larger than its size,
//! but not by much.

use std::collections::VecDeque;
use std::mem::MaybeUninit;

use pyo3::ffi;
use pyo3::prelude::*;

use super::object::Object;

/// The largest number of objects kept.
const KEPT: usize = 256;
/// The largest number of bytes of memory kept.
const KEPT_BYTES: usize = 4 * 1024 * 1024;

struct Lent {
    object: Object,
    capacity: usize,
}

/// The objects that were handed out last, oldest first.
#[derive(Default)]
pub struct BytesPool {
    lent: VecDeque<Lent>,
    bytes: usize,
}

impl BytesPool {
    /// An object with room for at least `size` bytes, without another reference, if there is one to be used again.
    #[inline(always)]
    pub fn reuse(&mut self, size: usize) -> Option<UninitBytes> {
        if let Some(oldest) = self.lent.front() {
            let is_ours = oldest.object.is_unique();
            let fits = oldest.capacity >= size && oldest.capacity <= 2 * size;
            if is_ours || self.lent.len() >= KEPT || self.bytes >= KEPT_BYTES {
                let Some(Lent { object, capacity }) = self.lent.pop_front() else {
                    unreachable!("it was there")
                };
                self.bytes -= capacity;
                if is_ours && fits {
                    return Some(UninitBytes { object, capacity });
                }
            }
        }
        None
    }

    /// The object with its first `length` bytes as its content.
    ///
    /// # Safety
    /// They have been written.
    #[inline(always)]
    pub unsafe fn freeze(&mut self, uninit: UninitBytes, length: usize) -> Object {
        let UninitBytes { object, capacity } = uninit;
        assert!(length <= capacity);
        // SAFETY: the object is an instance of bytes without another reference; its memory has room for its capacity and
        // a null byte. Its hash is of an earlier content.
        unsafe {
            let bytes = object.as_ptr().cast::<ffi::PyBytesObject>();
            (*bytes).ob_base.ob_size = length as ffi::Py_ssize_t;
            #[allow(deprecated, reason = "programs are not to read it; it is there, and has to be right")]
            {
                (*bytes).ob_shash = -1;
            }
            *(&raw mut (*bytes).ob_sval).cast::<u8>().add(length) = 0;
        }
        self.bytes += capacity;
        self.lent.push_back(Lent { object: object.clone(), capacity });
        object
    }

    /// Keeps an object that was not needed for the next time.
    pub fn recycle(&mut self, uninit: UninitBytes) {
        self.bytes += uninit.capacity;
        self.lent.push_front(Lent { object: uninit.object, capacity: uninit.capacity });
    }
}

/// A bytes object without a content.
pub struct UninitBytes {
    object: Object,
    capacity: usize,
}

impl UninitBytes {
    /// A new one, with room for at least `size` bytes.
    pub fn new(py: Python<'_>, size: usize) -> PyResult<UninitBytes> {
        // What is nearly as large, as a TLS record is with what is in it, fits into it the next time.
        let capacity = (size + 64).next_multiple_of(128);
        // SAFETY: null asks for bytes whose content is not there yet.
        let object = unsafe {
            let bytes = ffi::PyBytes_FromStringAndSize(std::ptr::null(), capacity as ffi::Py_ssize_t);
            Object::from_owned(py, bytes)?
        };
        Ok(UninitBytes { object, capacity })
    }

    /// For how many bytes there is room.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Its memory. What becomes the content must be written first (see [`BytesPool::freeze`]).
    pub fn as_mut_slice(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: there is no other reference to the object; its memory has room for its capacity.
        unsafe {
            let bytes = self.object.as_ptr().cast::<ffi::PyBytesObject>();
            std::slice::from_raw_parts_mut((&raw mut (*bytes).ob_sval).cast(), self.capacity)
        }
    }

    /// Writes bytes to its beginning, and returns how many.
    pub fn write(&mut self, data: &[u8]) -> usize {
        assert!(data.len() <= self.capacity);
        // SAFETY: there is room, and no other reference to the object.
        unsafe {
            let memory = self.as_mut_slice().as_mut_ptr().cast();
            std::ptr::copy_nonoverlapping(data.as_ptr(), memory, data.len());
        }
        data.len()
    }

    /// The first `length` bytes.
    ///
    /// # Safety
    /// They have been written.
    pub unsafe fn written(&self, length: usize) -> &[u8] {
        assert!(length <= self.capacity);
        // SAFETY: as the caller says; the memory has room for its capacity.
        unsafe {
            let bytes = self.object.as_ptr().cast::<ffi::PyBytesObject>();
            std::slice::from_raw_parts((&raw const (*bytes).ob_sval).cast(), length)
        }
    }
}
