//! Calls of the protocol, the exception handler and the log. All of them run Python code, which can do anything to the transport.

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::Transport;
use crate::cpython::arguments::Arguments;
use crate::cpython::class::{Obj, This};
use crate::cpython::identity::class_of;
use crate::cpython::object::{Object, copy_context};
use crate::handle::{Call, Handle, reraise_fatal};
use crate::imports::imports;
use crate::intern;

/// A protocol of asyncio's streams that receives as much at a time should not copy it.
const LARGE: usize = 32 * 1024;

/// Gives a protocol of asyncio's streams, which receives so many bytes, the methods of `hotloop._streams`.
#[inline(always)]
pub fn adopt_streams(py: Python<'_>, event_loop: &Object, protocol: &Object, count: usize) -> PyResult<()> {
    if count < LARGE { Ok(()) } else { adopt(py, event_loop, protocol) }
}

#[inline(never)]
fn adopt(py: Python<'_>, event_loop: &Object, protocol: &Object) -> PyResult<()> {
    let imports = imports(py)?;
    let class = class_of(protocol);
    if !class.is(&imports.stream_protocol) && !class.is(&imports.pipe_protocol) {
        return Ok(());
    }
    match imports.adopt_streams.call(py, &[event_loop, protocol]) {
        Ok(_) => Ok(()),
        // Out of memory, for example: it does without.
        Err(error) => reraise_fatal(py, error).map(drop),
    }
}

/// Calls a method of the protocol. An exception is reported as that of a callback, and does not end the connection.
pub fn call_protocol<T: Transport>(
    this: This<'_, '_, T>,
    method: &Bound<'_, PyString>,
    args: &[&Object],
) -> PyResult<()> {
    let py = this.py();
    let Some(protocol) = this.protocol.get() else { return Ok(()) };
    match protocol.call_method(py, method, args) {
        Ok(_) => Ok(()),
        Err(error) => report_callback(this, error, method, args),
    }
}

/// Reports an exception of a method as asyncio reports that of a callback: with a handle.
pub fn report_callback<T: Transport>(
    this: This<'_, '_, T>,
    error: PyErr,
    method: &Bound<'_, PyString>,
    args: &[&Object],
) -> PyResult<()> {
    let py = this.py();
    let exception = reraise_fatal(py, error)?;
    let Ok(callback) = this.protocol_or_none(py).bind(py).getattr(method) else {
        // It has no such method.
        return report(this, &format!("protocol.{method}() failed"), &exception);
    };
    let call = Call {
        callback: callback.into(),
        arguments: Arguments::of_objects(py, args)?,
        context: copy_context(py)?,
        event_loop: Obj::of(this.event_loop.bind(py))?,
    };
    let schedule = &this.core.schedule;
    let traceback = if schedule.debug() { this.source_traceback.get() } else { None };
    let handle = Obj::new(py, Handle::with_traceback(call, traceback))?;
    imports(py)?.report_handle.call(py, &[handle.as_object(), &exception]).map(drop)
}

/// Reports an error of the transport or its protocol to the exception handler.
pub fn report<T: Transport>(this: This<'_, '_, T>, message: &str, exception: &Object) -> PyResult<()> {
    let py = this.py();
    let message = Object::from_str(py, message)?;
    let arguments = [&this.event_loop, &message, exception, &this.object(), &this.protocol_or_none(py)];
    imports(py)?.report_protocol.call(py, &arguments).map(drop)
}

/// Calls pause_writing() or resume_writing().
fn call_flow_control<T: Transport>(this: This<'_, '_, T>, method: &Bound<'_, PyString>) -> PyResult<()> {
    let py = this.py();
    let Some(protocol) = this.protocol.get() else { return Ok(()) };
    match protocol.call_method(py, method, &[]) {
        Ok(_) => Ok(()),
        Err(error) => {
            let exception = reraise_fatal(py, error)?;
            report(this, &format!("protocol.{method}() failed"), &exception)
        }
    }
}

/// Writes to asyncio's log.
pub fn log<T: Transport>(this: This<'_, '_, T>, level: &str, message: &str) -> PyResult<()> {
    let py = this.py();
    let (level, message) = (Object::from_str(py, level)?, Object::from_str(py, message)?);
    let level = level.bind(py);
    let level = level.cast::<PyString>()?;
    imports(py)?.logger.call_method(py, &level, &[&message, &this.object()]).map(drop)
}

/// Calls pause_writing() if `queued` is above the high-water mark, and it was not called before.
pub fn pause_protocol<T: Transport>(this: This<'_, '_, T>, queued: usize) -> PyResult<()> {
    this.note_waiting(queued);
    if !this.flow.must_pause(queued) {
        return Ok(());
    }
    call_flow_control(this, intern!(this.py(), "pause_writing"))
}

/// Calls resume_writing() if pause_writing() was called and `queued` is down to the low-water mark.
pub fn resume_protocol<T: Transport>(this: This<'_, '_, T>, queued: usize) -> PyResult<()> {
    this.note_waiting(queued);
    if !this.flow.must_resume(queued) {
        return Ok(());
    }
    call_flow_control(this, intern!(this.py(), "resume_writing"))
}
