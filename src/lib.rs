//! The extension module `hotloop._core`: an asyncio event loop.
//!
//! docs/architecture.md is the map.

pub mod reactor;
#[cfg_attr(not(feature = "python"), allow(dead_code, reason = "the reactor alone needs only a part of it"))]
mod reserve;

#[global_allocator]
static ALLOCATOR: reserve::Allocator = reserve::Allocator::new();

#[cfg(feature = "python")]
mod core;
#[cfg(feature = "python")]
mod cpython;
#[cfg(feature = "python")]
mod event_loop;
#[cfg(feature = "python")]
mod handle;
#[cfg(feature = "python")]
mod imports;
#[cfg(feature = "python")]
mod transports;

/// What Python sees.
#[cfg(feature = "python")]
mod extension {
    use std::ffi::c_int;

    use pyo3::ffi;
    use pyo3::prelude::*;

    use crate::cpython::module::{self, Definition, add};
    use crate::cpython::object::Object;
    use crate::{cpython, event_loop, function0, handle, imports, transports};

    static MODULE: Definition = Definition::new(
        c"_core",
        c"The part of hotloop that is written in Rust.",
        [
            function0!(
                "_stop_watching",
                event_loop::stop_watching,
                "End the thread that watches loops: before the interpreter ends."
            ),
            function0!(
                "_begin_fork",
                event_loop::begin_fork,
                "Have the thread that watches loops hold no lock while this one forks."
            ),
            function0!(
                "_note_transports",
                event_loop::note_transports,
                "Have hotloop._support.note_opened() called with each transport that is made."
            ),
            function0!(
                "_ignore_transports",
                event_loop::ignore_transports,
                "End what _note_transports() began."
            ),
            function0!(
                "_end_fork",
                event_loop::end_fork,
                "End what _begin_fork() began, in the parent and in the child."
            ),
        ],
        exec,
    );

    #[unsafe(no_mangle)]
    unsafe extern "C" fn PyInit__core() -> *mut ffi::PyObject {
        // SAFETY: the interpreter calls this by its name.
        unsafe { MODULE.init() }
    }

    unsafe extern "C" fn exec(module: *mut ffi::PyObject) -> c_int {
        // SAFETY: the interpreter passes the module that it makes.
        unsafe { module::exec(module, fill) }
    }

    fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        cpython::interpreter::claim(py)?;
        add(module, "__version__", Object::from_str(py, env!("CARGO_PKG_VERSION"))?)?;
        handle::register(module)?;
        transports::register(module)?;
        event_loop::register(module)?;
        #[cfg(feature = "faults")]
        super::faults::register(module)?;
        // Loaded now, so that callbacks never wait for it.
        imports::imports(py)?;
        event_loop::watch_patches(py)
    }
}

/// Functions by which the torture tests make system calls fail.
#[cfg(all(feature = "python", feature = "faults"))]
mod faults {
    use std::collections::HashMap;

    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;

    use crate::reactor::faults;

    /// Make the system call of that name fail with an error, or transfer one byte at the most if `errno` is 0: after the
    /// next `after` calls, `times` times.
    #[pyfunction]
    fn _inject(call: &str, errno: i32, after: u64, times: u64) -> PyResult<()> {
        if faults::inject(call, errno, after, times) {
            Ok(())
        } else {
            Err(PyValueError::new_err(format!("no system call of the event loop: {call}")))
        }
    }

    /// How often each system call was made.
    #[pyfunction]
    fn _calls() -> HashMap<&'static str, u64> {
        faults::counts().collect()
    }

    /// Have all system calls succeed again, and count them from the beginning.
    #[pyfunction]
    fn _reset_faults() {
        faults::reset();
    }

    pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add_function(wrap_pyfunction!(_inject, module)?)?;
        module.add_function(wrap_pyfunction!(_calls, module)?)?;
        module.add_function(wrap_pyfunction!(_reset_faults, module)?)
    }
}
