//! The handshake.

use pyo3::exceptions::PyConnectionResetError;
use pyo3::prelude::*;

use super::engine::Progress;
use super::imports::tls_imports;
use super::{Protocol, State, ThisProtocol, Told, cancel, caught, replace};
use crate::core::ReadyEntry;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::errors::{error_of, made, new_error};
use crate::cpython::object::{Object, tuple};
use crate::handle::reraise_fatal;
use crate::imports::imports;
use crate::intern;
use crate::transports::endpoint;
use crate::transports::stream::BUFFER_UPDATED_FAILED;

/// How many bytes a handshake that waits may keep: a peer might send any number meanwhile.
const WAITING: usize = 16 * 1024;

/// How a handshake ended.
pub enum Handshake {
    Done,
    Failed(PyErr),
}

impl Protocol {
    pub fn connection_made(this: ThisProtocol<'_, '_>, below: Object) -> PyResult<()> {
        replace(this, &this.below, Some(below));
        Protocol::start_handshake(this)
    }

    fn start_handshake(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        if this.debug() {
            Protocol::log(this, "%r starts SSL handshake", &[])?;
            this.handshake_start.set(Protocol::time(this)?);
        }
        this.set_state(py, State::Handshake)?;
        let timer = Protocol::call_later(this, &this.timeouts[0], intern!(py, "_check_handshake_timeout"))?;
        this.handshake_timer.set(Some(timer));
        Protocol::do_handshake(this)
    }

    fn time(this: ThisProtocol<'_, '_>) -> PyResult<f64> {
        let py = this.py();
        this.event_loop.call_method(py, intern!(py, "time"), &[])?.bind(py).extract()
    }

    pub fn log(this: ThisProtocol<'_, '_>, message: &str, values: &[&Object]) -> PyResult<()> {
        let py = this.py();
        let (message, object) = (Object::from_str(py, message)?, this.object());
        let arguments: Vec<_> = [&message, &object].into_iter().chain(values.iter().copied()).collect();
        imports(py)?.logger.call_method(py, intern!(py, "debug"), &arguments).map(drop)
    }

    pub fn check_handshake_timeout(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        if this.state.get() != State::Handshake {
            return Ok(());
        }
        let py = this.py();
        let message = format!(
            "SSL handshake is taking longer than {} seconds: aborting the connection",
            this.timeouts[0].bind(py).str()?
        );
        let error = new_error::<pyo3::exceptions::PyConnectionAbortedError>(py, message);
        Protocol::fatal_error(this, made(py, error), "Fatal error on transport")
    }

    /// A step of the handshake, now or in another iteration.
    pub fn do_handshake_in_time(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        if this.engine.incoming(this.py())? > WAITING {
            this.handshake_waits.set(false);
            return Protocol::do_handshake(this);
        }
        if this.handshake_waits.get() {
            return Ok(());
        }
        if let Some(done) = this.core.shake_hands(|| Protocol::do_handshake(this)) {
            return done;
        }
        // What is to be run later has the stream's context.
        if this.stream().is_none() {
            return Protocol::do_handshake(this);
        }
        this.handshake_waits.set(true);
        this.core.push(ReadyEntry::Step(BoundMethod::new(this, go_on)));
        Ok(())
    }

    /// Does what is left of what has come, before the end.
    pub fn finish_waiting_handshake(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let waits = this.handshake_waits.replace(false) && this.state.get() == State::Handshake;
        if waits { Protocol::do_handshake(this) } else { Ok(()) }
    }

    pub fn do_handshake(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        match this.engine.shake_hands(py) {
            Ok(Progress::Again) => Protocol::process_outgoing(this),
            Ok(Progress::Done(())) => Protocol::on_handshake_complete(this, Handshake::Done),
            Err(error) => {
                let error = made(py, error);
                if !error.value(py).is_instance(&tls_imports(py)?.ssl_error.bind(py))? {
                    return Err(error);
                }
                Protocol::on_handshake_complete(this, Handshake::Failed(error))
            }
        }
    }

