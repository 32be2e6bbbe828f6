//! What is to be sent, and the moments when it is.

use std::io;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::{Stream, ThisStream};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::buffer::Bytes;
use crate::cpython::errors::{OrOsError, os_error};
use crate::cpython::errors::{new_error, no_memory};
use crate::cpython::object::Object;
use crate::intern;
use crate::reactor::socket;
use crate::transports::endpoint::{self, Phase, Transport};
use crate::transports::write_queue::Progress;

impl Stream {
    /// Queues a chunk, to be sent at the end of the iteration or sooner.
    pub fn write(this: ThisStream<'_, '_>, chunk: Bytes) -> PyResult<()> {
        if this.is_lost() {
            return Stream::write_lost(this);
        }
        let size = {
            let mut queue = this.queue.borrow_mut();
            if !queue.reserve(1) {
                drop(queue);
                return Err(no_memory(this.py()));
            }
            queue.push(chunk);
            queue.size()
        };
        Stream::flush_in_time(this, size)
    }

    /// Queues several chunks.
    pub fn write_several(this: ThisStream<'_, '_>, chunks: Vec<Bytes>) -> PyResult<()> {
        if this.is_lost() {
            return Stream::write_lost(this);
        }
        let size = {
            let mut queue = this.queue.borrow_mut();
            if !queue.reserve(chunks.len()) {
                drop(queue);
                return Err(no_memory(this.py()));
            }
            chunks.into_iter().for_each(|chunk| queue.push(chunk));
            queue.size()
        };
        if size == 0 { Ok(()) } else { Stream::flush_in_time(this, size) }
    }

    #[cold]
    fn write_lost(this: ThisStream<'_, '_>) -> PyResult<()> {
        this.count_lost_write(this.py(), "socket.send() raised exception.")
    }

    /// Sees to it that what is queued, `size` bytes, is sent at the end of the iteration, or sooner.
    fn flush_in_time(this: ThisStream<'_, '_>, size: usize) -> PyResult<()> {
        if this.flush_scheduled.get() && size <= this.flow.high() {
            return Ok(());
        }
        if this.blocked.get() {
            return endpoint::pause_protocol(this, size);
        }
        if size > this.flow.high() {
            Stream::flush(this)?;
            return endpoint::pause_protocol(this, this.queued_size());
        }
        if !this.core.flush_later(BoundMethod::new(this, flush_step)) {
            return Stream::flush(this);
        }
        this.flush_scheduled.set(true);
        Ok(())
    }

    /// Sends what is queued, unless the socket has said that it takes no more.
    pub fn flush_unless_blocked(this: ThisStream<'_, '_>) -> PyResult<()> {
        if this.blocked.get() || this.queue.borrow().is_empty() { Ok(()) } else { Stream::flush(this) }
    }

    /// Sends what is queued, in another thread than the event loop's, which hears of errors and of a full socket when it sends
    /// the rest.
    pub fn send_in_thread(this: ThisStream<'_, '_>) {
        // GIL: the event loop's thread is not sending meanwhile.
        if !this.blocked.get() && !this.is_lost() {
            let _ = Stream::drain(this);
        }
    }

    /// Sends what is queued; what the socket does not take waits until it becomes writable.
    fn flush(this: ThisStream<'_, '_>) -> PyResult<()> {
        Stream::send_queued(this)?;
        if this.phase.get() == Phase::Closing && this.queue.borrow().is_empty() {
            return endpoint::schedule_connection_lost(this, None);
        }
        Ok(())
    }

    fn send_queued(this: ThisStream<'_, '_>) -> PyResult<()> {
        let py = this.py();
        if this.is_lost() {
            return Ok(());
        }
        match Stream::drain(this) {
            Ok(Progress::Drained) => {
                if this.blocked.replace(false) {
                    endpoint::watch(this)?;
                }
                Ok(())
            }
            Ok(Progress::Blocked) => {
                if !this.blocked.replace(true) {
                    this.note_writer(py)?;
                    endpoint::watch(this)?;
                }
                Ok(())
            }
            Err(error) => Stream::cannot_send(this, error),
        }
    }

