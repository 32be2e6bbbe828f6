//! What is to be sent, and when it is sent:
//!
//! - now: [`Stream::send`], or [`Transport::send_now`] if the socket may be full or the queue empty;
//! - at the end of the iteration, or sooner if that is much: [`Stream::send_in_iteration`], after each write();
//! - at the end of the iteration: [`send_scheduled`], a step that the former has scheduled;
//! - when the socket takes more: [`Stream::write_ready`].
//!
//! All of them call [`Stream::drain`], the only place that sends but for [`Stream::send_slice`], for what needs no queue. Core's `send_scheduled()` calls the steps.

use std::io::{self, IoSlice};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::{Stream, ThisStream};
use crate::core::Parts;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::buffer::Bytes;
use crate::cpython::errors::{OrOsError, os_error};
use crate::cpython::errors::{new_error, no_memory};
use crate::cpython::object::Object;
use crate::intern;
use crate::reactor::socket;
use crate::transports::endpoint::{self, Phase, Transport};
use crate::transports::socket_file::WAIT;
use crate::transports::write_queue::{AfterShort, MAX_DRAIN, Progress, WriteQueue};

/// For some 5 s, another thread waits for the loop to send: the loop may be in a long callback, or wait for that thread.
const SEND_WAITS: u32 = 50_000;
/// The most bytes that write() collects, unless the high-water mark is higher, and how often that mark is doubled for it.
const MAX_COLLECTED: usize = 512 * 1024;
const MAX_DOUBLINGS: u8 = 3;
/// More pieces than a dead connection has left to read.
const MAX_READS: u32 = 256;
const WRITE_FAILED: &str = "Fatal write error on socket transport";

impl Stream {
    /// Queues a chunk, and sends it in this iteration.
    pub fn write(this: ThisStream<'_, '_>, chunk: Bytes) -> PyResult<()> {
        Stream::enqueue(this, 1, |queue| queue.push(chunk))
    }

    pub fn write_several(this: ThisStream<'_, '_>, chunks: Vec<Bytes>) -> PyResult<()> {
        Stream::enqueue(this, chunks.len(), |queue| chunks.into_iter().for_each(|chunk| queue.push(chunk)))
    }

    #[inline(always)]
    fn enqueue(this: ThisStream<'_, '_>, count: usize, push: impl FnOnce(&mut WriteQueue)) -> PyResult<()> {
        if this.is_lost() {
            return Stream::write_lost(this);
        }
        let size = {
            let mut queue = this.queue.borrow_mut();
            if !queue.reserve(count) {
                drop(queue);
                return Err(no_memory(this.py()));
            }
            push(&mut queue);
            queue.size()
        };
        Stream::send_in_iteration(this, size)
    }

    /// The most bytes that write() collects: the high-water mark, or more if the socket has lately taken so many at once.
    #[inline(always)]
    fn collects(&self) -> usize {
        let high = self.flow.high();
        high.max(MAX_COLLECTED.min(high << self.doublings.get()))
    }

    /// Whether so many bytes would be sent by the call that writes them.
    pub fn sends_at_once(&self, size: usize) -> bool {
        size > self.flow.high()
            && !self.refuses_writes()
            && !self.is_lost()
            && !self.registration.is_blocked()
            && self.queue.borrow().is_empty()
    }

    /// Sends what the socket takes of bytes that [`Stream::sends_at_once`]. Returns how many that are, all if the connection is lost.
    #[inline(never)]
    pub fn send_slice(this: ThisStream<'_, '_>, data: &[u8]) -> PyResult<usize> {
        this.core.request_poll();
        let offered = &data[..data.len().min(MAX_DRAIN)];
        let sent = match socket::send(this.file.descriptor(), &[IoSlice::new(offered)]) {
            Ok(count) => count,
            Err(error) if socket::is_not_ready(&error) => 0,
            Err(error) => return Stream::cannot_send(this, error).map(|()| data.len()),
        };
        this.note_written(sent);
        if sent < offered.len() {
            // The caller queues the rest.
            endpoint::set_blocked(this, true)?;
        }
        Ok(if this.is_lost() { data.len() } else { sent })
    }

