//! Datagrams to be sent.

use std::io;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use super::{Datagram, Outgoing, ThisDatagram, is_not_ready};
use crate::cpython::buffer::{Bytes, with_buffer};
use crate::cpython::errors::os_error;
use crate::cpython::errors::{new_error, no_memory};
use crate::cpython::object::Object;
use crate::intern;
use crate::reactor::datagram::send_to;
use crate::reactor::socket;
use crate::reserve::try_grow;
use crate::transports::endpoint::{self, Phase};

/// What became of an attempt to send.
enum Sent {
    Done,
    /// The socket takes no more for now.
    Blocked,
    Failed(PyErr),
}

impl Datagram {
    /// Sends a bytes-like object, to `address` unless the socket is connected.
    pub fn send(this: ThisDatagram<'_, '_>, data: &Object, address: Option<Object>) -> PyResult<()> {
        let py = this.py();
        let mut address = address;
        if let Some(only) = &this.address {
            if let Some(given) = &address
                && !given.is(only)
                && !given.bind(py).eq(only.bind(py))?
            {
                let only = only.bind(py).str()?;
                return Err(new_error::<PyValueError>(
                    py,
                    format!("Invalid address: must be None or {only}"),
                ));
            }
            address = Some(only.clone());
        }
        let lost = this.is_lost() && (this.address.is_some() || this.phase.get() == Phase::Closed);
        if lost {
            return this.count_lost_write(py, "socket.send() raised exception.");
        }
        this.leave_to_parent();
        if !this.has_queued_datagrams() {
            match Datagram::transmit(this, data, address.as_ref())? {
                Sent::Done => return Ok(()),
                Sent::Failed(error) => return Datagram::send_failed(this, error),
                Sent::Blocked => {
                    this.registration.set_blocked(true);
                    this.keep_write_context(py)?;
                    endpoint::sync_or_end(this)?;
                }
            }
        }
        let data = match Bytes::from_exact(data) {
            Some(data) => data,
            // The program may change its own object while the copy is queued.
            None => Bytes::copy_of(py, data)?,
        };
        if !try_grow(&mut this.queue.borrow_mut(), 1) {
            return Err(no_memory(py));
        }
        this.queued.set(this.queued.get() + data.as_slice().len() + this.header);
        this.queue.borrow_mut().push_back(Outgoing { data, address });
        endpoint::pause_protocol(this, this.queued.get())
    }

    fn has_queued_datagrams(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    fn transmit(this: ThisDatagram<'_, '_>, data: &Object, address: Option<&Object>) -> PyResult<Sent> {
        let py = this.py();
        this.core.request_poll();
        let fd = this.file.descriptor();
        if this.file.has_peer() {
            let sent = with_buffer(py, data, |data| to_sent(this, send_to(fd, data, None)));
            return Ok(sent.unwrap_or_else(Sent::Failed));
        }
        if let Some(address) = address.and_then(|address| this.addresses.for_kernel(py, address)) {
            let sent = with_buffer(py, data, |data| to_sent(this, send_to(fd, data, Some(&address))));
            return Ok(sent.unwrap_or_else(Sent::Failed));
        }
        let address = address.cloned().unwrap_or_else(|| Object::none(py));
        let socket = this.file.python_socket(py)?;
        let sent = socket.call_method(py, intern!(py, "sendto"), &[data, &address]);
        Ok(match sent {
            Ok(sent) => {
                this.note_written(sent.bind(py).extract().unwrap_or(0));
                Sent::Done
            }
            Err(error) if is_not_ready(py, &error) => Sent::Blocked,
            Err(error) => Sent::Failed(error),
        })
    }

    /// An OSError goes to the protocol's error_received(), whose own errors go to the caller. Anything else ends the transport.
    fn send_failed(this: ThisDatagram<'_, '_>, error: PyErr) -> PyResult<()> {
        let py = this.py();
        if !error.is_instance_of::<PyOSError>(py) {
            return endpoint::fatal_error(this, error, "Fatal write error on datagram transport");
        }
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        protocol.call_method(py, intern!(py, "error_received"), &[&Object::from(error.value(py))]).map(drop)
    }

    /// The socket takes more again.
    pub(super) fn write_ready(this: ThisDatagram<'_, '_>) -> PyResult<()> {
        let py = this.py();
        this.leave_to_parent();
        loop {
            let Some(Outgoing { data, address }) = this.queue.borrow_mut().pop_front() else { break };
            let size = data.as_slice().len() + this.header;
            match Datagram::transmit(this, data.as_object(), address.as_ref())? {
                Sent::Blocked => {
                    this.queue.borrow_mut().push_front(Outgoing { data, address });
                    break;
                }
                Sent::Done => this.queued.set(this.queued.get().saturating_sub(size)),
                Sent::Failed(error) => {
                    this.queued.set(this.queued.get().saturating_sub(size));
                    if error.is_instance_of::<PyOSError>(py) {
                        return Datagram::call_error_received(this, error);
                    }
                    return Datagram::send_failed(this, error);
                }
            }
        }
        endpoint::resume_protocol(this, this.queued.get())?;
        // The protocol may have sent more, or closed.
        if this.is_lost() || this.has_queued_datagrams() {
            return Ok(());
        }
        this.registration.set_blocked(false);
        if endpoint::finish_closing(this)? { Ok(()) } else { endpoint::sync_or_end(this) }
    }
}

fn to_sent(this: ThisDatagram<'_, '_>, result: io::Result<usize>) -> Sent {
    match result {
        Ok(sent) => {
            this.note_written(sent);
            Sent::Done
        }
        Err(error) if socket::is_not_ready(&error) => Sent::Blocked,
        Err(error) => Sent::Failed(os_error(this.py(), error)),
    }
}
