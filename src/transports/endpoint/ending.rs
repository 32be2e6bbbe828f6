//! The ways in which a transport ends.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::{Phase, Transport, call_protocol, connection_lost, report, sync_interest};
use crate::core::ReadyEntry;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::This;
use crate::cpython::errors::new_error;
use crate::cpython::object::{Object, copy_context};
use crate::handle::reraise_fatal;
use crate::imports::imports;
use crate::intern;

/// Closes when what is queued has been sent.
pub fn close<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    if this.is_closing() {
        return Ok(());
    }
    T::flush(this)?;
    if this.is_closing() {
        return Ok(());
    }
    this.wants_read.set(false);
    if this.has_queued() {
        this.phase.set(Phase::Closing);
        return Ok(());
    }
    schedule_connection_lost(this, None)
}

/// Closes at once, with an exception for connection_lost().
pub fn force_close<T: Transport>(this: This<'_, '_, T>, exception: Option<Object>) -> PyResult<()> {
    if this.is_lost() {
        return Ok(());
    }
    // asyncio has sent by now what was written, as far as the descriptor took it.
    T::flush(this)?;
    if this.is_lost() {
        return Ok(());
    }
    this.clear_queue();
    this.blocked.set(false);
    this.wants_read.set(false);
    schedule_connection_lost(this, exception)
}

/// Schedules connection_lost(). RuntimeError if the event loop is closed, and will not call it: then the descriptor is
/// closed at once.
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
    let context = match &this.context {
        Some(context) => context.clone(),
        None => copy_context(this.py())?,
    };
    this.lost_context.set(Some(context));
    this.note_source(this.py())?;
    this.lost_exception.set(exception);
    this.core.push(ReadyEntry::Step(BoundMethod::new(this, connection_lost::<T>)));
    Ok(())
}

/// Ends the connection because of an error, which is reported unless it is a usual one.
pub fn fatal_error<T: Transport>(this: This<'_, '_, T>, error: PyErr, message: &str) -> PyResult<()> {
    let py = this.py();
    let exception = reraise_fatal(py, error)?;
    // asyncio has sent by now what was written.
    T::flush(this)?;
    if !T::is_connection_error(py, &exception) {
        report(this, message, &exception)?;
    } else if this.debug() {
        let arguments = [&this.object(), &Object::from_str(py, message)?, &exception];
        imports(py)?.log_connection_error.call(py, &arguments)?;
    }
    force_close(this, Some(exception))
}

/// Ends a transport that was closing until everything was sent, which it is. False if it was not closing.
pub fn finish_closing<T: Transport>(this: This<'_, '_, T>) -> PyResult<bool> {
    if this.phase.get() != Phase::Closing {
        return Ok(false);
    }
    this.phase.set(Phase::Lost);
    call_connection_lost(this, &Object::none(this.py()))?;
    Ok(true)
}

pub fn call_connection_lost<T: Transport>(this: This<'_, '_, T>, exception: &Object) -> PyResult<()> {
    let py = this.py();
    let reported = call_protocol(this, intern!(py, "connection_lost"), &[exception]);
    let released = tear_down(this);
    let ended = T::after_lost(this);
    reported.and(released).and(ended)
}

/// Has nothing to do with the descriptor any more.
pub fn unregister<T: Transport>(this: This<'_, '_, T>) {
    if this.phase.replace(Phase::Closed) != Phase::Closed {
        this.core.metrics.close_transport();
    }
    this.wants_read.set(false);
    this.blocked.set(false);
    if let Some(token) = this.token.take() {
        this.core.detach(this.py(), token);
    }
    if T::SHARES {
        // Nothing is wanted any more, and to stop watching cannot fail.
        let _ = sync_interest(this);
    }
}

/// Closes the descriptor and lets go of everything.
pub fn tear_down<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    unregister(this);
    // The peer may be in this loop.
    this.core.request_poll();
    let closed = this.get().close_file(this.py(), &this.object());
    this.clear_queue();
    this.protocol.set(None);
    closed
}

/// What `__del__` does to a transport that nobody closed.
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
