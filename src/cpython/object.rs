//! References to Python objects.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pyo3::{Borrowed, ffi};

use super::counts;
use super::errors::{fetch, new_error};
use super::identity::Identity;

/// A strong reference.
///
/// Like `Py<PyAny>`, without its look-up at each drop whether the thread is attached to the interpreter.
///
/// Invariant: it is used and dropped by threads that are attached to the interpreter.
#[repr(transparent)]
pub struct Object {
    pointer: NonNull<ffi::PyObject>,
    /// Neither Send nor Sync.
    bound: PhantomData<*mut ()>,
}

impl Object {
    /// Takes over a reference that a C function returned; null stands for the exception that it has set.
    ///
    /// # Safety
    /// `pointer` is null, or a strong reference that the caller gives away.
    pub unsafe fn from_owned(py: Python<'_>, pointer: *mut ffi::PyObject) -> PyResult<Object> {
        match NonNull::new(pointer) {
            Some(pointer) => Ok(Object { pointer, bound: PhantomData }),
            None => Err(fetch(py)),
        }
    }

    /// Takes over a reference; None for null.
    ///
    /// # Safety
    /// As for [`Object::from_owned`].
    pub unsafe fn from_nullable(pointer: *mut ffi::PyObject) -> Option<Object> {
        NonNull::new(pointer).map(|pointer| Object { pointer, bound: PhantomData })
    }

    /// Makes a strong reference of a borrowed one.
    ///
    /// # Safety
    /// `pointer` points to a live object.
    pub unsafe fn from_borrowed(pointer: NonNull<ffi::PyObject>) -> Object {
        // SAFETY: the object lives.
        unsafe { counts::increment(pointer.as_ptr()) };
        Object { pointer, bound: PhantomData }
    }

    pub fn none(py: Python<'_>) -> Object {
        py.None().into_bound(py).into()
    }

    /// An int.
    pub fn from_int(py: Python<'_>, number: impl Into<i64>) -> PyResult<Object> {
        // SAFETY: returns a new reference or null with an exception.
        unsafe { Object::from_owned(py, ffi::PyLong_FromLongLong(number.into())) }
    }

    /// An int of a size.
    pub fn from_size(py: Python<'_>, size: usize) -> PyResult<Object> {
        // SAFETY: returns a new reference or null with an exception.
        unsafe { Object::from_owned(py, ffi::PyLong_FromSize_t(size)) }
    }

    /// A float.
    pub fn from_float(py: Python<'_>, number: f64) -> PyResult<Object> {
        // SAFETY: returns a new reference or null with an exception.
        unsafe { Object::from_owned(py, ffi::PyFloat_FromDouble(number)) }
    }

    /// A str.
    pub fn from_str(py: Python<'_>, text: &str) -> PyResult<Object> {
        // SAFETY: returns a new reference or null with an exception; the text is valid for its length.
        unsafe {
            let length = text.len() as ffi::Py_ssize_t;
            Object::from_owned(py, ffi::PyUnicode_FromStringAndSize(text.as_ptr().cast(), length))
        }
    }

    /// A str of a path, decoded as the interpreter decodes those.
    pub fn from_path(py: Python<'_>, path: &[u8]) -> PyResult<Object> {
        // SAFETY: returns a new reference or null with an exception; the path is valid for its length.
        unsafe {
            let length = path.len() as ffi::Py_ssize_t;
            Object::from_owned(py, ffi::PyUnicode_DecodeFSDefaultAndSize(path.as_ptr().cast(), length))
        }
    }

    pub fn as_ptr(&self) -> *mut ffi::PyObject {
        self.pointer.as_ptr()
    }

    pub fn into_ptr(self) -> *mut ffi::PyObject {
        let pointer = self.pointer.as_ptr();
        std::mem::forget(self);
        pointer
    }

    pub fn bind<'a, 'py>(&'a self, py: Python<'py>) -> Borrowed<'a, 'py, PyAny> {
        // SAFETY: self keeps the object alive for 'a.
        unsafe { Borrowed::from_ptr(py, self.as_ptr()) }
    }

