//! What arrives: data, the end of the stream, errors.

use std::io;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::{ProtocolKind, Stream, ThisStream};
use crate::core::RECEIVE_BUFFER;
use crate::cpython::object::{Object, new_bytes, with_writable_buffer};
use crate::cpython::os_error::os_error;
use crate::reactor::socket;
use crate::transports::endpoint;

enum Received {
    Data(Object),
    /// Nothing that is not delivered yet.
    Nothing,
    End,
}

const READ_FAILED: &str = "Fatal read error on socket transport";

/// What is received is copied into a bytes object of its size if it is usually less than this, which the interpreter
/// allocates cheaply...
const SMALL: usize = 480;
/// ...and what is larger than this is not to take up much more memory than it needs: a program may keep it.
const LARGE: usize = 8 * 1024;

/// An error, and what to say of it.
type Failure = (PyErr, &'static str);

fn no_data(error: io::Error) -> Result<Received, Failure> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Received::Nothing),
        _ => Err((os_error(error), READ_FAILED)),
    }
}

impl Stream {
    pub(super) fn read(this: ThisStream<'_, '_>) -> PyResult<()> {
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        let received = match this.kind.get() {
            ProtocolKind::Streaming => Stream::receive(this, &protocol),
            ProtocolKind::Buffered => Stream::receive_into_buffer(this, &protocol),
        };
        match received {
            Ok(Received::Data(_) | Received::Nothing) => Ok(()),
            Ok(Received::End) => Stream::end_of_stream(this, &protocol),
            Err((error, message)) => endpoint::fail(this, error, message),
        }
    }

    fn receive(this: ThisStream<'_, '_>, protocol: &Object) -> Result<Received, Failure> {
        let py = this.py();
        let usual = this.usual_size.get();
        let received = if usual < SMALL {
            Stream::receive_and_copy(this, &[])
        } else {
            Stream::receive_into_bytes(this, usual)
        };
        let received = received?;
        let Received::Data(data) = received else { return Ok(received) };
        match protocol.call_method1(py, intern!(py, "data_received"), &data) {
            Ok(_) => Ok(Received::Nothing),
            Err(error) => Err((error, "Fatal error: protocol.data_received() call failed.")),
        }
    }

    /// Receives into the loop's buffer, behind what was received already.
    fn receive_and_copy(this: ThisStream<'_, '_>, begun: &[u8]) -> Result<Received, Failure> {
        let py = this.py();
        this.core.with_buffer(|buffer| {
            let (front, rest) = buffer.split_at_mut(begun.len());
            let count = match socket::recv(this.fd, rest) {
                Ok(count) => begun.len() + count,
                // The end or the error comes again with the next event.
                Err(_) if !begun.is_empty() => begun.len(),
                Err(error) => return no_data(error),
            };
            if count == 0 {
                return Ok(Received::End);
            }
            front.copy_from_slice(begun);
            this.note_size(count);
            new_bytes(py, &buffer[..count]).map(Received::Data).map_err(|error| (error, READ_FAILED))
        })
    }

    /// Receives into a bytes object, with room for what usually comes and some more.
    fn receive_into_bytes(this: ThisStream<'_, '_>, usual: usize) -> Result<Received, Failure> {
        let py = this.py();
        let size = (usual + usual / 4).min(RECEIVE_BUFFER);
        let mut blank = this.core.blank_bytes(py, size).map_err(|error| (error, READ_FAILED))?;
        let slice = blank.as_mut_slice();
        let capacity = slice.len();
        let count = match socket::recv(this.fd, slice) {
            Ok(count) => count,
            Err(error) => {
                this.core.put_back(blank);
                return no_data(error);
            }
        };
        if count == 0 {
            this.core.put_back(blank);
            return Ok(Received::End);
        }
        if count == capacity && count < RECEIVE_BUFFER {
            // There may be more.
            let received = Stream::receive_and_copy(this, blank.as_mut_slice());
            this.core.put_back(blank);
            return received;
        }
        this.note_size(count);
        let least = if capacity <= LARGE { capacity / 2 } else { capacity - capacity / 4 };
        if count < least {
            // Too little to keep that much memory for.
            let data = new_bytes(py, &blank.as_mut_slice()[..count]).map_err(|error| (error, READ_FAILED));
            this.core.put_back(blank);
            return data.map(Received::Data);
        }
        Ok(Received::Data(this.core.hand_out(blank, count)))
    }

    /// Follows what comes: up at once, down slowly.
    fn note_size(&self, size: usize) {
        let usual = self.usual_size.get();
        self.usual_size.set(if size >= usual { size } else { usual - (usual - size) / 8 });
    }

    fn receive_into_buffer(this: ThisStream<'_, '_>, protocol: &Object) -> Result<Received, Failure> {
        let py = this.py();
        let get_buffer_failed = |error| (error, "Fatal error: protocol.get_buffer() call failed.");
        let hint =
            (-1).into_pyobject(py).map(|hint| Object::from(&hint)).unwrap_or_else(|never| match never {});
        let buffer =
            protocol.call_method1(py, intern!(py, "get_buffer"), &hint).map_err(get_buffer_failed)?;
        let empty = || get_buffer_failed(PyRuntimeError::new_err("get_buffer() returned an empty buffer"));
        if !buffer.is_plain_buffer() && buffer.bind(py).len().map_err(get_buffer_failed)? == 0 {
            return Err(empty());
        }
        let received = with_writable_buffer(py, &buffer, |memory| {
            (!memory.is_empty()).then(|| socket::recv(this.fd, memory))
        });
        match received.map_err(|error| (error, READ_FAILED))?.ok_or_else(empty)? {
            Ok(0) => Ok(Received::End),
            Ok(count) => {
                let updated = count.into_pyobject(py).map_err(PyErr::from).and_then(|count| {
                    protocol.call_method1(py, intern!(py, "buffer_updated"), &count.into())
                });
                match updated {
                    Ok(_) => Ok(Received::Nothing),
                    Err(error) => Err((error, "Fatal error: protocol.buffer_updated() call failed.")),
                }
            }
            Err(error) => no_data(error),
        }
    }

    fn end_of_stream(this: ThisStream<'_, '_>, protocol: &Object) -> PyResult<()> {
        let py = this.py();
        if this.debug() {
            endpoint::log(this, "debug", "%r received EOF")?;
        }
        let keep_open = protocol
            .call_method0(py, intern!(py, "eof_received"))
            .and_then(|keep_open| keep_open.bind(py).is_truthy());
        match keep_open {
            Ok(true) => {
                this.wants_read.set(false);
                endpoint::sync_hold(this)
            }
            Ok(false) => endpoint::close(this),
            Err(error) => endpoint::fail(this, error, "Fatal error: protocol.eof_received() call failed."),
        }
    }
}
