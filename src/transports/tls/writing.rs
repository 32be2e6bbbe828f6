//! What goes: from the program to the transport below.

use pyo3::Borrowed;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::engine::Progress;
use super::{Protocol, State, ThisProtocol, caught};
use crate::cpython::buffer::{Bytes, has_buffer};
use crate::cpython::errors::{new_error, no_memory};
use crate::cpython::object::Object;
use crate::handle::reraise_fatal;
use crate::imports::imports;
use crate::intern;
use crate::reserve::try_grow;
use crate::transports::endpoint::count_lost_write;
use crate::transports::methods::is_bytes_like;
use crate::transports::stream::Stream;

impl Protocol {
    pub fn has_backlog(&self) -> bool {
        !self.backlog.borrow().chunks.is_empty()
    }

    pub fn clear_backlog(&self) {
        *self.backlog.borrow_mut() = Default::default();
    }

    /// The transport's write().
    #[inline(always)]
    pub fn write(this: ThisProtocol<'_, '_>, data: Borrowed<'_, '_, PyAny>) -> PyResult<()> {
        let py = this.py();
        if Bytes::from_borrowed(data).is_none() && !is_bytes_like(&data) {
            let kind = data.get_type().name()?;
            let message = format!("data: expecting a bytes-like instance, got {kind}");
            return Err(new_error::<PyTypeError>(py, message));
        }
        if !data.is_truthy()? {
            return Ok(());
        }
        if this.state.get() != State::Wrapped || this.has_backlog() {
            return Protocol::write_lines(this, &[Object::from(data)]);
        }
        let data = Object::from(data);
        let mut written = 0;
        let encrypted = this.engine.write(py, &this.core, &data, &mut written);
        let sent = match encrypted {
            Ok(Progress::Done(())) => Protocol::process_outgoing(this),
            Ok(Progress::Again) => {
                Protocol::queue(this, &data, written).and_then(|()| Protocol::process_outgoing(this))
            }
            Err(error) => Protocol::queue(this, &data, written).and(Err(error)),
        };
        sent.or_else(|error| Protocol::write_failed(this, error))
    }

    #[cold]
    fn write_failed(this: ThisProtocol<'_, '_>, error: PyErr) -> PyResult<()> {
        let exception = caught(this.py(), error)?;
        Protocol::fatal_exception(this, &exception, "Fatal error on SSL protocol")
    }

    /// The transport's writelines(), and what write() does while it cannot encrypt at once.
    pub fn write_lines(this: ThisProtocol<'_, '_>, lines: &[Object]) -> PyResult<()> {
        let py = this.py();
        if matches!(this.state.get(), State::Flushing | State::Shutdown | State::Unwrapped) {
            return count_lost_write(py, &this.conn_lost, "SSL connection is closed");
        }
        for line in lines {
            // What has no length fails here, what is not bytes-like when it is encrypted: as in asyncio.
            line.bind(py).len()?;
            if has_buffer(line) {
                Protocol::queue(this, line, 0)?;
                continue;
            }
            let kind = line.bind(py).get_type().name()?.to_string();
            let error =
                new_error::<PyTypeError>(py, format!("a bytes-like object is required, not '{kind}'"));
            return Protocol::write_failed(this, error);
        }
        if this.state.get() != State::Wrapped {
            return Ok(());
        }
        Protocol::do_write(this).or_else(|error| Protocol::write_failed(this, error))
    }

    /// Keeps all but the first `written` bytes of an object to be encrypted.
    pub fn queue(this: ThisProtocol<'_, '_>, data: &Object, written: usize) -> PyResult<()> {
        let py = this.py();
        let chunk = match Bytes::from_exact(data) {
            Some(bytes) => bytes,
            None => Bytes::copy_of(py, data)?,
        };
        let length = chunk.as_slice().len();
        if length <= written && length > 0 {
            return Ok(());
        }
        if !try_grow(&mut this.backlog.borrow_mut().chunks, 1) {
            return Err(no_memory(py));
        }
        let mut backlog = this.backlog.borrow_mut();
        if backlog.chunks.is_empty() {
            backlog.written = written;
        }
        backlog.size += length - written;
        backlog.chunks.push_back(chunk);
        Ok(())
    }

