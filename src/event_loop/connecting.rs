//! Connecting to an IP address: what create_connection() asks for if host and port need no resolving.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};

use super::{Loop, ThisLoop, watchers};
use crate::cpython::args::Args;
use crate::cpython::errors::OrOsError;
use crate::cpython::object::Object;
use crate::method;
use crate::reactor::socket;
use crate::transports::connection::Connection;

/// The address, if host and port are numbers and of the usual types.
fn numeric(host: &Bound<'_, PyAny>, port: &Bound<'_, PyAny>) -> PyResult<Option<SocketAddr>> {
    let (Ok(host), Ok(port)) = (host.cast_exact::<PyString>(), port.cast_exact::<PyInt>()) else {
        return Ok(None);
    };
    let Ok(port) = port.extract::<u16>() else { return Ok(None) };
    Ok(host
        .to_str()
        .ok()
        .and_then(|host| host.parse::<IpAddr>().ok())
        .map(|host| SocketAddr::new(host, port)))
}

fn connect<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([host, port], []) = args.parse()?;
    let Some(peer) = numeric(&host.bind(py), &port.bind(py))? else { return Ok(Object::none(py)) };
    this.check_closed(this.py())?;
    let socket = socket::stream(&peer).or_os_error(py)?;
    let fd = socket.as_raw_fd();
    watchers::ensure_no_transport(this, fd, &Object::from_int(py, fd)?.bind(py))?;
    Connection::start(py, &this.core, this.object(), socket, peer)
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![method!(
        Loop,
        "_connect",
        "host, port",
        connect,
        "Begin to connect to an IP address and port, and return the connection; None if they are not numbers."
    )]
}
