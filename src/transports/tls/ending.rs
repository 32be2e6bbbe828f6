//! The ways in which a connection ends: close(), which shuts it down in both directions; abort(); the loss of the transport below.

use pyo3::prelude::*;

use super::engine::Progress;
use super::imports::tls_imports;
use super::{Protocol, State, ThisProtocol, Told, cancel, replace};
use crate::cpython::errors::{made, new_error};
use crate::cpython::object::Object;
use crate::intern;

impl Protocol {
    pub fn start_shutdown(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let state = this.state.get();
        let is_limited = this.shutdown_timer.is_some();
        if state == State::Flushing && this.eof_received.get() && this.reading_is_paused.get() && !is_limited
        {
            // The peer is gone, and the program has yet to read what has come. asyncio waits for that for ever.
            return Protocol::limit_shutdown(this);
        }
        if matches!(state, State::Flushing | State::Shutdown | State::Unwrapped) {
            return Ok(());
        }
        this.close_transport();
        if state == State::Handshake {
            return Protocol::abort(this, None);
        }
        this.set_state(py, State::Flushing)?;
        Protocol::limit_shutdown(this)?;
        Protocol::do_flush(this)
    }

    fn limit_shutdown(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let timer =
            Protocol::call_later(this, &this.timeouts[1], intern!(this.py(), "_check_shutdown_timeout"))?;
        this.shutdown_timer.set(Some(timer));
        Ok(())
    }

    pub fn check_shutdown_timeout(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        if !matches!(this.state.get(), State::Flushing | State::Shutdown) {
            return Ok(());
        }
        let py = this.py();
        let error = new_error::<pyo3::exceptions::PyTimeoutError>(py, "SSL shutdown timed out");
        let exception = Object::from(made(py, error).into_value(py).into_bound(py).into_any());
        this.call_below(py, intern!(py, "_force_close"), &[&exception])
    }

    pub fn do_flush(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        Protocol::do_read(this)?;
        this.set_state(this.py(), State::Shutdown)?;
        Protocol::do_shutdown(this)
    }

    pub fn do_shutdown(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let ended = if this.eof_received.get() { Ok(Progress::Done(())) } else { this.engine.shut_down(py) };
        match ended {
            Ok(Progress::Again) => Protocol::process_outgoing(this),
            Ok(Progress::Done(())) => {
                Protocol::process_outgoing(this)?;
                Protocol::call_eof_received(this)?;
                Protocol::on_shutdown_complete(this)
            }
            Err(error) => {
                let error = made(py, error);
                if !error.value(py).is_instance(&tls_imports(py)?.ssl_error.bind(py))? {
                    return Err(error);
                }
                cancel(py, &this.shutdown_timer)?;
                Protocol::fatal_error(this, error, "Fatal error on transport")
            }
        }
    }

    fn on_shutdown_complete(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        if !tls_imports(py)?.keeps_shutdown_timeout {
            cancel(py, &this.shutdown_timer)?;
        } else if !this.shutdown_timer.is_some() {
            Protocol::limit_shutdown(this)?;
        }
        let Some(below) = this.below.get() else { return Ok(()) };
        let close = Object::from(below.bind(py).getattr(intern!(py, "close"))?);
        this.event_loop.call_method(py, intern!(py, "call_soon"), &[&close]).map(drop)
    }

    pub fn abort(this: ThisProtocol<'_, '_>, exception: Option<Object>) -> PyResult<()> {
        let py = this.py();
        this.set_state(py, State::Unwrapped)?;
        let exception = exception.unwrap_or_else(|| Object::none(py));
        this.call_below(py, intern!(py, "_force_close"), &[&exception])
    }

    pub fn connection_lost(this: ThisProtocol<'_, '_>, exception: &Object) -> PyResult<()> {
        let py = this.py();
        Protocol::finish_waiting_handshake(this)?;
        this.clear_backlog();
        this.engine.drop_output(py)?;
        this.conn_lost.set(this.conn_lost.get().saturating_add(1));
        this.close_transport();
        if this.state.get() != State::Handshake && matches!(this.told.get(), Told::ConnectionMade | Told::Eof)
        {
            this.told.set(Told::ConnectionLost);
            if let Some(protocol) = this.protocol.get() {
                let lost = Object::from(protocol.bind(py).getattr(intern!(py, "connection_lost"))?);
                this.event_loop.call_method(py, intern!(py, "call_soon"), &[&lost, exception])?;
            }
        }
        this.set_state(py, State::Unwrapped)?;
        replace(this, &this.below, None);
        this.transport.set(None);
        replace(this, &this.protocol, None);
        let exception = Some(exception).filter(|exception| !exception.is_none());
        Protocol::wake_up_waiter(this, exception)?;
        cancel(py, &this.shutdown_timer)?;
        cancel(py, &this.handshake_timer)
    }
}