    pub fn into_bound(self, py: Python<'_>) -> Bound<'_, PyAny> {
        // SAFETY: the reference is ours to give away.
        unsafe { Bound::from_owned_ptr(py, self.into_ptr()) }
    }

    pub fn is(&self, other: &Object) -> bool {
        self.pointer == other.pointer
    }

    /// Whether this is the only reference to the object.
    pub fn is_unique(&self) -> bool {
        #[cfg(not(Py_GIL_DISABLED))]
        // SAFETY: the object lives.
        let is_unique = unsafe { ffi::Py_REFCNT(self.as_ptr()) } == 1;
        // Not if another thread had a reference.
        #[cfg(Py_GIL_DISABLED)]
        // SAFETY: the object lives.
        let is_unique = unsafe { ffi::PyUnstable_Object_IsUniquelyReferenced(self.as_ptr()) } != 0;
        is_unique
    }

    /// Whether the object's class is memoryview or bytearray, whose length says whether their buffer is empty.
    pub fn is_plain_buffer(&self) -> bool {
        // SAFETY: the object lives.
        unsafe {
            ffi::Py_TYPE(self.as_ptr()) == &raw mut ffi::PyMemoryView_Type
                || ffi::PyByteArray_CheckExact(self.as_ptr()) != 0
        }
    }

    pub fn is_tuple(&self) -> bool {
        // SAFETY: the object lives.
        (unsafe { ffi::PyTuple_Check(self.as_ptr()) }) != 0
    }

    pub fn is_none(&self) -> bool {
        // SAFETY: None is immortal or at least never freed.
        self.as_ptr() == unsafe { ffi::Py_None() }
    }
}

impl Clone for Object {
    fn clone(&self) -> Object {
        // SAFETY: self keeps the object alive.
        unsafe { Object::from_borrowed(self.pointer) }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and the thread is attached (see the type's documentation).
        unsafe { counts::decrement(self.as_ptr()) }
    }
}

impl<T> From<Bound<'_, T>> for Object {
    fn from(bound: Bound<'_, T>) -> Object {
        // SAFETY: a Bound is a non-null strong reference.
        let pointer = unsafe { NonNull::new_unchecked(bound.into_ptr()) };
        Object { pointer, bound: PhantomData }
    }
}

impl<T> From<&Bound<'_, T>> for Object {
    fn from(bound: &Bound<'_, T>) -> Object {
        // SAFETY: the Bound keeps its object alive.
        unsafe { Object::from_borrowed(NonNull::new_unchecked(bound.as_ptr())) }
    }
}

impl From<Borrowed<'_, '_, PyAny>> for Object {
    fn from(borrowed: Borrowed<'_, '_, PyAny>) -> Object {
        Object::from(&*borrowed)
    }
}

/// An optional strong reference that can be replaced through a shared reference.
#[derive(Default)]
pub struct ObjectCell(Cell<Option<Object>>);

impl ObjectCell {
    pub fn new(object: Option<Object>) -> ObjectCell {
        ObjectCell(Cell::new(object))
    }

    pub fn get(&self) -> Option<Object> {
        self.peek().cloned()
    }

    /// Looks inside for the time of one expression that runs no Python code.
    fn peek(&self) -> Option<&Object> {
        // SAFETY: the reference is used up (cloned, compared, visited) before anything can replace the content:
        // this type is not Sync, and the callers of this private method run no Python code meanwhile.
        unsafe { (*self.0.as_ptr()).as_ref() }
    }

    pub fn is_some(&self) -> bool {
        self.peek().is_some()
    }

    /// What a callable in the cell is known by.
    #[inline(always)]
    pub fn identity(&self) -> Option<Identity> {
        self.peek().map(Identity::of)
    }

    pub fn replace(&self, object: Option<Object>) -> Option<Object> {
        self.0.replace(object)
    }

    /// Replaces the content; the old one is dropped, which may run Python code, when the new one is in place.
    pub fn set(&self, object: Option<Object>) {
        drop(self.0.replace(object));
    }

    pub fn take(&self) -> Option<Object> {
        self.0.take()
    }

    pub(super) fn as_ptr(&self) -> Option<*mut ffi::PyObject> {
        self.peek().map(Object::as_ptr)
    }
}

/// True or False.
pub fn boolean(py: Python<'_>, value: bool) -> Object {
    value.into_pyobject(py).map(|value| Object::from(&*value)).unwrap_or_else(|never| match never {})
}

/// A tuple.
pub fn tuple(py: Python<'_>, items: &[&Object]) -> PyResult<Object> {
    tuple_of(py, items.iter().copied())
}

/// A tuple of as many objects as the iterator says.
pub fn tuple_of<'a>(py: Python<'_>, items: impl ExactSizeIterator<Item = &'a Object>) -> PyResult<Object> {
    // SAFETY: the tuple is new, and filled in before another reference exists.
    unsafe {
        let tuple = Object::from_owned(py, ffi::PyTuple_New(items.len() as ffi::Py_ssize_t))?;
        for (index, item) in items.enumerate() {
            ffi::PyTuple_SET_ITEM(tuple.as_ptr(), index as ffi::Py_ssize_t, item.clone().into_ptr());
        }
        Ok(tuple)
    }
}

