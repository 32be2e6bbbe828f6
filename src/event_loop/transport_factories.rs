//! The methods that make transports, which asyncio's create_connection(), connect_read_pipe() and others call with a socket or a
//! pipe.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::Borrowed;
use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::{Loop, ThisLoop, given, watchers};
use crate::cpython::args::Args;
use crate::cpython::object::{Object, boolean, dict};
use crate::cpython::ownership::Shared;
use crate::imports::imports;
use crate::reactor::socket;
use crate::transports::address::Address;
use crate::transports::datagram::Datagram;
use crate::transports::endpoint::EndpointParams;
use crate::transports::limit::AdmittedServer;
use crate::transports::pipe::{ReadPipe, WritePipe};
use crate::transports::socket_file::SocketFile;
use crate::transports::sockets_are_patched;
use crate::transports::stream::Stream;
use crate::transports::tls::{self, ProtocolParams};
use crate::{method, method1};

fn make_socket_transport<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([sock, protocol], [waiter, extra, server, context]) = args.parse()?;
    let fd = super::descriptor(&sock.bind(py))?;
    watchers::ensure_no_transport(this, fd, &sock.bind(py))?;
    this.check_closed(this.py())?;
    if has_own_methods(py, &sock, true)? {
        let options = [("waiter", waiter), ("extra", extra), ("server", server), ("context", context)];
        return by_methods(this, &imports(py)?.asyncio_stream, &sock, &protocol, options);
    }
    let peer = socket::peer_address(fd).ok().map(Address::from);
    if peer.as_ref().is_none_or(Address::is_internet) {
        socket::set_nodelay(fd);
    }
    // Before params(), which can run Python code that closes the socket.
    let file = SocketFile::of_python(py, sock, fd, peer)?;
    let params = EndpointParams { context: given(context), ..params(this, fd, protocol, waiter, extra)? };
    let (server, admitted) = AdmittedServer::split(given(server));
    Ok(Stream::create(py, params, file, server, admitted)?.into_object())
}

fn make_datagram_transport<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([sock, protocol], [address, waiter, extra]) = args.parse()?;
    let fd = super::descriptor(&sock.bind(py))?;
    watchers::ensure_no_transport(this, fd, &sock.bind(py))?;
    this.check_closed(this.py())?;
    if has_own_methods(py, &sock, false)? {
        let options = [("address", address), ("waiter", waiter), ("extra", extra)];
        return by_methods(this, &imports(py)?.asyncio_datagram, &sock, &protocol, options);
    }
    let peer = socket::peer_address(fd).ok().map(Address::from);
    // Before params(), which can run Python code that closes the socket.
    let file = SocketFile::of_python(py, sock, fd, peer)?;
    let params = params(this, fd, protocol, waiter, extra)?;
    let header = imports(py)?.datagram_header;
    Ok(Datagram::create(py, params, file, given(address), header)?.into_object())
}

/// Whether a transport has to call the methods of a socket, because its class overrides them or the program has patched them.
fn has_own_methods(py: Python<'_>, sock: &Object, is_stream: bool) -> PyResult<bool> {
    let imports = imports(py)?;
    if sock.bind(py).get_type().is(imports.socket.bind(py)) && !sockets_are_patched() {
        return Ok(false);
    }
    imports.has_own_methods.call(py, &[sock, &boolean(py, is_stream)])?.bind(py).is_truthy()
}

/// Makes asyncio's own transport, which calls the socket's methods.
fn by_methods<const N: usize>(
    this: ThisLoop<'_, '_>,
    make: &Object,
    sock: &Object,
    protocol: &Object,
    options: [(&str, Option<Object>); N],
) -> PyResult<Object> {
    let py = this.py();
    this.has_transports_of_asyncio.set(true);
    let keywords = dict(py)?;
    // None is the default of each, and not every Python has a `context`.
    for (name, option) in options {
        if let Some(option) = given(option) {
            keywords.set_item(Object::from_str(py, name)?.bind(py), option.bind(py))?;
        }
    }
    make.call(py, &[&this.object(), sock, protocol, &Object::from(keywords)])
}

fn params(
    this: ThisLoop<'_, '_>,
    fd: std::os::fd::RawFd,
    protocol: Object,
    waiter: Option<Object>,
    extra: Option<Object>,
) -> PyResult<EndpointParams> {
    Ok(EndpointParams {
        waiter: given(waiter),
        extra: given(extra),
        ..EndpointParams::new(this.py(), &this.core, &this.object(), fd, protocol)?
    })
}

/// The arguments of the methods that make pipe transports.
fn pipe_params<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<(Object, EndpointParams)> {
    let ([pipe, protocol], [waiter, extra]) = args.parse()?;
    this.check_closed(this.py())?;
    Ok((pipe, params(this, -1, protocol, waiter, extra)?))
}

fn make_read_pipe_transport<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let (pipe, params) = pipe_params(this, args)?;
    Ok(ReadPipe::create(this.py(), params, pipe)?.into_object())
}

fn make_write_pipe_transport<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let (pipe, params) = pipe_params(this, args)?;
    Ok(WritePipe::create(this.py(), params, pipe)?.into_object())
}

fn make_ssl_protocol<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let (
        [protocol, waiter, ssl_object, raw, incoming, outgoing, extra, direct, made, handshake, shutdown],
        [],
    ) = args.parse()?;
    let params = ProtocolParams {
        core: Shared::clone(&this.core),
        event_loop: this.object(),
        protocol,
        waiter: given(Some(waiter)),
        ssl_object,
        raw: given(Some(raw)),
        memory: [incoming, outgoing],
        may_be_direct: direct.bind(py).is_truthy()?,
        extra,
        timeouts: [handshake, shutdown],
        calls_connection_made: made.bind(py).is_truthy()?,
    };
    Ok(tls::Protocol::create(py, params)?.into_object())
}

/// A number that a class keeps until it is changed. 0 if it has none: it was changed since anything was looked up in it.
fn type_version<'py>(this: ThisLoop<'_, 'py>, kind: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let kind = kind.cast::<PyType>()?;
    // SAFETY: the class is there, and other threads change the field as a whole.
    let version = unsafe { AtomicU32::from_ptr(&raw mut (*kind.as_type_ptr()).tp_version_tag) };
    Object::from_int(this.py(), version.load(Relaxed))
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method1!(
            Loop,
            "_type_version",
            "kind",
            type_version,
            "Return a number that a class keeps until it is changed, or 0."
        ),
        method!(
            Loop,
            "_make_ssl_protocol",
            "protocol, waiter, ssl_object, raw, incoming, outgoing, extra, direct, call_connection_made, ssl_handshake_timeout, ssl_shutdown_timeout",
            make_ssl_protocol,
            "Return a protocol that has TLS over its transport, of what wrap_bio() has made."
        ),
        method!(
            Loop,
            "_make_socket_transport",
            "sock, protocol, waiter=None, *, extra=None, server=None, context=None",
            make_socket_transport,
            "Return a stream transport over a connected socket."
        ),
        method!(
            Loop,
            "_make_datagram_transport",
            "sock, protocol, address=None, waiter=None, extra=None",
            make_datagram_transport,
            "Return a datagram transport over a socket."
        ),
        method!(
            Loop,
            "_make_read_pipe_transport",
            "pipe, protocol, waiter=None, extra=None",
            make_read_pipe_transport,
            "Return a transport that reads from a file object."
        ),
        method!(
            Loop,
            "_make_write_pipe_transport",
            "pipe, protocol, waiter=None, extra=None",
            make_write_pipe_transport,
            "Return a transport that writes to a file object."
        ),
    ]
}
