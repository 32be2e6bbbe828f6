//! The descriptor of a socket.socket, read where the object keeps it: asking its method costs as much as a short callback.

use std::os::fd::RawFd;
use std::ptr::NonNull;

use pyo3::ffi;
use pyo3::prelude::*;

use super::object::Object;
use crate::imports::imports;

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
        // GIL: the interpreter writes there only while it holds it.
        // SAFETY: as the caller says.
        unsafe { self.0.read() }
    }
}
