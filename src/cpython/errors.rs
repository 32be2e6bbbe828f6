//! Making Python's exceptions: the one place that turns an error of the operating system into Python's.
//!
//! PyO3 makes an exception when it is first looked at, and panics if there is no memory for it then, or if none is set. Here it
//! is made at once, and if that fails, the error is a MemoryError. PyO3's conversion of io::Error (`?`) loses errno, so that an
//! io::Result is converted by [`OrOsError::or_os_error`].

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::{PyOSError, PySystemError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;

use super::object::{Object, tuple};

/// The exception that is set. If a function of the interpreter has failed without one, as calls of Python functions do until
/// 3.11 where there is no memory for a frame, it is the SystemError by which the interpreter says so.
pub fn fetch(py: Python<'_>) -> PyErr {
    PyErr::take(py).unwrap_or_else(|| new_error::<PySystemError>(py, "error return without exception set"))
}

/// The error with its exception made, or MemoryError. PyO3 makes the exceptions of its own errors when they are first looked
/// at, and panics without memory.
#[cold]
pub fn made(py: Python<'_>, error: PyErr) -> PyErr {
    if catch_unwind(AssertUnwindSafe(|| _ = error.value(py))).is_ok() {
        return error;
    }
    no_memory(py)
}

/// The MemoryError that is there in advance.
#[cold]
pub fn no_memory(py: Python<'_>) -> PyErr {
    // SAFETY: sets an exception that is there in advance.
    unsafe { ffi::PyErr_NoMemory() };
    fetch(py)
}

/// An exception with a message.
#[cold]
pub fn new_error<T: PyTypeInfo>(py: Python<'_>, message: impl AsRef<str>) -> PyErr {
    match Object::from_str(py, message.as_ref()) {
        Ok(message) => error_of::<T>(py, &message),
        Err(error) => error,
    }
}

/// An exception with an argument, or with several in a tuple.
#[cold]
pub fn error_of<T: PyTypeInfo>(py: Python<'_>, arguments: &Object) -> PyErr {
    // The class is called: it may return an instance of a subclass, as OSError does, which the interpreter's own way takes for
    // one of the class until 3.11.
    let class = T::type_object_raw(py).cast::<ffi::PyObject>();
    // SAFETY: the class and the arguments live; whatever is called returns a new reference or null with an exception.
    let made = unsafe {
        let made = match arguments.is_tuple() {
            true => ffi::PyObject_Call(class, arguments.as_ptr(), std::ptr::null_mut()),
            false => ffi::PyObject_CallOneArg(class, arguments.as_ptr()),
        };
        Object::from_owned(py, made)
    };
    match made {
        Ok(made) => PyErr::from_value(made.into_bound(py)),
        Err(error) => error,
    }
}

/// An OSError with errno and the C library's message, of the subclass that belongs to the number. MemoryError for an error that the
/// extension has found itself, without a number.
pub fn os_error(py: Python<'_>, error: io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => numbered(py, number, &message(number)),
        None if error.kind() == io::ErrorKind::OutOfMemory => no_memory(py),
        None => new_error::<PyOSError>(py, error.to_string()),
    }
}

/// An OSError with errno and a message, of the subclass that belongs to the number.
pub fn numbered(py: Python<'_>, number: i32, message: &str) -> PyErr {
    let arguments = || tuple(py, &[&Object::from_int(py, number)?, &Object::from_str(py, message)?]);
    match arguments() {
        Ok(arguments) => error_of::<PyOSError>(py, &arguments),
        Err(error) => error,
    }
}

fn message(number: i32) -> String {
    let text = io::Error::from_raw_os_error(number).to_string();
    let suffix = format!(" (os error {number})");
    text.strip_suffix(&suffix).unwrap_or(&text).to_owned()
}

/// Makes Python's result of the operating system's.
pub trait OrOsError<T> {
    fn or_os_error(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrOsError<T> for io::Result<T> {
    fn or_os_error(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| os_error(py, error))
    }
}
