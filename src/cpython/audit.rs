//! Audit events: what sys.addaudithook() lets a program watch.

use std::ffi::{CStr, c_char, c_int, c_void};

use pyo3::ffi;
use pyo3::prelude::*;

use super::errors::fetch;
use super::methods::guard;
use super::object::Object;

unsafe extern "C" {
    fn PySys_Audit(event: *const c_char, format: *const c_char, ...) -> c_int;
}

type Make<'a> = dyn Fn(Python<'_>) -> PyResult<Object> + 'a;

unsafe extern "C" fn make(argument: *mut c_void) -> *mut ffi::PyObject {
    // SAFETY: `raise` passes a reference that is good for the whole call, which is made under the GIL.
    unsafe { guard(std::ptr::null_mut(), |py| (*argument.cast::<&Make<'_>>())(py).map(Object::into_ptr)) }
}

/// Raises an audit event with two arguments, which are made only if there is a hook.
pub fn raise(py: Python<'_>, event: &CStr, first: &Make<'_>, second: &Make<'_>) -> PyResult<()> {
    let converter: unsafe extern "C" fn(*mut c_void) -> *mut ffi::PyObject = make;
    // SAFETY: "O&" takes a function that makes an object and what it is to be called with.
    let result = unsafe {
        PySys_Audit(
            event.as_ptr(),
            c"O&O&".as_ptr(),
            converter,
            (&raw const first).cast::<c_void>(),
            converter,
            (&raw const second).cast::<c_void>(),
        )
    };
    if result < 0 { Err(fetch(py)) } else { Ok(()) }
}
