//! Which interpreter the extension works in.
//!
//! Its classes, and what it imports, are the process's: they belong to the interpreter that imports it first. Another one
//! cannot use them, neither beside the first nor after it. Importing the module a second time in the same interpreter gives
//! a module with the same classes.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

use super::errors::{fetch, new_error};
use super::object::Object;

/// Whether any interpreter has claimed the extension. An interpreter with a GIL of its own does not load an extension that does not
/// say that it supports that, and an import holds the lock of its module.
static CLAIMED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn PyInterpreterState_GetDict(interpreter: *mut ffi::PyInterpreterState) -> *mut ffi::PyObject;
}

/// Claims the extension for the running interpreter. ImportError if another one has it.
pub fn claim(py: Python<'_>) -> PyResult<()> {
    // The interpreter's own mark: numbers of interpreters begin again when Python is finalized and initialized.
    let mark = Object::from_str(py, "hotloop._core")?;
    // SAFETY: the dict belongs to the interpreter, and is borrowed for this call; it may not be there out of memory.
    let (dict, is_ours) = unsafe {
        let dict = PyInterpreterState_GetDict(ffi::PyInterpreterState_Get());
        if dict.is_null() {
            return Err(PyErr::take(py)
                .unwrap_or_else(|| new_error::<PyImportError>(py, "the interpreter has no dict")));
        }
        (dict, ffi::PyDict_Contains(dict, mark.as_ptr()))
    };
    match (is_ours, CLAIMED.load(Relaxed)) {
        (1, _) => Ok(()),
        (0, true) => Err(new_error::<PyImportError>(
            py,
            "hotloop can be used in one interpreter of a process, and another has it",
        )),
        (0, false) => {
            // SAFETY: the dict and the string live.
            if unsafe { ffi::PyDict_SetItem(dict, mark.as_ptr(), mark.as_ptr()) } < 0 {
                return Err(fetch(py));
            }
            CLAIMED.store(true, Relaxed);
            Ok(())
        }
        _ => Err(fetch(py)),
    }
}

/// The interpreter that has the extension, for a thread that was not started by Python.
#[derive(Clone, Copy)]
pub struct Interpreter(*mut ffi::PyInterpreterState);

// SAFETY: only the pointer is sent; what uses it says when it may.
unsafe impl Send for Interpreter {}

impl Interpreter {
    /// The running one.
    pub fn of(_py: Python<'_>) -> Interpreter {
        // SAFETY: a thread that holds the GIL has an interpreter.
        Interpreter(unsafe { ffi::PyInterpreterState_Get() })
    }

    /// Calls `f` with the GIL, in a thread that has no thread state. None if there is no memory for one, where
    /// PyGILState_Ensure() would end the process, or if the interpreter is ending.
    ///
    /// # Safety
    /// The interpreter has not ended.
    pub unsafe fn try_attach<R>(self, f: impl FnOnce(Python<'_>) -> R) -> Option<R> {
        // SAFETY: the interpreter is there; needs no GIL.
        if unsafe { new_thread_state(self.0) }.is_null() {
            return None;
        }
        Python::try_attach(|py| {
            let result = f(py);
            // SAFETY: the GIL is held. A thread state that was not made by PyGILState_Ensure() counts a use of its own:
            // without it, PyO3's is the last, which deletes the thread state.
            unsafe { ffi::PyGILState_Release(ffi::PyGILState_STATE::PyGILState_LOCKED) };
            result
        })
    }
}

#[cfg(Py_3_12)]
use ffi::PyThreadState_New as new_thread_state;

#[cfg(not(Py_3_12))]
unsafe extern "C" {
    fn _PyThreadState_Prealloc(interpreter: *mut ffi::PyInterpreterState) -> *mut ffi::PyThreadState;
    fn _PyThreadState_SetCurrent(state: *mut ffi::PyThreadState);
}

/// What PyThreadState_New() does. Until 3.11, that follows a null pointer where there is no memory for a thread state.
///
/// # Safety
/// The interpreter is there.
#[cfg(not(Py_3_12))]
unsafe fn new_thread_state(interpreter: *mut ffi::PyInterpreterState) -> *mut ffi::PyThreadState {
    // SAFETY: as the caller says; the thread state is this thread's.
    unsafe {
        let state = _PyThreadState_Prealloc(interpreter);
        if !state.is_null() {
            _PyThreadState_SetCurrent(state);
        }
        state
    }
}
