//! Pipe transports: pipes, FIFOs, ptys and other character devices, and sockets used in one direction.
//!
//! What is written is written within write(), as far as the pipe takes it.

pub mod class;
mod reading;
mod writing;

pub use reading::ReadPipe;
pub use writing::WritePipe;

use std::cell::Cell;
use std::os::fd::RawFd;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::cpython::errors::OrOsError;
use crate::cpython::errors::new_error;
use crate::cpython::object::{Object, has_other_threads};
use crate::intern;
use crate::reactor::pipe::{self, Kind};

/// Bytes of a pipe, as Linux makes it.
const CAPACITY: usize = 64 * 1024;
/// A pipe that is full is made as large, so that its ends wait for each other less often.
const LARGER: usize = 256 * 1024;
/// It is when all that it holds was moved at once so often in a row.
const OFTEN: u8 = 4;

/// Has a pipe that holds up a transfer hold more.
#[derive(Default)]
struct Capacity {
    /// How often in a row all that it holds was moved at once.
    moved: Cell<u8>,
    is_larger: Cell<bool>,
}

impl Capacity {
    /// So many bytes were read at once, or written at once when the pipe had been full.
    fn note(&self, fd: RawFd, kind: Kind, count: usize) {
        if count < CAPACITY || kind != Kind::Fifo {
            self.moved.set(0);
            return;
        }
        self.moved.set(self.moved.get().saturating_add(1));
        if self.moved.get() >= OFTEN && !self.is_larger.replace(true) {
            pipe::enlarge(fd, LARGER);
        }
    }
}

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
