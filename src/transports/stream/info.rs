//! What Python sees of the socket.

use std::os::fd::IntoRawFd;

use pyo3::prelude::*;

use super::{Phase, Socket, Stream};
use crate::cpython::object::Object;
use crate::imports::imports;
use crate::reactor::socket;
use crate::transports::address::Address;

impl Stream {
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
        if !matches!(self.phase.get(), Phase::Closed) {
            self.socket.replace(Socket::Python(made.clone()));
        }
        Ok(made)
    }

    pub fn local_address(&self, py: Python<'_>) -> PyResult<Object> {
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

    pub fn peer_address(&self, py: Python<'_>) -> PyResult<Object> {
        let Some(peer) = &self.peer else { return Ok(Object::none(py)) };
        match peer.to_python(py)? {
            Some(address) => Ok(address),
            None => Ok(self.python_socket(py)?.bind(py).call_method0("getpeername")?.into()),
        }
    }
}
