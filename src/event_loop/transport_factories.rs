//! Making transports: what asyncio's create_connection() and its kin ask for when they have a socket or a pipe.

use std::rc::Rc;

use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;

use super::overrides::sockets_are_patched;
use super::{Loop, ThisLoop, given, watchers};
use crate::cpython::args::{Args, all};
use crate::cpython::object::{Object, boolean, dict};
use crate::imports::imports;
use crate::intern;
use crate::method;
use crate::reactor::socket;
use crate::transports::address::Address;
use crate::transports::datagram::Datagram;
use crate::transports::endpoint::EndpointParams;
use crate::transports::pipe::{ReadPipe, WritePipe};
use crate::transports::socket_file::SocketFile;
use crate::transports::stream::Stream;

fn make_socket_transport<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    const METHOD: &str = "_make_socket_transport";
    let py = this.py();
    let names = ["sock", "protocol", "waiter", "extra", "server", "context"];
    let [sock, protocol, waiter, extra, server, context] = args.parse(METHOD, names, 2, 3)?;
    let [sock, protocol] = all(py, METHOD, &["sock", "protocol"], [sock, protocol])?;
    let fd = super::descriptor(&sock.bind(py))?;
    watchers::ensure_no_transport(this, fd, &sock.bind(py))?;
    this.check_closed(this.py())?;
    if has_own_methods(py, &sock, true)? {
        let options = [("waiter", waiter), ("extra", extra), ("server", server), ("context", context)];
        return by_methods(this, &imports(py)?.stream_by_methods, &sock, &protocol, options);
    }
    let peer = socket::peer_address(fd).ok().map(Address::from);
    if peer.as_ref().is_none_or(Address::is_internet) {
        socket::set_nodelay(fd);
    }
    // First: looking at the protocol can run Python code, which may close the socket.
    let file = SocketFile::of_python(py, sock, fd, peer)?;
    let params = EndpointParams { context: given(context), ..params(this, fd, protocol, waiter, extra)? };
    Ok(Stream::create(py, params, file, given(server))?.into_object())
}

fn make_datagram_transport<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    const METHOD: &str = "_make_datagram_transport";
    let py = this.py();
    let names = ["sock", "protocol", "address", "waiter", "extra"];
    let [sock, protocol, address, waiter, extra] = args.parse(METHOD, names, 2, 5)?;
    let [sock, protocol] = all(py, METHOD, &["sock", "protocol"], [sock, protocol])?;
    let fd = super::descriptor(&sock.bind(py))?;
    watchers::ensure_no_transport(this, fd, &sock.bind(py))?;
    this.check_closed(this.py())?;
    if has_own_methods(py, &sock, false)? {
        let options = [("address", address), ("waiter", waiter), ("extra", extra)];
        return by_methods(this, &imports(py)?.datagram_by_methods, &sock, &protocol, options);
    }
    let peer = socket::peer_address(fd).ok().map(Address::from);
    // First: looking at the protocol can run Python code, which may close the socket.
    let file = SocketFile::of_python(py, sock, fd, peer)?;
    let params = params(this, fd, protocol, waiter, extra)?;
    let header = imports(py)?.datagram_header;
    Ok(Datagram::create(py, params, file, given(address), header)?.into_object())
}

/// Whether a transport has to call the methods of a socket: a subclass can have its own, or the program has put some in.
fn has_own_methods(py: Python<'_>, sock: &Object, is_stream: bool) -> PyResult<bool> {
    let imports = imports(py)?;
    if sock.bind(py).get_type().is(imports.socket.bind(py)) && !sockets_are_patched() {
        return Ok(false);
    }
    imports.has_own_methods.call(py, &[sock, &boolean(py, is_stream)])?.bind(py).is_truthy()
}

/// A transport that calls them: asyncio's own.
fn by_methods<const N: usize>(
    this: ThisLoop<'_, '_>,
    make: &Object,
    sock: &Object,
    protocol: &Object,
    options: [(&str, Option<Object>); N],
) -> PyResult<Object> {
    let py = this.py();
    let keywords = dict(py)?;
    // Without those that are None, which is the default of each: not every Python's has a `context`.
    for (name, option) in options {
        if let Some(option) = given(option) {
            keywords.set_item(Object::from_str(py, name)?.bind(py), option.bind(py))?;
        }
    }
    make.call(py, &[&this.object(), sock, protocol, &Object::from(keywords)])
}

/// AttributeError for what is no protocol: asyncio looks for connection_made() when it makes a transport.
pub(super) fn check_protocol(py: Python<'_>, protocol: &Object) -> PyResult<()> {
    protocol.bind(py).getattr(intern!(py, "connection_made")).map(drop)
}

/// What a transport of the event loop is made of.
pub(super) fn params(
    this: ThisLoop<'_, '_>,
    fd: std::os::fd::RawFd,
    protocol: Object,
    waiter: Option<Object>,
    extra: Option<Object>,
) -> PyResult<EndpointParams> {
    check_protocol(this.py(), &protocol)?;
    Ok(EndpointParams {
        core: Rc::clone(&this.core),
        event_loop: this.object(),
        fd,
        protocol,
        waiter: given(waiter),
        extra: given(extra),
        context: None,
    })
}

/// The arguments of the methods that make pipe transports.
fn pipe_parts<'py>(
    this: ThisLoop<'_, 'py>,
    method: &str,
    args: Args<'_, 'py>,
) -> PyResult<(Object, EndpointParams)> {
    let py = this.py();
    let names = ["pipe", "protocol", "waiter", "extra"];
    let [pipe, protocol, waiter, extra] = args.parse(method, names, 2, 4)?;
    let [pipe, protocol] = all(py, method, &["pipe", "protocol"], [pipe, protocol])?;
    this.check_closed(this.py())?;
    Ok((pipe, params(this, -1, protocol, waiter, extra)?))
}

fn make_read_pipe_transport<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let (pipe, params) = pipe_parts(this, "_make_read_pipe_transport", args)?;
    Ok(ReadPipe::create(this.py(), params, pipe)?.into_object())
}

fn make_write_pipe_transport<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let (pipe, params) = pipe_parts(this, "_make_write_pipe_transport", args)?;
    Ok(WritePipe::create(this.py(), params, pipe)?.into_object())
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(
            Loop,
            "_make_socket_transport",
            make_socket_transport,
            "_make_socket_transport($self, sock, protocol, waiter=None, *, extra=None, server=None, context=None)\n\
             --\n\nReturn a stream transport over a connected socket."
        ),
        method!(
            Loop,
            "_make_datagram_transport",
            make_datagram_transport,
            "_make_datagram_transport($self, sock, protocol, address=None, waiter=None, extra=None)\n--\n\n\
             Return a datagram transport over a socket."
        ),
        method!(
            Loop,
            "_make_read_pipe_transport",
            make_read_pipe_transport,
            "_make_read_pipe_transport($self, pipe, protocol, waiter=None, extra=None)\n--\n\n\
             Return a transport that reads from a file object."
        ),
        method!(
            Loop,
            "_make_write_pipe_transport",
            make_write_pipe_transport,
            "_make_write_pipe_transport($self, pipe, protocol, waiter=None, extra=None)\n--\n\n\
             Return a transport that writes to a file object."
        ),
    ]
}
