//! The ways in which a transport ends, as in asyncio:
//!
//! ```text
//! close() ───────── nothing is queued ────────────────> Lost ── connection_lost step ──> Closed
//!   └─ Closing ──── the queue is sent: finish_closing() ──────────────────────────────────^
//! fatal_error() ──> force_close() ────────────────────> Lost
//! ```
//!
//! Any of them can be called in any phase, and by Python code that another of them runs.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::{
    Phase, Transport, call_protocol, connection_lost, registration, replace_protocol, report, shared_or_copy,
};
use crate::core::ReadyEntry;
use crate::core::recorder::Kind;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::This;
use crate::cpython::errors::new_error;
use crate::cpython::object::Object;
use crate::handle::reraise_fatal;
use crate::imports::imports;
use crate::intern;

/// asyncio's close(): closes when what is queued has been sent.
pub fn close<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    if this.is_closing() {
        return Ok(());
    }
    T::send_now(this)?;
    if this.is_closing() {
        return Ok(());
    }
    this.registration.stop_reading();
    if this.has_queued() {
        this.phase.set(Phase::Closing);
        return Ok(());
    }
    schedule_connection_lost(this, None)
}

/// asyncio's _force_close(): closes at once, with an exception for connection_lost().
pub fn force_close<T: Transport>(this: This<'_, '_, T>, exception: Option<Object>) -> PyResult<()> {
    if this.is_lost() {
        return Ok(());
    }
    // asyncio has sent by now what was written.
    T::send_now(this)?;
    if this.is_lost() {
        return Ok(());
    }
    this.clear_queue();
    this.note_waiting(0);
    this.registration.want_nothing();
    schedule_connection_lost(this, exception)
}

/// Schedules connection_lost(). If the event loop is closed, closes the descriptor at once, and fails with asyncio's RuntimeError.
pub fn schedule_connection_lost<T: Transport>(
    this: This<'_, '_, T>,
    exception: Option<Object>,
) -> PyResult<()> {
    this.phase.set(Phase::Lost);
    this.get().on_lost();
    if this.core.is_closed() {
        tear_down(this)?;
        return Err(new_error::<PyRuntimeError>(this.py(), "Event loop is closed"));
    }
    // Without memory for a context of its own, the protocol is told in another of the connection's.
    let context = shared_or_copy(this.py(), &this.context);
    this.lost_context.set(Some(context.or_else(|error| this.read_context.get().ok_or(error))?));
    this.lost_exception.set(exception);
    this.core.push(ReadyEntry::Step(BoundMethod::new(this, connection_lost::<T>)));
    // As in asyncio: the program may close the socket before that, and watch another of its number.
    registration::unregister(this);
    this.keep_source_traceback(this.py())
}

/// asyncio's _fatal_error(): reports an error, a connection error in debug mode only, and force-closes.
pub fn fatal_error<T: Transport>(this: This<'_, '_, T>, error: PyErr, message: &str) -> PyResult<()> {
    let py = this.py();
    let exception = reraise_fatal(py, error)?;
    // asyncio has sent by now what was written; what the report's Python code writes is sent by force_close().
    T::send_now(this)?;
    if !T::is_connection_error(py, &exception) {
        report(this, message, &exception)?;
    } else if this.debug() {
        let arguments = [&this.object(), &Object::from_str(py, message)?, &exception];
        imports(py)?.log_connection_error.call(py, &arguments)?;
    }
    force_close(this, Some(exception))
}

/// Ends a closing transport whose queue has been sent. False if it is not closing.
pub fn finish_closing<T: Transport>(this: This<'_, '_, T>) -> PyResult<bool> {
    if this.phase.get() != Phase::Closing {
        return Ok(false);
    }
    this.phase.set(Phase::Lost);
    registration::unregister(this);
    call_connection_lost(this, &Object::none(this.py()))?;
    Ok(true)
}

pub fn call_connection_lost<T: Transport>(this: This<'_, '_, T>, exception: &Object) -> PyResult<()> {
    let py = this.py();
    let called = call_protocol(this, intern!(py, "connection_lost"), &[exception]);
    let released = tear_down(this);
    let ended = T::after_lost(this);
    called.and(released).and(ended)
}

/// Ends the registration, after which the descriptor can be closed.
pub fn unregister<T: Transport>(this: This<'_, '_, T>) {
    if this.phase.replace(Phase::Closed) != Phase::Closed {
        this.core.metrics.close_transport();
        this.core.recorder.note(Kind::Closed, this.fd);
    }
    registration::unregister(this);
}

/// Unregisters and closes the descriptor, and drops the protocol.
pub fn tear_down<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    unregister(this);
    // The peer may be in this event loop.
    this.core.request_poll();
    let closed = this.get().close_file(this.py(), &this.object());
    this.clear_queue();
    this.note_waiting(0);
    replace_protocol(this, None);
    closed
}

/// `__del__`: warns about a transport that was not closed, and closes it.
pub fn finalize<T: Transport>(this: This<'_, '_, T>) {
    if this.phase.get() == Phase::Closed {
        return;
    }
    let py = this.py();
    let warned = imports(py).and_then(|imports| imports.warn_unclosed.call(py, &[&this.object()]));
    let released = tear_down(this);
    if let Err(error) = warned.map(drop).and(released) {
        error.write_unraisable(py, Some(&this.as_any()));
    }
}
