//! One attempt at an operation: the system call, or the socket's own method.

use std::ffi::c_int;
use std::io;
use std::os::fd::RawFd;

use pyo3::exceptions::{PyBlockingIOError, PyBufferError, PyInterruptedError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::{Operation, SocketOperation};
use crate::core::recorder::Kind;
use crate::core::{RECEIVE_BUFFER, Received};
use crate::cpython::buffer::{ReadableBuffer, new_bytes, with_writable_buffer_and};
use crate::cpython::errors::{new_error, numbered, os_error};
use crate::cpython::object::{Object, boolean};
use crate::imports::imports;
use crate::intern;
use crate::reactor::socket;

impl SocketOperation {
    fn note_connected(&self, py: Python<'_>) -> PyResult<()> {
        self.core.metrics.counts.connected.add(1);
        if self.core.recorder.is_on() {
            let fd = self.socket.call_method(py, intern!(py, "fileno"), &[])?.bind(py).extract()?;
            self.core.recorder.note(Kind::Connected, fd);
        }
        Ok(())
    }

    pub(super) fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let fd = self.socket.call_method(py, intern!(py, "fileno"), &[])?.bind(py).extract()?;
        self.tried.set(Some(fd));
        Ok(fd)
    }

    /// Tries to do the operation; None if the socket is not ready.
    #[inline(always)]
    pub(super) fn attempt(&self, py: Python<'_>) -> PyResult<Option<Object>> {
        let socket = &self.socket;
        match &self.operation {
            Operation::Recv(size) if self.by_method.get() => {
                unless_blocked(py, socket.call_method(py, intern!(py, "recv"), &[size]))
            }
            Operation::Recv(size) => self.recv(py, size),
            Operation::RecvInto(buffer) if self.by_method.get() => {
                unless_blocked(py, socket.call_method(py, intern!(py, "recv_into"), &[buffer]))
            }
            Operation::RecvInto(buffer) => {
                // The buffer comes first: making it can run Python code, which may close the socket.
                let descriptor = || self.fileno(py);
                let received = with_writable_buffer_and(py, buffer, descriptor, |fd, memory| {
                    if memory.is_empty() { Ok(0) } else { socket::recv(fd, memory) }
                });
                let received = match received {
                    Err(error)
                        if error.is_instance_of::<PyBufferError>(py)
                            || error.is_instance_of::<PyTypeError>(py) =>
                    {
                        // The socket's method says it in words of its own.
                        return unless_blocked(
                            py,
                            socket.call_method(py, intern!(py, "recv_into"), &[buffer]),
                        );
                    }
                    received => received?,
                };
                match ready(py, received)? {
                    Some(received) => Ok(Some(Object::from_size(py, received)?)),
                    None => Ok(None),
                }
            }
            Operation::RecvFrom(size) => {
                unless_blocked(py, socket.call_method(py, intern!(py, "recvfrom"), &[size]))
            }
            Operation::RecvFromInto(buffer, size) => {
                let size = match size.bind(py).is_truthy()? {
                    true => size.clone(),
                    false => Object::from_size(py, buffer.bind(py).len()?)?,
                };
                unless_blocked(py, socket.call_method(py, intern!(py, "recvfrom_into"), &[buffer, &size]))
            }
            Operation::SendAll { data, sent, .. } if self.by_method.get() => {
                let so_far = Object::from_size(py, sent.get())?;
                let progress = imports(py)?.send_by_method.call(py, &[&self.socket, data, &so_far]);
                let Some(progress) = unless_blocked(py, progress)? else {
                    return Ok(None);
                };
                let (so_far, is_all): (usize, bool) = progress.bind(py).extract()?;
                sent.set(so_far);
                Ok(is_all.then(|| Object::none(py)))
            }
            Operation::SendAll { data, view, sent } => {
                let buffer = match view.take() {
                    Some(buffer) => buffer,
                    None => ReadableBuffer::new(data, py)?,
                };
                // The buffer comes first, as above.
                let fd = self.fileno(py)?;
                self.core.request_poll();
                let rest = buffer.memory().skip(sent.get());
                // No bytes are sent, too: they can be a datagram.
                let result = socket::send_one(fd, rest);
                let left = rest.length();
                view.set(Some(buffer));
                let Some(count) = ready(py, result)? else { return Ok(None) };
                sent.set(sent.get() + count);
                Ok((count == left).then(|| Object::none(py)))
            }
            Operation::SendTo(data, address) => {
                self.core.request_poll();
                unless_blocked(py, socket.call_method(py, intern!(py, "sendto"), &[data, address]))
            }
            Operation::Accept => {
                let accepted = unless_blocked(py, socket.call_method(py, intern!(py, "accept"), &[]))?;
                if let Some(accepted) = &accepted {
                    self.core.metrics.counts.accepted.add(1);
                    let connection = Object::from(accepted.bind(py).get_item(0)?);
                    if self.core.recorder.is_on() {
                        let fd =
                            connection.call_method(py, intern!(py, "fileno"), &[])?.bind(py).extract()?;
                        self.core.recorder.note(Kind::Accepted, fd);
                    }
                    connection.call_method(py, intern!(py, "setblocking"), &[&boolean(py, false)])?;
                    // asyncio's result is a pair, as accept()'s is.
                }
                Ok(accepted)
            }
            Operation::Connect { address, begun } => {
                self.core.request_poll();
                if !begun.replace(true) {
                    let connected =
                        unless_blocked(py, socket.call_method(py, intern!(py, "connect"), &[address]))?;
                    if connected.is_some() {
                        self.note_connected(py)?;
                    }
                    return Ok(connected);
                }
                let option = [libc::SOL_SOCKET, libc::SO_ERROR];
                let [level, name] = option.map(|number| Object::from_int(py, number));
                let error: c_int = socket
                    .call_method(py, intern!(py, "getsockopt"), &[&level?, &name?])?
                    .bind(py)
                    .extract()?;
                if error != 0 {
                    let message = format!("Connect call failed {}", address.bind(py).str()?);
                    return Err(numbered(py, error, &message));
                }
                self.note_connected(py)?;
                Ok(Some(Object::none(py)))
            }
        }
    }

    fn recv(&self, py: Python<'_>, size: &Object) -> PyResult<Option<Object>> {
        let Ok(count) = usize::try_from(size.bind(py).extract::<isize>()?) else {
            return Err(new_error::<PyValueError>(py, "negative buffersize in recv"));
        };
        let fd = self.fileno(py)?;
        if count == 0 {
            return new_bytes(py, b"").map(Some);
        }
        if count > RECEIVE_BUFFER && !socket::is_stream(fd) {
            // The rest of a datagram would be lost.
            return unless_blocked(py, self.socket.call_method(py, intern!(py, "recv"), &[size]));
        }
        match self.core.receive_at_once(py, fd, count, &self.core.recv_size_hint)? {
            Received::Data(data, _) => Ok(Some(data)),
            Received::Nothing => Ok(None),
        }
    }
}

/// None for an error that says that the socket is not ready.
fn ready<T>(py: Python<'_>, result: io::Result<T>) -> PyResult<Option<T>> {
    match result {
        Ok(result) => Ok(Some(result)),
        Err(error) if socket::is_not_ready(&error) => Ok(None),
        Err(error) => Err(os_error(py, error)),
    }
}

/// [`ready`] for Python's socket methods.
fn unless_blocked(py: Python<'_>, result: PyResult<Object>) -> PyResult<Option<Object>> {
    match result {
        Ok(result) => Ok(Some(result)),
        Err(error)
            if error.is_instance_of::<PyBlockingIOError>(py)
                || error.is_instance_of::<PyInterruptedError>(py) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
