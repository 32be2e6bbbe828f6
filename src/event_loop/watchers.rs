//! Watching file descriptors: add_reader(), add_writer(), and what removes them.

use std::os::fd::RawFd;

use pyo3::Borrowed;
use pyo3::exceptions::{PyOverflowError, PyRuntimeError};
use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;

use super::{Loop, ThisLoop, descriptor, fileno, invalid_descriptor};
use crate::core::{Direction, Waiter};
use crate::cpython::args::Args;
use crate::cpython::arguments::Arguments;
use crate::cpython::class::Obj;
use crate::cpython::errors::new_error;
use crate::cpython::object::{Object, boolean, copy_context};
use crate::handle::{Call, Handle};
use crate::intern;
use crate::transports;
use crate::{method, method1};

/// RuntimeError if the descriptor is in use by a transport that is not closing, nor garbage that the loop has yet to finalize.
pub fn ensure_no_transport(this: ThisLoop<'_, '_>, fd: RawFd, given: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = this.py();
    let transport = match this.core.transport_of(fd) {
        Some(transport) => transport,
        None if this.has_transports_of_asyncio.get() => {
            let transports = Object::from(this.as_any().getattr(intern!(py, "_transports"))?);
            let transport = transports.call_method(py, intern!(py, "get"), &[&Object::from_int(py, fd)?])?;
            if transport.is_none() {
                return Ok(());
            }
            transport
        }
        None => return Ok(()),
    };
    if transport.call_method(py, intern!(py, "is_closing"), &[])?.bind(py).is_truthy()?
        || cfg!(Py_GIL_DISABLED) && transports::is_abandoned(&transport)
    {
        return Ok(());
    }
    let message =
        format!("File descriptor {} is used by transport {}", given.repr()?, transport.bind(py).repr()?);
    Err(new_error::<PyRuntimeError>(py, message))
}

fn watch<'py>(
    this: ThisLoop<'_, 'py>,
    args: Args<'_, 'py>,
    direction: Direction,
    check: impl FnOnce(RawFd, &Bound<'py, PyAny>) -> PyResult<()>,
) -> PyResult<Object> {
    let py = this.py();
    let ([file, callback], context) = args.leading()?;
    let fd = descriptor(&file.bind(py))?;
    check(fd, &file.bind(py))?;
    this.check_closed(this.py())?;
    let call = Call {
        callback,
        arguments: Arguments::of_call(py, args, 2)?,
        context: match context {
            Some(context) => context,
            None => copy_context(py)?,
        },
        event_loop: this.obj(),
    };
    let handle = Obj::new(py, Handle::new(py, call, &this.core.schedule)?)?;
    let waiter = Waiter::Handle(handle.clone(), file);
    let previous = this.core.add_waiter(py, fd, direction, waiter)?;
    Waiter::dismiss(py, previous)?;
    Ok(handle.into_object())
}

fn add<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>, direction: Direction) -> PyResult<Object> {
    watch(this, args, direction, |fd, file| ensure_no_transport(this, fd, file))?;
    Ok(Object::none(this.py()))
}

fn remove_privately<'py>(
    this: ThisLoop<'_, 'py>,
    file: Borrowed<'_, 'py, PyAny>,
    direction: Direction,
) -> PyResult<Object> {
    let py = this.py();
    if this.closed.get() {
        return Ok(boolean(py, false));
    }
    let fd = match fileno(&file) {
        Ok(fd @ 0..) => fd,
        // The number is too large for a descriptor.
        Err(error) if error.is_instance_of::<PyOverflowError>(py) => return Ok(boolean(py, false)),
        Err(error) => return Err(error),
        // A socket that was closed meanwhile is looked up as an object.
        Ok(fd) => this.core.descriptor_of(&Object::from(file)).ok_or_else(|| invalid_descriptor(py, fd))?,
    };
    let waiter = this.core.remove_waiter(fd, direction, None);
    Ok(boolean(py, Waiter::dismiss(py, waiter)?))
}

fn remove<'py>(
    this: ThisLoop<'_, 'py>,
    file: Borrowed<'_, 'py, PyAny>,
    direction: Direction,
) -> PyResult<Object> {
    check_not_used(this, file)?;
    remove_privately(this, file, direction)
}

/// As asyncio's _ensure_fd_no_transport(), accepts any integer, and other objects with fileno().
fn check_not_used<'py>(this: ThisLoop<'_, 'py>, file: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    match fileno(&file) {
        Ok(fd) => ensure_no_transport(this, fd, &file)?,
        Err(error) if error.is_instance_of::<PyOverflowError>(this.py()) => {}
        Err(error) if !file.is_instance_of::<pyo3::types::PyInt>() => return Err(error),
        Err(_) => {}
    }
    Ok(Object::none(this.py()))
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(
            Loop,
            "add_reader",
            "fd, callback, *args",
            |this, args| add(this, args, Direction::Read),
            "Call callback(*args) whenever fd, an integer or an object with fileno(), can be read from.\n\n\
             Raise ValueError if fd is neither, RuntimeError if a transport uses it, OSError if it cannot be watched."
        ),
        method1!(
            Loop,
            "remove_reader",
            "fd",
            |this, file| remove(this, file, Direction::Read),
            "Stop watching fd for reading; return whether it was."
        ),
        method!(
            Loop,
            "add_writer",
            "fd, callback, *args",
            |this, args| add(this, args, Direction::Write),
            "Call callback(*args) whenever fd, an integer or an object with fileno(), can be written to.\n\n\
             Raise ValueError if fd is neither, RuntimeError if a transport uses it, OSError if it cannot be watched."
        ),
        method1!(
            Loop,
            "remove_writer",
            "fd",
            |this, file| remove(this, file, Direction::Write),
            "Stop watching fd for writing; return whether it was."
        ),
        method!(
            Loop,
            "_add_reader",
            "fd, callback, *args, context=None",
            |this, args| watch(this, args, Direction::Read, |_, _| Ok(())),
            "add_reader() for the standard library's transports; return the handle."
        ),
        method1!(
            Loop,
            "_remove_reader",
            "fd",
            |this, file| remove_privately(this, file, Direction::Read),
            "remove_reader() for the standard library's transports."
        ),
        method!(
            Loop,
            "_add_writer",
            "fd, callback, *args, context=None",
            |this, args| watch(this, args, Direction::Write, |_, _| Ok(())),
            "add_writer() for the standard library's transports; return the handle."
        ),
        method1!(
            Loop,
            "_remove_writer",
            "fd",
            |this, file| remove_privately(this, file, Direction::Write),
            "remove_writer() for the standard library's transports."
        ),
        method1!(
            Loop,
            "_ensure_fd_no_transport",
            "fd",
            check_not_used,
            "Raise RuntimeError if a transport uses fd."
        ),
    ]
}