    #[cold]
    fn write_lost(this: ThisStream<'_, '_>) -> PyResult<()> {
        this.count_lost_write(this.py(), "socket.send() raised exception.")
    }

    /// Sends what is queued, `size` bytes, at the end of the iteration or sooner. Pauses the protocol if too much is left.
    fn send_in_iteration(this: ThisStream<'_, '_>, size: usize) -> PyResult<()> {
        let is_much = size > this.flow.high() && size > this.collects();
        if this.send_is_scheduled.get() && !is_much {
            return Ok(());
        }
        if this.registration.is_blocked() {
            return endpoint::pause_protocol(this, size);
        }
        if is_much {
            return Stream::send_much(this);
        }
        let sends_at_once = cfg!(Py_GIL_DISABLED) && this.sends_at_once.get();
        if sends_at_once || !this.core.schedule_send(BoundMethod::new(this, send_scheduled), &this.parts) {
            return Stream::send(this);
        }
        this.send_is_scheduled.set(true);
        Ok(())
    }

    /// Sends more than is collected. If the socket takes all of it, and the program has written it in a short time, twice as much is
    /// collected from now on: a call that sends more costs less for each byte, and wakes the peer less often.
    #[inline(never)]
    fn send_much(this: ThisStream<'_, '_>) -> PyResult<()> {
        let is_near = this.core.sends_much();
        Stream::send(this)?;
        if !this.registration.is_blocked() {
            this.doublings.set(if is_near { MAX_DOUBLINGS.min(this.doublings.get() + 1) } else { 0 });
        }
        Ok(())
    }

    pub(super) fn can_send(&self) -> bool {
        !self.registration.is_blocked() && !self.is_lost() && !self.queue.borrow().is_empty()
    }

    /// Sends what is queued, in another thread than the event loop's. The latter finds an error, or a full socket, when it sends
    /// the rest.
    pub fn send_in_thread(this: ThisStream<'_, '_>) -> PyResult<()> {
        if let Some(_entered) = this.core.owner.enter() {
            if this.can_send() {
                let _ = Stream::drain(this);
            }
            return Ok(());
        }
        // Without the GIL, the loop does it, at the end of its iteration. From now on, it sends what is written at once.
        this.sends_at_once.set(true);
        for _ in 0..SEND_WAITS {
            if !this.send_is_scheduled.get() {
                return Ok(());
            }
            this.py().detach(|| std::thread::sleep(WAIT));
        }
        Err(new_error::<PyRuntimeError>(
            this.py(),
            "the event loop has not sent what was written to the transport",
        ))
    }

    /// Sends what is queued. If the transport was only waiting for that, connection_lost() is next.
    pub(super) fn send(this: ThisStream<'_, '_>) -> PyResult<()> {
        Stream::send_queued(this)?;
        if this.phase.get() == Phase::Closing && this.queue.borrow().is_empty() {
            return endpoint::schedule_connection_lost(this, None);
        }
        Ok(())
    }

    fn send_queued(this: ThisStream<'_, '_>) -> PyResult<()> {
        match Stream::drain(this) {
            Ok(Progress::Drained) => endpoint::set_blocked(this, false),
            Ok(Progress::Blocked) => {
                this.doublings.set(0);
                endpoint::set_blocked(this, true)?;
                endpoint::pause_protocol(this, this.queued_size())
            }
            Err(error) => Stream::cannot_send(this, error),
        }
    }