    /// The handshake ends as a peer that has gone ends it.
    pub fn handshake_reset(this: ThisProtocol<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let error = error_of::<PyConnectionResetError>(py, &tuple(py, &[])?);
        Protocol::on_handshake_complete(this, Handshake::Failed(error))
    }

    fn on_handshake_complete(this: ThisProtocol<'_, '_>, handshake: Handshake) -> PyResult<()> {
        let py = this.py();
        cancel(py, &this.handshake_timer)?;
        let completed = match handshake {
            Handshake::Failed(error) => Err(error),
            Handshake::Done => this.set_state(py, State::Wrapped).and_then(|()| {
                let engine = Object::from_str(py, this.engine.name())?;
                let arguments = [&this.engine.ssl_object, &this.extra, &engine];
                tls_imports(py)?.complete_handshake.call(py, &arguments).map(drop)
            }),
        };
        if let Err(error) = completed {
            let exception = caught(py, error)?;
            this.set_state(py, State::Unwrapped)?;
            let is_of_certificate =
                exception.bind(py).is_instance(&tls_imports(py)?.certificate_error.bind(py))?;
            let message = if is_of_certificate {
                "SSL handshake failed on verifying the certificate"
            } else {
                "SSL handshake failed"
            };
            Protocol::fatal_exception(this, &exception, message)?;
            return Protocol::wake_up_waiter(this, Some(&exception));
        }
        if this.debug() {
            let took = (Protocol::time(this)? - this.handshake_start.get()) * 1e3;
            Protocol::log(this, "%r: SSL handshake took %.1f ms", &[&Object::from_float(py, took)?])?;
        }
        if this.told.get() == Told::Nothing {
            this.told.set(Told::ConnectionMade);
            if let (Some(protocol), Some(transport)) = (this.protocol.get(), this.transport.get()) {
                protocol.call_method(py, intern!(py, "connection_made"), &[&transport])?;
            }
        }
        Protocol::wake_up_waiter(this, None)?;
        Protocol::do_read(this)
    }

    pub fn wake_up_waiter(this: ThisProtocol<'_, '_>, exception: Option<&Object>) -> PyResult<()> {
        let py = this.py();
        let Some(waiter) = this.waiter.get() else { return Ok(()) };
        if !waiter.call_method(py, intern!(py, "cancelled"), &[])?.bind(py).is_truthy()? {
            match exception {
                Some(exception) => waiter.call_method(py, intern!(py, "set_exception"), &[exception])?,
                None => waiter.call_method(py, intern!(py, "set_result"), &[&Object::none(py)])?,
            };
        }
        this.waiter.set(None);
        Ok(())
    }

    /// asyncio's `_fatal_error()`.
    pub fn fatal_error(this: ThisProtocol<'_, '_>, error: PyErr, message: &str) -> PyResult<()> {
        let exception = reraise_fatal(this.py(), error)?;
        Protocol::fatal_exception(this, &exception, message)
    }

    pub fn fatal_exception(this: ThisProtocol<'_, '_>, exception: &Object, message: &str) -> PyResult<()> {
        let py = this.py();
        let below = this.below.get();
        this.call_below(py, intern!(py, "_force_close"), &[exception])?;
        let message = Object::from_str(py, message)?;
        let none = Object::none(py);
        let below = below.as_ref().unwrap_or(&none);
        let arguments = [&this.event_loop, &this.object(), below, exception, &message];
        tls_imports(py)?.report_error.call(py, &arguments).map(drop)
    }
}

/// Goes on with a handshake that waits.
fn go_on(this: ThisProtocol<'_, '_>) -> PyResult<()> {
    let waits = this.handshake_waits.replace(false) && this.state.get() == State::Handshake;
    let Some(stream) = this.stream().filter(|_| waits) else { return Ok(()) };
    let stream = stream.this(this.py());
    endpoint::in_read_context(stream, || {
        Protocol::do_handshake_in_time(this)
            .or_else(|error| endpoint::fatal_error(stream, error, BUFFER_UPDATED_FAILED))
    })
}
