//! Socket addresses, kept small until Python asks for them.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;

use pyo3::prelude::*;
use socket2::SockAddr;

use crate::cpython::buffer::new_bytes;
use crate::cpython::module::import;
use crate::cpython::object::{Object, tuple};
use crate::intern;
use crate::reserve::try_box;

/// An address of a socket: most are of the Internet, and fit into 32 bytes.
#[derive(Clone)]
pub enum Address {
    Internet(SocketAddr),
    Unix(Box<SockAddr>),
    /// Of a Unix socket without a name, which most clients have.
    Unnamed,
    /// Of another family, or there was no memory to keep it. The socket has to be asked.
    Unknown,
}

impl From<SockAddr> for Address {
    fn from(address: SockAddr) -> Address {
        match address.as_socket() {
            Some(address) => Address::Internet(address),
            None if !address.is_unix() => Address::Unknown,
            None if address.is_unnamed() => Address::Unnamed,
            None => try_box(address).map_or(Address::Unknown, Address::Unix),
        }
    }
}

impl Address {
    pub fn is_internet(&self) -> bool {
        matches!(self, Address::Internet(_))
    }

    pub fn is_known(&self) -> bool {
        !matches!(self, Address::Unknown)
    }

    /// What the socket module makes of it; None if the socket has to be asked.
    pub fn to_python(&self, py: Python<'_>) -> PyResult<Option<Object>> {
        Ok(Some(match self {
            Address::Internet(SocketAddr::V4(address)) => tuple(
                py,
                &[&Object::from_str(py, &address.ip().to_string())?, &Object::from_int(py, address.port())?],
            )?,
            Address::Internet(SocketAddr::V6(address)) => {
                // The C library's way to write them differs from Rust's in rare cases.
                let octets = new_bytes(py, &address.ip().octets())?;
                let family = Object::from_int(py, libc::AF_INET6)?;
                let socket = Object::from(import(py, "socket")?);
                let host = socket.call_method(py, intern!(py, "inet_ntop"), &[&family, &octets])?;
                tuple(
                    py,
                    &[
                        &host,
                        &Object::from_int(py, address.port())?,
                        &Object::from_int(py, u32::from_be(address.flowinfo()))?,
                        &Object::from_int(py, address.scope_id())?,
                    ],
                )?
            }
            Address::Unix(address) => {
                if let Some(path) = address.as_pathname() {
                    Object::from_path(py, path.as_os_str().as_bytes())?
                } else if let Some(name) = address.as_abstract_namespace() {
                    let name = [b"\0", name].concat();
                    new_bytes(py, &name)?
                } else {
                    Object::from_str(py, "")?
                }
            }
            Address::Unnamed => Object::from_str(py, "")?,
            Address::Unknown => return Ok(None),
        }))
    }
}
