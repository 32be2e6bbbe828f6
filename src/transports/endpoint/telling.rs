//! What protocols, the exception handler and the log are told.

use pyo3::intern;
use pyo3::prelude::*;

use super::Transport;
use crate::cpython::class::This;
use crate::cpython::object::Object;
use crate::handle::survivable;
use crate::imports::imports;

/// Hands what a protocol's method raised to the exception handler, which does not end the connection.
pub fn report_failure<T: Transport>(
    this: This<'_, '_, T>,
    result: PyResult<Object>,
    message: &str,
) -> PyResult<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => report(this, error, message),
    }
}

pub fn report<T: Transport>(this: This<'_, '_, T>, error: PyErr, message: &str) -> PyResult<()> {
    let exception = survivable(this.py(), error)?;
    report_exception(this, message, &exception)
}

pub fn report_exception<T: Transport>(
    this: This<'_, '_, T>,
    message: &str,
    exception: &Object,
) -> PyResult<()> {
    let py = this.py();
    let message = message.into_pyobject(py)?.into();
    let arguments = [&this.event_loop, &message, exception, &this.object(), &this.protocol_or_none(py)];
    imports(py)?.report_protocol.call(py, &arguments).map(drop)
}

/// Writes to asyncio's log what happened to a transport.
pub fn log<T: Transport>(this: This<'_, '_, T>, level: &str, message: &str) -> PyResult<()> {
    let py = this.py();
    imports(py)?.logger.bind(py).call_method1(level, (message, this.as_any())).map(drop)
}

/// Tells the protocol to pause if more waits to be sent than the high-water mark.
pub fn pause_protocol<T: Transport>(this: This<'_, '_, T>, queued: usize) -> PyResult<()> {
    if !this.flow.must_pause(queued) {
        return Ok(());
    }
    let py = this.py();
    let Some(protocol) = this.protocol.get() else { return Ok(()) };
    let result = protocol.call_method0(py, intern!(py, "pause_writing"));
    report_failure(this, result, "protocol.pause_writing() failed")
}

/// Tells the protocol to resume if it was told to pause and no more than the low-water mark waits.
pub fn resume_protocol<T: Transport>(this: This<'_, '_, T>, queued: usize) -> PyResult<()> {
    if !this.flow.must_resume(queued) {
        return Ok(());
    }
    let py = this.py();
    let Some(protocol) = this.protocol.get() else { return Ok(()) };
    let result = protocol.call_method0(py, intern!(py, "resume_writing"));
    report_failure(this, result, "protocol.resume_writing() failed")
}
