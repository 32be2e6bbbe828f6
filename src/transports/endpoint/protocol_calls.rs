//! What protocols, the exception handler and the log are told.

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::Transport;
use crate::cpython::class::{Obj, This};
use crate::cpython::object::{Object, copy_context};
use crate::handle::{Arguments, Call, Handle, reraise_fatal};
use crate::imports::imports;
use crate::intern;

/// Calls a method of the protocol. What it raises is reported as of a callback, and does not end the connection.
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

/// Reports what a method of the protocol raised as asyncio reports it of a callback: with its handle.
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
        arguments: Arguments::of_objects(args),
        context: copy_context(py)?,
        event_loop: this.event_loop.clone(),
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

/// Calls a method of flow control.
fn tell_flow<T: Transport>(this: This<'_, '_, T>, method: &Bound<'_, PyString>) -> PyResult<()> {
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

/// Writes to asyncio's log what happened to a transport.
pub fn log<T: Transport>(this: This<'_, '_, T>, level: &str, message: &str) -> PyResult<()> {
    let py = this.py();
    let (level, message) = (Object::from_str(py, level)?, Object::from_str(py, message)?);
    let level = level.bind(py);
    let level = level.cast::<PyString>()?;
    imports(py)?.logger.call_method(py, &level, &[&message, &this.object()]).map(drop)
}

/// Tells the protocol to pause if more waits to be sent than the high-water mark.
pub fn pause_protocol<T: Transport>(this: This<'_, '_, T>, queued: usize) -> PyResult<()> {
    if !this.flow.must_pause(queued) {
        return Ok(());
    }
    tell_flow(this, intern!(this.py(), "pause_writing"))
}

/// Tells the protocol to resume if it was told to pause and no more than the low-water mark waits.
pub fn resume_protocol<T: Transport>(this: This<'_, '_, T>, queued: usize) -> PyResult<()> {
    if !this.flow.must_resume(queued) {
        return Ok(());
    }
    tell_flow(this, intern!(this.py(), "resume_writing"))
}
