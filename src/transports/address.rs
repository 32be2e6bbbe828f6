//! Socket addresses, kept small until Python asks for them.

use std::net::SocketAddr;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use socket2::SockAddr;

use crate::cpython::object::Object;

/// An address of a socket: most are of the Internet, and fit into 32 bytes.
#[derive(Clone)]
pub enum Address {
    Internet(SocketAddr),
    Other(Box<SockAddr>),
}

impl From<SockAddr> for Address {
    fn from(address: SockAddr) -> Address {
        match address.as_socket() {
            Some(address) => Address::Internet(address),
            None => Address::Other(Box::new(address)),
        }
    }
}

impl Address {
    pub fn is_internet(&self) -> bool {
        matches!(self, Address::Internet(_))
    }

    /// What the socket module makes of it; None for a family that this module does not know.
    pub fn to_python(&self, py: Python<'_>) -> PyResult<Option<Object>> {
        Ok(Some(match self {
            Address::Internet(SocketAddr::V4(address)) => {
                (address.ip().to_string(), address.port()).into_pyobject(py)?.into()
            }
            Address::Internet(SocketAddr::V6(address)) => {
                // The C library's way to write them differs from Rust's in rare cases.
                let octets = PyBytes::new(py, &address.ip().octets());
                let host = py
                    .import(intern!(py, "socket"))?
                    .call_method1(intern!(py, "inet_ntop"), (libc::AF_INET6, octets))?;
                (host, address.port(), u32::from_be(address.flowinfo()), address.scope_id())
                    .into_pyobject(py)?
                    .into()
            }
            Address::Other(address) if address.is_unix() => {
                if let Some(path) = address.as_pathname() {
                    path.as_os_str().into_pyobject(py)?.into()
                } else if let Some(name) = address.as_abstract_namespace() {
                    let name = [b"\0", name].concat();
                    PyBytes::new(py, &name).into()
                } else {
                    PyString::new(py, "").into()
                }
            }
            Address::Other(_) => return Ok(None),
        }))
    }
}
