//! The socket of a transport: who owns the descriptor, and what Python sees of it.

use std::cell::{Cell, RefCell};
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};

use pyo3::intern;
use pyo3::prelude::*;

use super::address::Address;
use crate::cpython::class::Visitor;
use crate::cpython::object::Object;
use crate::imports::imports;
use crate::reactor::socket;

/// Who owns the descriptor.
pub enum Socket {
    /// Nobody has asked for a Python object yet.
    Native(OwnedFd),
    /// A socket.socket.
    Python(Object),
    Closed,
}

pub struct SocketFile {
    socket: RefCell<Socket>,
    fd: RawFd,
    closed: Cell<bool>,
    peer: Option<Address>,
    /// The local address, noted when the socket is closed.
    local: RefCell<Option<Address>>,
}

impl SocketFile {
    /// What get_extra_info() knows of a socket.
    pub const EXTRA: &'static [&'static str] = &["socket", "sockname", "peername"];

    pub fn new(socket: Socket, fd: RawFd, peer: Option<Address>) -> SocketFile {
        SocketFile {
            socket: RefCell::new(socket),
            fd,
            closed: Cell::new(false),
            peer,
            local: RefCell::default(),
        }
    }

    /// Whether the socket is connected to a peer.
    pub fn has_peer(&self) -> bool {
        self.peer.is_some()
    }

    /// The socket.socket, which from now on owns the descriptor.
    pub fn python_socket(&self, py: Python<'_>) -> PyResult<Object> {
        let descriptor = {
            let mut socket = self.socket.borrow_mut();
            match std::mem::replace(&mut *socket, Socket::Closed) {
                Socket::Native(fd) => Some(fd.into_raw_fd()),
                Socket::Python(object) => {
                    *socket = Socket::Python(object.clone());
                    return Ok(object);
                }
                Socket::Closed => None,
            }
        };
        let descriptor = descriptor.unwrap_or(-1).into_pyobject(py)?.into();
        let made = imports(py)?.make_socket.call(py, &[&descriptor])?;
        if !self.closed.get() {
            self.socket.replace(Socket::Python(made.clone()));
        }
        Ok(made)
    }

    pub fn extra_info(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
        let found = if name.eq(intern!(py, "socket"))? {
            imports(py)?.transport_socket.call(py, &[&self.python_socket(py)?])?
        } else if name.eq(intern!(py, "sockname"))? {
            self.local_address(py)?
        } else if name.eq(intern!(py, "peername"))? {
            self.peer_address(py)?
        } else {
            return Ok(None);
        };
        Ok(Some(found))
    }

    fn local_address(&self, py: Python<'_>) -> PyResult<Object> {
        let asked = match &*self.local.borrow() {
            Some(address) => address.to_python(py)?,
            None => match socket::local_address(self.fd) {
                Ok(address) => Address::from(address).to_python(py)?,
                Err(_) => Some(Object::none(py)),
            },
        };
        match asked {
            Some(address) => Ok(address),
            None => Ok(self.python_socket(py)?.bind(py).call_method0("getsockname")?.into()),
        }
    }

    fn peer_address(&self, py: Python<'_>) -> PyResult<Object> {
        let Some(peer) = &self.peer else { return Ok(Object::none(py)) };
        match peer.to_python(py)? {
            Some(address) => Ok(address),
            None => Ok(self.python_socket(py)?.bind(py).call_method0("getpeername")?.into()),
        }
    }

    pub fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.closed.set(true);
        if self.local.borrow().is_none() {
            let address = socket::local_address(self.fd).ok().map(Address::from);
            self.local.replace(address);
        }
        let socket = self.socket.replace(Socket::Closed);
        match &socket {
            Socket::Python(socket) => socket.call_method0(py, intern!(py, "close")).map(drop),
            Socket::Native(_) | Socket::Closed => Ok(()),
        }
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        if let Ok(socket) = self.socket.try_borrow()
            && let Socket::Python(socket) = &*socket
        {
            visitor.object(socket);
        }
    }
}
