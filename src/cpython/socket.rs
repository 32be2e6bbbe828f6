//! The descriptor of a socket.socket, read where the object keeps it: asking its method costs as much as a short callback.

use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use pyo3::ffi;
use pyo3::prelude::*;

use super::object::Object;
use crate::imports::imports;
#[cfg(Py_GIL_DISABLED)]
use crate::reactor::published::Word;

/// What every socket object begins with, in all versions of the interpreter.
#[repr(C)]
struct SocketObject {
    _head: ffi::PyObject,
    fd: RawFd,
}

/// What the interpreter has in place of the descriptor of a closed socket.
static NO_DESCRIPTOR: RawFd = -1;

/// Where a socket object keeps its descriptor.
#[derive(Clone, Copy)]
pub struct DescriptorPlace(NonNull<RawFd>);

impl DescriptorPlace {
    /// The place of no socket: there is no descriptor.
    // SAFETY: a reference is not null.
    pub const CLOSED: DescriptorPlace =
        DescriptorPlace(unsafe { NonNull::new_unchecked((&raw const NO_DESCRIPTOR).cast_mut()) });

    /// None for an object that is no socket.socket, or does not have `fd` where it should be.
    pub fn find(py: Python<'_>, socket: &Object, fd: RawFd) -> PyResult<Option<DescriptorPlace>> {
        let class = imports(py)?.native_socket.as_ptr().cast::<ffi::PyTypeObject>();
        // SAFETY: both are live objects, and the second is a class.
        if unsafe { ffi::PyObject_TypeCheck(socket.as_ptr(), class) } == 0 {
            return Ok(None);
        }
        // SAFETY: an instance of the class begins with a SocketObject.
        let place = unsafe { NonNull::new_unchecked(&raw mut (*socket.as_ptr().cast::<SocketObject>()).fd) };
        let place = DescriptorPlace(place);
        // SAFETY: the object lives.
        Ok((unsafe { place.get() } == fd).then_some(place))
    }

    /// The descriptor; negative once the socket is closed or detached.
    ///
    /// # Safety
    /// The socket object lives.
    pub unsafe fn get(self) -> RawFd {
        // Without the GIL, another thread may write there: the interpreter reads and writes it as an atomic, too.
        // SAFETY: as the caller says; the place is aligned.
        unsafe { AtomicI32::from_ptr(self.0.as_ptr()).load(Relaxed) }
    }
}

#[cfg(Py_GIL_DISABLED)]
impl Word for Option<DescriptorPlace> {
    fn to_word(self) -> u64 {
        self.map_or(0, |place| place.0.as_ptr().expose_provenance() as u64)
    }

    fn from_word(word: u64) -> Self {
        NonNull::new(std::ptr::with_exposed_provenance_mut(word as usize)).map(DescriptorPlace)
    }
}
