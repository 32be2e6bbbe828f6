//! The extension module `hotloop._core`: an asyncio event loop.
//!
//! See docs/architecture.md for what is where, and why.

pub mod reactor;

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
#[pyo3::pymodule(gil_used = true)]
mod _core {
    use pyo3::prelude::*;

    /// End the thread that watches loops: before the interpreter ends.
    #[pyfunction]
    fn _stop_watching(py: Python<'_>) {
        crate::event_loop::stop_watching(py);
    }

    /// See to it that the thread that watches loops holds no lock while this one forks.
    #[pyfunction]
    fn _begin_fork() {
        crate::event_loop::begin_fork();
    }

    /// The same is over, in the parent and in the child.
    #[pyfunction]
    fn _end_fork() {
        crate::event_loop::end_fork();
    }

    /// Make the system call of that name fail with an error, or transfer one byte at the most if `errno` is 0: after the
    /// next `after` calls, `times` times.
    #[cfg(feature = "faults")]
    #[pyfunction]
    fn _inject(call: &str, errno: i32, after: u64, times: u64) -> PyResult<()> {
        if crate::reactor::faults::inject(call, errno, after, times) {
            Ok(())
        } else {
            Err(pyo3::exceptions::PyValueError::new_err(format!("no system call of the event loop: {call}")))
        }
    }

    /// How often each system call was made.
    #[cfg(feature = "faults")]
    #[pyfunction]
    fn _calls() -> std::collections::HashMap<&'static str, u64> {
        crate::reactor::faults::counts().collect()
    }

    /// Have all system calls succeed again, and count them from the beginning.
    #[cfg(feature = "faults")]
    #[pyfunction]
    fn _reset_faults() {
        crate::reactor::faults::reset();
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::cpython::interpreter::claim(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::handle::register(module)?;
        crate::transports::register(module)?;
        crate::event_loop::register(module)
    }
}
