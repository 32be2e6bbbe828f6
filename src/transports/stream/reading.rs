//! What arrives: data, the end of the stream, errors.

use std::io;

use pyo3::exceptions::{PyBufferError, PyRuntimeError, PyTypeError};
use pyo3::prelude::*;

use super::{ProtocolKind, Stream, ThisStream};
use crate::core;
use crate::cpython::buffer::with_writable_buffer;
use crate::cpython::class::Obj;
use crate::cpython::errors::new_error;
use crate::cpython::errors::os_error;
use crate::cpython::names::Name;
use crate::cpython::object::Object;
use crate::intern;
use crate::reactor::socket;
use crate::transports::endpoint::{self, Narrowing};
use crate::transports::tls;

enum Received {
    /// What had arrived was delivered.
    Done,
    End,
}

const READ_FAILED: &str = "Fatal read error on socket transport";
pub const BUFFER_UPDATED_FAILED: &str = "Fatal error: protocol.buffer_updated() call failed.";

/// An error, and the message for the exception handler.
type Failure = (PyErr, &'static str);

fn no_data(this: ThisStream<'_, '_>, error: io::Error) -> Result<Received, Failure> {
    if socket::is_not_ready(&error) {
        return Ok(Received::Done);
    }
    Err(Stream::read_failed(this, os_error(this.py(), error)))
}

static DATA_RECEIVED: Name = Name::new("data_received");
static GET_BUFFER: Name = Name::new("get_buffer");
static BUFFER_UPDATED: Name = Name::new("buffer_updated");

/// Calls a method of the protocol with one argument.
#[inline(always)]
fn call(py: Python<'_>, protocol: &Object, method: &'static Name, argument: &Object) -> PyResult<Object> {
    protocol.call_method(py, method.get(py)?, &[argument])
}

/// The TypeError of a socket's recv_into(), if `buffer` is not a writable buffer.
#[cold]
fn to_recv_into_error(py: Python<'_>, error: PyErr, buffer: &Object) -> PyErr {
    if !error.is_instance_of::<PyBufferError>(py) && !error.is_instance_of::<PyTypeError>(py) {
        return error;
    }
    let Ok(kind) = buffer.bind(py).get_type().name() else { return error };
    let message = format!("recv_into() argument 1 must be read-write bytes-like object, not {kind}");
    new_error::<PyTypeError>(py, message)
}

impl Stream {
    pub(super) fn read(this: ThisStream<'_, '_>) -> PyResult<()> {
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        if this.read_error.get() != 0 {
            return Stream::fail_with_known_error(this);
        }
        let received = match this.kind.get() {
            ProtocolKind::Streaming => Stream::receive(this, &protocol),
            ProtocolKind::Buffered => Stream::receive_into_buffer(this, &protocol),
            ProtocolKind::Tls => Stream::receive_for_tls(this, &protocol),
        };
        match received {
            Ok(Received::Done) => Ok(()),
            Ok(Received::End) => Stream::end_of_stream(this, &protocol),
            Err((error, message)) => endpoint::fatal_error(this, error, message),
        }
    }

    /// Notes an error of the socket, which the kernel reports once: sending fails with another one afterwards.
    #[cold]
    fn read_failed(this: ThisStream<'_, '_>, error: PyErr) -> Failure {
        let py = this.py();
        let number = || error.value(py).getattr(intern!(py, "errno"))?.extract();
        if let Ok(number) = number() {
            this.read_error.set(number);
        }
        (error, READ_FAILED)
    }

    /// Ends the transport with an error that followed data.
    #[cold]
    fn fail_with_known_error(this: ThisStream<'_, '_>) -> PyResult<()> {
        let error = io::Error::from_raw_os_error(this.read_error.get());
        endpoint::fatal_error(this, os_error(this.py(), error), READ_FAILED)
    }

    fn receive(this: ThisStream<'_, '_>, protocol: &Object) -> Result<Received, Failure> {
        let py = this.py();
        let fd = this.file.descriptor();
        let received = this.core.receive(py, fd, &this.recv_size_hint, &this.read_error);
        let (data, adopted) = match received.map_err(|error| Stream::read_failed(this, error))? {
            core::Received::Data(_, 0) => return Ok(Received::End),
            core::Received::Data(data, count) => {
                this.note_read(count);
                (data, endpoint::adopt_streams(py, &this.event_loop, protocol, count))
            }
            core::Received::Nothing => return Ok(Received::Done),
        };
        // An interrupt must not lose the data.
        match call(py, protocol, &DATA_RECEIVED, &data).and(adopted) {
            Ok(()) => Ok(Received::Done),
            Err(error) => Err((error, "Fatal error: protocol.data_received() call failed.")),
        }
    }

    #[inline(never)]
    fn receive_into_buffer(this: ThisStream<'_, '_>, protocol: &Object) -> Result<Received, Failure> {
        let py = this.py();
        let get_buffer_failed = |error| (error, "Fatal error: protocol.get_buffer() call failed.");
        let hint = Object::from_int(py, -1).map_err(get_buffer_failed)?;
        let buffer = call(py, protocol, &GET_BUFFER, &hint).map_err(get_buffer_failed)?;
        let empty =
            || get_buffer_failed(new_error::<PyRuntimeError>(py, "get_buffer() returned an empty buffer"));
        if !buffer.is_plain_buffer() && buffer.bind(py).len().map_err(get_buffer_failed)? == 0 {
            return Err(empty());
        }
        let received = with_writable_buffer(py, &buffer, |memory| {
            (!memory.is_empty()).then(|| socket::recv(this.file.descriptor(), memory))
        });
        let received = received.map_err(|error| (to_recv_into_error(py, error, &buffer), READ_FAILED))?;
        match received.ok_or_else(empty)? {
            Ok(0) => Ok(Received::End),
            Ok(count) => {
                this.note_read(count);
                let updated = Object::from_size(py, count)
                    .and_then(|count| call(py, protocol, &BUFFER_UPDATED, &count));
                match updated {
                    Ok(_) => Ok(Received::Done),
                    Err(error) => Err((error, BUFFER_UPDATED_FAILED)),
                }
            }
            Err(error) => no_data(this, error),
        }
    }

    fn receive_for_tls(this: ThisStream<'_, '_>, protocol: &Object) -> Result<Received, Failure> {
        let py = this.py();
        let Some(protocol) = Obj::<tls::Protocol>::downcast(protocol) else { return Ok(Received::Done) };
        let received = this.core.with_buffer(py, core::LEAST, |buffer| {
            match socket::recv(this.file.descriptor(), &mut *buffer) {
                Ok(0) => Ok(Received::End),
                Ok(count) => {
                    this.note_read(count);
                    match tls::Protocol::receive(protocol.this(py), &buffer[..count]) {
                        Ok(()) => Ok(Received::Done),
                        Err(error) => Err((error, BUFFER_UPDATED_FAILED)),
                    }
                }
                Err(error) => no_data(this, error),
            }
        });
        received.map_err(|error| (error, READ_FAILED))?
    }

    fn end_of_stream(this: ThisStream<'_, '_>, protocol: &Object) -> PyResult<()> {
        let py = this.py();
        if this.debug() {
            endpoint::log(this, "debug", "%r received EOF")?;
        }
        let keep_open = protocol
            .call_method(py, intern!(py, "eof_received"), &[])
            .and_then(|keep_open| keep_open.bind(py).is_truthy());
        match keep_open {
            Ok(true) => {
                this.registration.stop_reading();
                endpoint::sync(this, Narrowing::AtNextEvent)
            }
            Ok(false) => endpoint::close(this),
            Err(error) => {
                endpoint::fatal_error(this, error, "Fatal error: protocol.eof_received() call failed.")
            }
        }
    }
}
