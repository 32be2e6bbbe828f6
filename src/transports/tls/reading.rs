//! What comes: from the transport below to the program's protocol.

use pyo3::prelude::*;

use super::engine::Plain;
use super::{Protocol, State, ThisProtocol, Told, caught};
use crate::core::Core;
use crate::cpython::names::Name;
use crate::cpython::object::Object;
use crate::handle::reraise_fatal;
use crate::intern;
use crate::transports::endpoint;

static DATA_RECEIVED: Name = Name::new("data_received");

impl Protocol {
    /// asyncio's `buffer_updated()`.
    pub fn receive(this: ThisProtocol<'_, '_>, data: &[u8]) -> PyResult<()> {
        this.engine.feed(this.py(), &this.core, data, || match this.state.get() {
            State::Wrapped => Protocol::do_read(this),
            State::Handshake => Protocol::do_handshake_in_time(this),
            State::Flushing => Protocol::do_flush(this),
            State::Shutdown => Protocol::do_shutdown(this),
            State::Unwrapped => Ok(()),
        })
    }

    /// Whether the transport stays open for the program to close it.
    pub fn eof_came(this: ThisProtocol<'_, '_>) -> PyResult<bool> {
        let begun = Protocol::finish_waiting_handshake(this);
        this.eof_received.set(true);
        begun.and_then(|()| Protocol::on_eof(this)).or_else(|error| {
            let py = this.py();
            let error = PyErr::from_value(caught(py, error)?.into_bound(py));
            this.call_below(py, intern!(py, "close"), &[])?;
            Err(error)
        })
    }

    fn on_eof(this: ThisProtocol<'_, '_>) -> PyResult<bool> {
        let py = this.py();
        if this.debug() {
            Protocol::log(this, "%r received EOF", &[])?;
        }
        match this.state.get() {
            State::Handshake => Protocol::handshake_reset(this)?,
            State::Wrapped => {
                this.set_state(py, State::Flushing)?;
                if this.reading_is_paused.get() {
                    return Ok(true);
                }
                Protocol::do_flush(this)?;
            }
            State::Flushing => {
                Protocol::do_write(this)?;
                this.set_state(py, State::Shutdown)?;
                Protocol::do_shutdown(this)?;
            }
            State::Shutdown => Protocol::do_shutdown(this)?,
            State::Unwrapped => {}
        }
        Ok(false)
    }

    #[inline(always)]
    pub fn do_read(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        if !matches!(this.state.get(), State::Wrapped | State::Flushing) {
            return Ok(());
        }
        Protocol::read(this).or_else(|error| {
            let exception = caught(this.py(), error)?;
            Protocol::fatal_exception(this, &exception, "Fatal error on SSL protocol")
        })
    }

    fn read(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        if !this.reading_is_paused.get() {
            if this.is_buffered.get() { Protocol::read_buffered(this) } else { Protocol::read_copied(this) }?;
            if this.has_backlog() { Protocol::do_write(this) } else { Protocol::process_outgoing(this) }?;
        }
        Protocol::control_reading(this)
    }

    fn read_copied(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let core: &Core = &this.core;
        let Plain { data, closed } = this.engine.read_all(py, core)?;
        if let Some(data) = data
            && let Some(protocol) = this.protocol.get()
        {
            let count = data.bind(py).len()?;
            let adopted = endpoint::adopt_streams(py, &this.event_loop, &protocol, count);
            protocol.call_method(py, DATA_RECEIVED.get(py)?, &[&data])?;
            adopted?;
        }
        if closed { Protocol::end_of_stream(this) } else { Ok(()) }
    }

    fn read_buffered(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        let hint = Object::from_size(py, this.engine.incoming(py)?)?;
        let buffer = protocol.call_method(py, intern!(py, "get_buffer"), &[&hint])?;
        let size = buffer.bind(py).len()?;
        let (count, closed) = this.engine.read_into(py, &this.core, &buffer)?;
        if count >= size && !closed && count > 0 {
            Protocol::call_soon(this, intern!(py, "_do_read"))?;
        }
        drop(buffer);
        if count > 0
            && let Some(protocol) = this.protocol.get()
        {
            protocol.call_method(py, intern!(py, "buffer_updated"), &[&Object::from_size(py, count)?])?;
        }
        if closed { Protocol::end_of_stream(this) } else { Ok(()) }
    }

    /// The peer has sent a close_notify.
    #[cold]
    fn end_of_stream(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        Protocol::call_eof_received(this)?;
        Protocol::start_shutdown(this)
    }

    pub fn call_eof_received(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        if this.told.get() != Told::ConnectionMade {
            return Ok(());
        }
        this.told.set(Told::Eof);
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        let called = protocol
            .call_method(py, intern!(py, "eof_received"), &[])
            .and_then(|keep_open| keep_open.bind(py).is_truthy());
        let logged = called.and_then(|keep_open| {
            if keep_open {
                let message =
                    Object::from_str(py, "returning true from eof_received() has no effect when using ssl")?;
                let imports = crate::imports::imports(py)?;
                imports.logger.call_method(py, intern!(py, "warning"), &[&message])?;
            }
            Ok(())
        });
        logged.or_else(|error| {
            let exception = reraise_fatal(py, error)?;
            Protocol::fatal_exception(this, &exception, "Error calling eof_received()")
        })
    }

    pub fn pause_reading(&self) {
        self.reading_is_paused.set(true);
    }

    pub fn resume_reading(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        if !this.reading_is_paused.replace(false) {
            return Ok(());
        }
        Protocol::call_soon(this, intern!(this.py(), "_resume"))
    }

    /// Goes on after resume_reading().
    pub fn resume(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        match this.state.get() {
            State::Wrapped => Protocol::do_read(this),
            State::Flushing => Protocol::do_flush(this),
            State::Shutdown => Protocol::do_shutdown(this),
            State::Unwrapped | State::Handshake => Ok(()),
        }
    }

    /// asyncio's `_control_ssl_reading()`: has the transport below read as long as there is not too much that the program does not
    /// take.
    pub fn control_reading(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let size = this.engine.incoming(py)?;
        if size >= this.incoming_limits.high() && !this.below_is_paused.get() {
            this.below_is_paused.set(true);
            this.call_below(py, intern!(py, "pause_reading"), &[])?;
        } else if size <= this.incoming_limits.low() && this.below_is_paused.get() {
            this.below_is_paused.set(false);
            this.call_below(py, intern!(py, "resume_reading"), &[])?;
        }
        Ok(())
    }
}
