//! Bytes objects, and buffers that Python objects lend.

use std::ptr::NonNull;

use pyo3::prelude::*;
use pyo3::{Borrowed, ffi};

use super::class::Visitor;
use super::errors::{fetch, no_memory};
use super::object::Object;
use crate::reactor::memory::{Memory, MemoryMut};
use crate::reserve::try_box;

/// A new bytes object with a copy of `data`.
pub fn new_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Object> {
    // SAFETY: `data` is valid for reads of its length.
    unsafe {
        Object::from_owned(
            py,
            ffi::PyBytes_FromStringAndSize(data.as_ptr().cast(), data.len() as ffi::Py_ssize_t),
        )
    }
}

/// A new bytes object of two parts.
pub fn joined(py: Python<'_>, first: &[u8], second: &[u8]) -> PyResult<Object> {
    let length = first.len() + second.len();
    // SAFETY: null asks for bytes whose content is not there yet. It is written here, before another reference exists.
    unsafe {
        let bytes = ffi::PyBytes_FromStringAndSize(std::ptr::null(), length as ffi::Py_ssize_t);
        let bytes = Object::from_owned(py, bytes)?;
        let content = (&raw mut (*bytes.as_ptr().cast::<ffi::PyBytesObject>()).ob_sval).cast::<u8>();
        std::ptr::copy_nonoverlapping(first.as_ptr(), content, first.len());
        std::ptr::copy_nonoverlapping(second.as_ptr(), content.add(first.len()), second.len());
        Ok(bytes)
    }
}

/// A bytes object: immutable, and no Python code runs when it is dropped.
pub struct Bytes(Object);

impl Bytes {
    /// None if the object is of another class, subclasses included.
    pub fn from_exact(object: &Object) -> Option<Bytes> {
        // SAFETY: the object lives.
        let exact = unsafe { ffi::PyBytes_CheckExact(object.as_ptr()) } != 0;
        exact.then(|| Bytes(object.clone()))
    }

    /// As [`Bytes::from_exact`], of an argument.
    pub fn from_borrowed(object: Borrowed<'_, '_, PyAny>) -> Option<Bytes> {
        // SAFETY: the object lives.
        let exact = unsafe { ffi::PyBytes_CheckExact(object.as_ptr()) } != 0;
        exact.then(|| Bytes(Object::from(object)))
    }

    /// A copy of what a bytes-like object holds at this moment.
    pub fn copy_of(py: Python<'_>, object: &Object) -> PyResult<Bytes> {
        // SAFETY: PyBytes_FromObject takes any object; for a subclass of bytes, too, it copies.
        let copy = unsafe { Object::from_owned(py, ffi::PyBytes_FromObject(object.as_ptr()))? };
        match Bytes::from_exact(&copy) {
            Some(bytes) => Ok(bytes),
            None => {
                // A subclass of bytes is returned as it is, and may run code when it is dropped.
                // SAFETY: PyBytes_FromObject returns bytes or a subclass.
                let data = unsafe { bytes_of(&copy) };
                Ok(Bytes(new_bytes(py, data)?))
            }
        }
    }

    pub fn as_object(&self) -> &Object {
        &self.0
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: it was checked to be bytes when it was made.
        unsafe { bytes_of(&self.0) }
    }
}

/// # Safety
/// The object is an instance of bytes.
unsafe fn bytes_of(object: &Object) -> &[u8] {
    // SAFETY: bytes are immutable, and the reference keeps them alive.
    unsafe {
        let bytes = object.as_ptr().cast::<ffi::PyBytesObject>();
        let length = (*bytes).ob_base.ob_size;
        std::slice::from_raw_parts((&raw const (*bytes).ob_sval).cast(), length as usize)
    }
}

/// Lends `f` the memory of an object's writable buffer.
pub fn with_writable_buffer<R>(
    py: Python<'_>,
    object: &Object,
    f: impl FnOnce(MemoryMut<'_>) -> R,
) -> PyResult<R> {
    with_writable_buffer_and(py, object, || Ok(()), |(), memory| f(memory))
}

/// As [`with_writable_buffer`]. `prepare` is called once the object has lent its buffer, may run Python code, and returns the
/// first argument of `f`.
pub fn with_writable_buffer_and<T, R>(
    py: Python<'_>,
    object: &Object,
    prepare: impl FnOnce() -> PyResult<T>,
    f: impl FnOnce(T, MemoryMut<'_>) -> R,
) -> PyResult<R> {
    /// Released when dropped, which does nothing to one that was not filled in.
    struct View(ffi::Py_buffer);
    impl Drop for View {
        fn drop(&mut self) {
            // SAFETY: the view is empty or was filled in by PyObject_GetBuffer, and is released once.
            unsafe { ffi::PyBuffer_Release(&mut self.0) };
        }
    }

    let mut view = View(ffi::Py_buffer::new());
    // SAFETY: `view` stays where it is until it is released.
    if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &mut view.0, ffi::PyBUF_WRITABLE) } < 0 {
        return Err(fetch(py));
    }
    let prepared = prepare()?;
    // SAFETY: the exporter keeps `len` writable bytes in place until the view is released.
    Ok(f(prepared, unsafe { MemoryMut::new(view.0.buf.cast(), view.0.len as usize) }))
}

/// A readable view of a buffer that a Python object lends, released when dropped.
pub struct ReadableBuffer(Box<ffi::Py_buffer>);

impl ReadableBuffer {
    pub fn new(object: &Object, py: Python<'_>) -> PyResult<ReadableBuffer> {
        let mut view = try_box(ffi::Py_buffer::new()).ok_or_else(|| no_memory(py))?;
        // SAFETY: `view` stays where it is until it is released.
        if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &mut *view, ffi::PyBUF_SIMPLE) } < 0 {
            return Err(fetch(py));
        }
        Ok(ReadableBuffer(view))
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        if let Some(exporter) = NonNull::new(self.0.obj) {
            visitor.pointer(exporter.as_ptr());
        }
    }

    pub fn memory(&self) -> Memory<'_> {
        // SAFETY: the exporter keeps `len` bytes in place until the view is released.
        unsafe { Memory::new(self.0.buf.cast(), self.0.len as usize) }
    }
}

impl Drop for ReadableBuffer {
    fn drop(&mut self) {
        // SAFETY: the view was filled in by PyObject_GetBuffer and is released once.
        unsafe { ffi::PyBuffer_Release(&mut *self.0) };
    }
}

/// Whether an object supports the buffer protocol.
pub fn has_buffer(object: &Object) -> bool {
    // SAFETY: the object lives.
    unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) != 0 }
}

/// Lends the memory of a bytes-like object to `f`.
pub fn with_buffer<R>(py: Python<'_>, object: &Object, f: impl FnOnce(Memory<'_>) -> R) -> PyResult<R> {
    // SAFETY: the object lives.
    if unsafe { ffi::PyBytes_CheckExact(object.as_ptr()) } != 0 {
        // SAFETY: it was just found to be bytes.
        return Ok(f(Memory::from(unsafe { bytes_of(object) })));
    }
    let mut view = ffi::Py_buffer::new();
    // SAFETY: `view` stays where it is until it is released below; between the two, its memory is there.
    unsafe {
        if ffi::PyObject_GetBuffer(object.as_ptr(), &mut view, ffi::PyBUF_SIMPLE) < 0 {
            return Err(fetch(py));
        }
        let result = f(Memory::new(view.buf.cast(), view.len as usize));
        ffi::PyBuffer_Release(&mut view);
        Ok(result)
    }
}