/// An empty dict.
pub fn dict(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    // SAFETY: returns a new reference or null with an exception.
    let dict = unsafe { Object::from_owned(py, ffi::PyDict_New())? };
    Ok(dict.into_bound(py).cast_into::<PyDict>()?)
}

/// A copy of the current context, as contextvars.copy_context() makes it.
pub fn copy_context(py: Python<'_>) -> PyResult<Object> {
    // SAFETY: returns a new reference or null with an exception.
    unsafe { Object::from_owned(py, ffi::PyContext_CopyCurrent()) }
}

/// A copy of a context.
pub fn copy_of_context(py: Python<'_>, context: &Object) -> PyResult<Object> {
    // SAFETY: PyContext_Copy checks that it is given a context.
    unsafe { Object::from_owned(py, ffi::PyContext_Copy(context.as_ptr())) }
}

/// Runs `f` in `context`, as Context.run() does.
#[inline(always)]
pub fn run_in_context<R>(py: Python<'_>, context: &Object, f: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    // SAFETY: PyContext_Enter checks that it is given a context; it is left below in any case but a panic, which
    // ends the run of the event loop.
    unsafe {
        if ffi::PyContext_Enter(context.as_ptr()) < 0 {
            return Err(fetch(py));
        }
        let result = f();
        if ffi::PyContext_Exit(context.as_ptr()) < 0 {
            return Err(fetch(py));
        }
        result
    }
}

/// What a generator or coroutine answers when it is resumed.
pub enum Resumed {
    Yielded(Object),
    Returned(Object),
}

/// Resumes an iterator with a value, as its send() would.
pub fn resume(py: Python<'_>, iterator: &Object, value: &Object) -> PyResult<Resumed> {
    let mut result = std::ptr::null_mut();
    // SAFETY: both objects live; `result` is filled in with a new reference, or left null with an exception set.
    unsafe {
        let sent = ffi::PyIter_Send(iterator.as_ptr(), value.as_ptr(), &mut result);
        let result = Object::from_owned(py, result)?;
        Ok(match sent {
            ffi::PySendResult::PYGEN_NEXT => Resumed::Yielded(result),
            _ => Resumed::Returned(result),
        })
    }
}

/// An item of a dict under a string; KeyError if there is none.
pub fn dict_item(py: Python<'_>, dict: &Object, key: &Bound<'_, PyString>) -> PyResult<Object> {
    #[cfg(not(Py_GIL_DISABLED))]
    // SAFETY: PyDict_GetItemWithError checks that it is given a dict, and returns a borrowed reference or null. The dict keeps the
    // item alive until there is a reference.
    let item = unsafe {
        let item = ffi::PyDict_GetItemWithError(dict.as_ptr(), key.as_ptr());
        NonNull::new(item).map(|item| Object::from_borrowed(item))
    };
    #[cfg(Py_GIL_DISABLED)]
    // SAFETY: PyDict_GetItemRef checks that it is given a dict, and leaves a new reference or null.
    let item = unsafe {
        let mut item = std::ptr::null_mut();
        ffi::PyDict_GetItemRef(dict.as_ptr(), key.as_ptr(), &mut item);
        Object::from_nullable(item)
    };
    item.ok_or_else(|| PyErr::take(py).unwrap_or_else(|| new_error::<PyKeyError>(py, key.to_string())))
}

/// The identifier of the calling thread, as threading.get_ident() has it.
pub fn thread_ident() -> u64 {
    // SAFETY: a call without arguments that needs no GIL.
    unsafe { ffi::PyThread_get_thread_ident() as u64 }
}

/// Whether the interpreter knows of another thread than the calling one. Without the GIL, there can be one at any moment.
pub fn has_other_threads(_py: Python<'_>) -> bool {
    #[cfg(not(Py_GIL_DISABLED))]
    // SAFETY: the head of the list of a living interpreter's threads, of which the calling one is a member. Threads leave the list
    // only while they hold the GIL.
    let has_others = unsafe {
        let head = PyInterpreterState_ThreadHead(ffi::PyInterpreterState_Get());
        !PyThreadState_Next(head).is_null()
    };
    #[cfg(Py_GIL_DISABLED)]
    let has_others = true;
    has_others
}

#[cfg(not(Py_GIL_DISABLED))]
unsafe extern "C" {
    fn PyInterpreterState_ThreadHead(interpreter: *mut ffi::PyInterpreterState) -> *mut ffi::PyThreadState;
    fn PyThreadState_Next(thread: *mut ffi::PyThreadState) -> *mut ffi::PyThreadState;
}