    /// Sends as much as the socket takes.
    fn drain(this: ThisStream<'_, '_>) -> io::Result<Progress> {
        this.core.request_poll();
        let written = &this.core.metrics.counts.bytes_written;
        let fd = this.file.descriptor();
        this.queue.borrow_mut().drain(written, |slices| socket::send(fd, slices))
    }

    #[cold]
    fn cannot_send(this: ThisStream<'_, '_>, error: io::Error) -> PyResult<()> {
        this.queue.borrow_mut().clear();
        let error = match this.read_error.get() {
            0 => error,
            // The kernel has told this one before, and told the reader. asyncio would have sent by then.
            number => io::Error::from_raw_os_error(number),
        };
        let error = os_error(this.py(), error);
        let exception = Object::from(error.value(this.py()));
        endpoint::fatal_error(this, error, "Fatal write error on socket transport")?;
        Stream::end_wait(this, intern!(this.py(), "set_exception"), &exception)
    }

    /// The socket can be written to again.
    pub(super) fn write_ready(this: ThisStream<'_, '_>) -> PyResult<()> {
        let py = this.py();
        Stream::send_queued(this)?;
        if this.is_lost() {
            return Ok(());
        }
        let size = this.queue.borrow().size();
        endpoint::resume_protocol(this, size)?;
        // The protocol may have written more, or closed.
        if this.is_lost() || !this.queue.borrow().is_empty() {
            return Ok(());
        }
        Stream::end_wait(this, intern!(py, "set_result"), &Object::none(py))?;
        if endpoint::finish_closing(this)? {
            return Ok(());
        }
        if this.eof_written.get() {
            Stream::shut_down(this)?;
        }
        Ok(())
    }

    fn shut_down(this: ThisStream<'_, '_>) -> PyResult<()> {
        this.core.request_poll();
        socket::shutdown_write(this.file.descriptor()).or_os_error(this.py())
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
        this.refuses_writes.set(true);
        if this.queue.borrow().is_empty() {
            Stream::shut_down(this)?;
        }
        Ok(())
    }

    /// Resolves the future that sendfile waits for, unless that was cancelled.
    fn end_wait(this: ThisStream<'_, '_>, method: &Bound<'_, PyString>, value: &Object) -> PyResult<()> {
        let py = this.py();
        let Some(waiter) = this.empty_waiter.get() else { return Ok(()) };
        if !waiter.call_method0(py, intern!(py, "done"))?.bind(py).is_truthy()? {
            waiter.call_method1(py, method, value)?;
        }
        Ok(())
    }

    pub fn reset_empty_waiter(this: ThisStream<'_, '_>) {
        this.empty_waiter.set(None);
        this.refuses_writes.set(this.eof_written.get());
    }

    pub fn make_empty_waiter(this: ThisStream<'_, '_>) -> PyResult<Object> {
        let py = this.py();
        if this.empty_waiter.is_some() {
            return Err(new_error::<PyRuntimeError>(py, "Empty waiter is already set"));
        }
        Stream::flush_unless_blocked(this)?;
        if this.is_lost() {
            // What is written to a connection that has failed fails, too.
            return Err(new_error::<PyRuntimeError>(py, "Transport is closing"));
        }
        let waiter = this.event_loop.call_method0(py, intern!(py, "create_future"))?;
        this.empty_waiter.set(Some(waiter.clone()));
        this.refuses_writes.set(true);
        if this.queue.borrow().is_empty() {
            waiter.call_method1(py, intern!(py, "set_result"), &Object::none(py))?;
        }
        Ok(waiter)
    }
}

/// Sends at the end of the iteration.
fn flush_step(this: ThisStream<'_, '_>) -> PyResult<()> {
    this.flush_scheduled.set(false);
    if this.blocked.get() || this.is_lost() {
        return Ok(());
    }
    if this.queue.borrow().is_empty() {
        return Ok(());
    }
    match Stream::drain(this) {
        Ok(Progress::Drained) if this.phase.get() == Phase::Open => Ok(()),
        Ok(Progress::Drained) => {
            endpoint::in_connection_context(this, || endpoint::schedule_connection_lost(this, None))
        }
        Ok(Progress::Blocked) => {
            this.blocked.set(true);
            // The writer's context is gone.
            this.forget_writer();
            endpoint::watch_in_connection_context(this)
        }
        Err(error) => endpoint::in_connection_context(this, || Stream::cannot_send(this, error)),
    }
}