    pub fn do_write(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        loop {
            let first = {
                let backlog = this.backlog.borrow();
                backlog.chunks.front().map(|chunk| (chunk.as_object().clone(), backlog.written))
            };
            let Some((chunk, before)) = first else { break };
            let mut written = before;
            let progress = this.engine.write(py, &this.core, &chunk, &mut written);
            {
                let mut backlog = this.backlog.borrow_mut();
                // A callback of OpenSSL's may have ended the connection.
                if !backlog.chunks.front().is_some_and(|front| front.as_object().is(&chunk)) {
                    break;
                }
                backlog.size -= written - before;
                backlog.written = written;
                if matches!(progress, Ok(Progress::Done(()))) {
                    backlog.written = 0;
                    backlog.chunks.pop_front();
                }
            }
            if matches!(progress?, Progress::Again) {
                break;
            }
        }
        Protocol::process_outgoing(this)
    }

    /// Passes what is encrypted to the transport below, unless that has enough.
    #[inline(always)]
    pub fn process_outgoing(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        if !this.below_is_full.get()
            && let Some(data) =
                this.engine.take_output(this.py(), &this.core, |data| Protocol::send_at_once(this, data))?
        {
            Protocol::send(this, data)?;
        }
        Protocol::control_writing(this)
    }

    /// Sends what is too much to be queued, if nothing else waits. Returns how much was sent.
    #[inline(always)]
    fn send_at_once(this: ThisProtocol<'_, '_>, data: &[u8]) -> PyResult<usize> {
        match this.stream() {
            Some(stream) if stream.sends_at_once(data.len()) => {
                Stream::send_slice(stream.this(this.py()), data)
            }
            _ => Ok(0),
        }
    }

    fn send(this: ThisProtocol<'_, '_>, data: Object) -> PyResult<()> {
        let py = this.py();
        if let Some(stream) = this.stream()
            && !stream.refuses_writes()
            && let Some(bytes) = Bytes::from_exact(&data)
        {
            return Stream::write(stream.this(py), bytes);
        }
        this.call_below(py, intern!(py, "write"), &[&data])
    }

    /// How many bytes are to be encrypted, and how many to be passed on.
    pub fn queued_size(&self, py: Python<'_>) -> PyResult<usize> {
        let outgoing = self.engine.outgoing(py)?;
        Ok(outgoing + self.backlog.borrow().size)
    }

    /// asyncio's `_control_app_writing()`.
    #[inline(always)]
    pub fn control_writing(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let size = this.queued_size(py)?;
        if size >= this.outgoing_limits.high() && !this.writing_is_paused.get() {
            this.writing_is_paused.set(true);
            Protocol::call_flow_control(this, "pause_writing")
        } else if size <= this.outgoing_limits.low() && this.writing_is_paused.get() {
            this.writing_is_paused.set(false);
            Protocol::call_flow_control(this, "resume_writing")
        } else {
            Ok(())
        }
    }

    #[cold]
    fn call_flow_control(this: ThisProtocol<'_, '_>, method: &str) -> PyResult<()> {
        let py = this.py();
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        let name = if method == "pause_writing" {
            intern!(py, "pause_writing")
        } else {
            intern!(py, "resume_writing")
        };
        let Err(error) = protocol.call_method(py, name, &[]) else { return Ok(()) };
        let exception = reraise_fatal(py, error)?;
        let message = Object::from_str(py, &format!("protocol.{method}() failed"))?;
        let transport = this.transport.get().unwrap_or_else(|| Object::none(py));
        let arguments = [&this.event_loop, &message, &exception, &transport, &this.object()];
        imports(py)?.report_protocol.call(py, &arguments).map(drop)
    }

    /// The transport below has enough to send.
    pub fn pause_below(&self) {
        self.below_is_full.set(true);
    }

    pub fn resume_below(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        this.below_is_full.set(false);
        Protocol::process_outgoing(this)
    }
}