    /// Sends as much as the socket takes.
    fn drain(this: ThisStream<'_, '_>) -> io::Result<Progress> {
        this.core.request_poll();
        let fd = this.file.descriptor();
        let send = |slices: &[IoSlice<'_>]| socket::send(fd, slices).inspect(|&sent| this.note_written(sent));
        this.queue.borrow_mut().drain(AfterShort::Wait, send)
    }

    #[cold]
    fn cannot_send(this: ThisStream<'_, '_>, error: io::Error) -> PyResult<()> {
        this.queue.borrow_mut().clear();
        let error = match this.read_error.get() {
            0 => error,
            // The kernel reported this one to a receive. asyncio would have sent before that.
            number => io::Error::from_raw_os_error(number),
        };
        let error = os_error(this.py(), error);
        let exception = Object::from(error.value(this.py()));
        endpoint::fatal_error(this, error, WRITE_FAILED)?;
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
        if !this.eof_written.get() {
            return Ok(());
        }
        Stream::shut_down(this).or_else(|error| Stream::cannot_end(this, error))
    }

    /// The peer will not see the end of what was sent. If it has reset the connection, what it sent before is still there, and the error is
    /// known to who reads it.
    #[cold]
    fn cannot_end(this: ThisStream<'_, '_>, error: PyErr) -> PyResult<()> {
        if this.registration.is_paused() {
            return Err(error);
        }
        for _ in 0..MAX_READS {
            let before = this.traffic.total_read();
            if this.registration.wants_read() {
                endpoint::in_connection_context(this, || Stream::read(this))?;
            }
            if this.is_closing() || this.traffic.total_read() == before {
                break;
            }
        }
        if this.is_lost() { Ok(()) } else { endpoint::fatal_error(this, error, WRITE_FAILED) }
    }

    fn shut_down(this: ThisStream<'_, '_>) -> PyResult<()> {
        this.core.request_poll();
        socket::shutdown_write(this.file.descriptor()).or_os_error(this.py())
    }

    pub fn write_eof(this: ThisStream<'_, '_>) -> PyResult<()> {
        if this.is_closing() || this.eof_written.get() {
            return Ok(());
        }
        Stream::send_now(this)?;
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
        if !waiter.call_method(py, intern!(py, "done"), &[])?.bind(py).is_truthy()? {
            waiter.call_method(py, method, &[value])?;
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
        Stream::send_now(this)?;
        if this.is_lost() {
            // sendfile fails as the queued data did.
            return Err(new_error::<PyRuntimeError>(py, "Transport is closing"));
        }
        let waiter = this.event_loop.call_method(py, intern!(py, "create_future"), &[])?;
        this.empty_waiter.set(Some(waiter.clone()));
        this.refuses_writes.set(true);
        if this.queue.borrow().is_empty() {
            waiter.call_method(py, intern!(py, "set_result"), &[&Object::none(py)])?;
        }
        Ok(waiter)
    }
}

/// Sends what is queued at the end of the iteration. Runs outside of all callbacks.
fn send_scheduled(this: ThisStream<'_, '_>) -> PyResult<()> {
    this.send_is_scheduled.set(false);
    if !this.can_send() {
        return Ok(());
    }
    if this.parts.get() != Parts::One {
        this.parts.set(this.parts.get().after(this.queue.borrow().is_single()));
    }
    match Stream::drain(this) {
        Ok(Progress::Drained) if this.phase.get() == Phase::Open => Ok(()),
        Ok(Progress::Drained) => {
            endpoint::in_connection_context(this, || endpoint::schedule_connection_lost(this, None))
        }
        Ok(Progress::Blocked) => cannot_send_all(this),
        Err(error) => endpoint::in_connection_context(this, || Stream::cannot_send(this, error)),
    }
}

/// The socket took no more at the end of the iteration.
fn cannot_send_all(this: ThisStream<'_, '_>) -> PyResult<()> {
    this.doublings.set(0);
    this.registration.set_blocked(true);
    // The context of the write() is not known here.
    this.drop_write_context();
    endpoint::sync_now(this)
        .or_else(|error| endpoint::in_connection_context(this, || endpoint::cannot_watch(this, error)))?;
    let size = this.queued_size();
    if size > this.flow.high() {
        return endpoint::in_connection_context(this, || endpoint::pause_protocol(this, size));
    }
    this.note_waiting(size);
    Ok(())
}
