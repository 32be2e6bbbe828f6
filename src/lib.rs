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

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::cpython::interpreter::claim(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::handle::register(module)?;
        crate::transports::register(module)?;
        crate::event_loop::register(module)
    }
}
