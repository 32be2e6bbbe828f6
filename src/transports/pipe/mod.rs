//! Pipe transports: pipes, FIFOs, ptys and other character devices, and sockets used in one direction.
//!
//! What is written is written within write(), as far as the pipe takes it.

pub mod class;
mod reading;
mod writing;

pub use reading::ReadPipe;
pub use writing::WritePipe;

use std::os::fd::RawFd;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::cpython::errors::OrOsError;
use crate::cpython::errors::new_error;
use crate::cpython::object::{Object, has_other_threads};
use crate::intern;
use crate::reactor::pipe::{self, Kind};

/// Returns the descriptor of a file object, made non-blocking, and what it is. ValueError with `refusal` for a regular file.
fn prepare(py: Python<'_>, file: &Object, refusal: &str) -> PyResult<(RawFd, Kind)> {
    let fd: RawFd = file.call_method(py, intern!(py, "fileno"), &[])?.bind(py).extract()?;
    let kind = pipe::kind(fd).or_os_error(py)?;
    if kind == Kind::Other {
        return Err(new_error::<PyValueError>(py, refusal));
    }
    pipe::set_nonblocking(fd).or_os_error(py)?;
    Ok((fd, kind))
}

/// Whether a write can block while another thread of this process, which may be the reader, waits for the GIL.
fn must_release_gil(py: Python<'_>, fd: RawFd) -> bool {
    has_other_threads(py) && pipe::can_wait(fd)
}

fn extra_info(py: Python<'_>, file: &Object, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
    Ok(name.eq(intern!(py, "pipe"))?.then(|| file.clone()))
}
