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

/// The descriptor of a file object that can be a pipe transport's, made so that it does not block.
fn prepare(py: Python<'_>, file: &Object, refusal: &str) -> PyResult<(RawFd, Kind)> {
    let fd: RawFd = file.call_method(py, intern!(py, "fileno"), &[])?.bind(py).extract()?;
    let kind = pipe::kind(fd).or_os_error(py)?;
    if kind == Kind::Other {
        return Err(new_error::<PyValueError>(py, refusal));
    }
    pipe::set_nonblocking(fd).or_os_error(py)?;
    Ok((fd, kind))
}

/// Whether other threads are to run while something is written, because that can wait: one of them may be who reads it.
fn lets_others_run(py: Python<'_>, fd: RawFd) -> bool {
    has_other_threads(py) && pipe::can_wait(fd)
}

fn extra_info(py: Python<'_>, file: &Object, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
    Ok(name.eq(intern!(py, "pipe"))?.then(|| file.clone()))
}
