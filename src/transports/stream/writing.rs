//! What is to be sent, and the moments when it is.

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::{Phase, Stream, ThisStream, stream};
use crate::cpython::object::{Bytes, Object, copy_context};
use crate::cpython::os_error::{OrOsError, os_error};
use crate::imports::imports;
use crate::reactor::socket;
use crate::transports::write_queue::Progress;

impl Stream {
    /// Queues chunks, to be sent at the end of the iteration.
    pub fn write(this: ThisStream<'_, '_>, chunks: impl IntoIterator<Item = Bytes>) -> PyResult<()> {
        let py = this.py();
        if this.is_lost() {
            return this.count_lost_write(py);
        }
        let size = {
            let mut queue = this.queue.borrow_mut();
            chunks.into_iter().for_each(|chunk| queue.push(chunk));
            queue.size()
        };
        if size == 0 {
            return Ok(());
        }
        if this.blocked.get() {
            return Stream::pause_protocol_if_above(this, size);
        }
        if size > this.flow.high() {
            Stream::flush(this)?;
            let size = this.queue.borrow().size();
            return Stream::pause_protocol_if_above(this, size);
        }
        if !this.flush_scheduled.get() {
            if !this.core.flush_later(&this.object(), flush_step) {
                return Stream::flush(this);
            }
            this.flush_scheduled.set(true);
        }
        Ok(())
    }

    /// asyncio's LOG_THRESHOLD_FOR_CONNLOST_WRITES: so many writes to a lost connection pass in silence.
    fn count_lost_write(&self, py: Python<'_>) -> PyResult<()> {
        let count = self.lost_writes.get().saturating_add(1);
        self.lost_writes.set(count);
        if count >= 5 { imports(py)?.log_lost_write.call(py, &[]).map(drop) } else { Ok(()) }
    }

    pub fn pause_protocol_if_above(this: ThisStream<'_, '_>, size: usize) -> PyResult<()> {
        if size <= this.flow.high() {
            return Ok(());
        }
        let py = this.py();
        this.with_parties(&this.object(), py, |parties| this.flow.pause_if_above(py, size, parties))
    }

    /// Sends what is queued, unless the socket has said that it takes no more.
    pub fn flush_unless_blocked(this: ThisStream<'_, '_>) -> PyResult<()> {
        if this.blocked.get() || this.queue.borrow().is_empty() { Ok(()) } else { Stream::flush(this) }
    }

    /// Sends what is queued; what the socket does not take waits until it becomes writable.
    fn flush(this: ThisStream<'_, '_>) -> PyResult<()> {
        Stream::send_queued(this)?;
        if this.phase.get() == Phase::Closing && this.queue.borrow().is_empty() {
            return this.lose(this.py(), &this.object(), None);
        }
        Ok(())
    }

    fn send_queued(this: ThisStream<'_, '_>) -> PyResult<()> {
        let py = this.py();
        if this.is_lost() {
            return Ok(());
        }
        this.core.stir();
        let progress = this.queue.borrow_mut().send(this.fd);
        match progress {
            Ok(Progress::Drained) => {
                if this.blocked.replace(false) {
                    Stream::sync_interest(this)?;
                }
                Ok(())
            }
            Ok(Progress::Blocked) => {
                if !this.blocked.replace(true) {
                    if this.context.is_none() {
                        this.write_context.set(Some(copy_context(py)?));
                    }
                    Stream::sync_interest(this)?;
                }
                Ok(())
            }
            Err(error) => {
                this.queue.borrow_mut().clear();
                let error = os_error(error);
                let exception = Object::from(error.value(py));
                Stream::fail(py, &this, error, "Fatal write error on socket transport")?;
                if let Some(waiter) = this.empty_waiter.get() {
                    waiter.call_method1(py, intern!(py, "set_exception"), &exception)?;
                }
                Ok(())
            }
        }
    }

    /// The socket can be written to again.
    pub(super) fn write_ready(this: ThisStream<'_, '_>) -> PyResult<()> {
        let py = this.py();
        Stream::send_queued(this)?;
        if this.is_lost() {
            return Ok(());
        }
        let size = this.queue.borrow().size();
        this.with_parties(&this.object(), py, |parties| this.flow.resume_if_below(py, size, parties))?;
        // The protocol may have written more, or closed.
        if this.is_lost() || !this.queue.borrow().is_empty() {
            return Ok(());
        }
        if let Some(waiter) = this.empty_waiter.get() {
            waiter.call_method1(py, intern!(py, "set_result"), &Object::none(py))?;
        }
        if this.phase.get() == Phase::Closing {
            this.phase.set(Phase::Lost);
            return Stream::call_connection_lost(this, &Object::none(py));
        }
        if this.eof_written.get() {
            socket::shutdown_write(this.fd).or_os_error()?;
        }
        Ok(())
    }

    pub fn write_eof(this: ThisStream<'_, '_>) -> PyResult<()> {
        if this.is_closing() || this.eof_written.get() {
            return Ok(());
        }
        Stream::flush_unless_blocked(this)?;
        if this.is_lost() {
            return Ok(());
        }
        this.eof_written.set(true);
        if this.queue.borrow().is_empty() {
            socket::shutdown_write(this.fd).or_os_error()?;
        }
        Ok(())
    }

    pub fn make_empty_waiter(this: ThisStream<'_, '_>) -> PyResult<Object> {
        let py = this.py();
        if this.empty_waiter.is_some() {
            return Err(PyRuntimeError::new_err("Empty waiter is already set"));
        }
        Stream::flush_unless_blocked(this)?;
        let waiter = this.event_loop.call_method0(py, intern!(py, "create_future"))?;
        this.empty_waiter.set(Some(waiter.clone()));
        if this.queue.borrow().is_empty() {
            waiter.call_method1(py, intern!(py, "set_result"), &Object::none(py))?;
        }
        Ok(waiter)
    }
}

/// Sends at the end of the iteration.
fn flush_step(py: Python<'_>, object: &Object) -> PyResult<()> {
    let stream = stream(object)?;
    stream.flush_scheduled.set(false);
    let was_blocked = stream.blocked.get();
    Stream::flush_unless_blocked(stream.this(py))?;
    if stream.blocked.get() && !was_blocked {
        // The present context is not the writer's, which is gone.
        stream.write_context.set(None);
    }
    Ok(())
}
