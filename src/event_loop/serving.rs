//! Servers: the methods that asyncio's create_server() and its Server call. See [`crate::transports::listener`].

use std::os::fd::RawFd;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;

use super::{Loop, ThisLoop, given};
use crate::cpython::args::Args;
use crate::cpython::errors::{new_error, no_memory};
use crate::cpython::object::{Object, tuple_of};
use crate::cpython::ownership::Shared;
use crate::intern;
use crate::transports::limit::Limit;
use crate::transports::listener::{Listener, ListenerParams};
use crate::{method, method0, method1};

fn start_serving<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let (
        [protocol_factory, socket],
        [tls, server, backlog, handshake_timeout, shutdown_timeout, context, shared],
    ) = args.parse()?;
    this.check_closed(py)?;
    let fd = super::descriptor(&socket.bind(py))?;
    let params = ListenerParams {
        core: Shared::clone(&this.core),
        event_loop: this.object(),
        protocol_factory,
        socket,
        fd,
        server: given(server),
        backlog: match given(backlog) {
            Some(backlog) => backlog.bind(py).extract::<i64>()?.max(0) as usize,
            None => 100,
        },
        tls: tls.unwrap_or_else(|| Object::none(py)),
        handshake_timeout: handshake_timeout.unwrap_or_else(|| Object::none(py)),
        shutdown_timeout: shutdown_timeout.unwrap_or_else(|| Object::none(py)),
        context: given(context),
        shared: match given(shared) {
            Some(shared) => shared.bind(py).is_truthy()?,
            None => false,
        },
    };
    Listener::start(py, params)?;
    Ok(Object::none(py))
}

fn stop_serving<'py>(this: ThisLoop<'_, 'py>, sock: pyo3::Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let py = this.py();
    let sock = Object::from(sock);
    let fd: RawFd = sock.call_method(py, intern!(py, "fileno"), &[])?.bind(py).extract()?;
    Listener::stop(py, &this.core, &sock, fd)?;
    sock.call_method(py, intern!(py, "close"), &[])?;
    Ok(Object::none(py))
}

fn forget_listener<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([socket, fd], []) = args.parse()?;
    Listener::forget(py, &this.core, &socket, fd.bind(py).extract()?);
    Ok(Object::none(py))
}

/// Limits a server, and returns its Limit.
fn limit<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([server, connections, delay], []) = args.parse()?;
    this.check_closed(py)?;
    let (connections, delay) = (connections.bind(py).extract()?, delay.bind(py).extract()?);
    let Some(limit) = Limit::of(py, &this.core, &this.object(), &server)? else {
        return Err(new_error::<PyTypeError>(py, "the server takes no attributes"));
    };
    Limit::set(limit.this(py), connections, delay)?;
    Ok(limit.into_object())
}

fn take_accepted(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    // Another thread is not shown them.
    let Some(_entered) = this.core.owner.try_enter() else { return tuple_of(py, [].iter()) };
    let accepted = this.core.take_accepted().ok_or_else(|| no_memory(py))?;
    tuple_of(py, accepted.iter())
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(
            Loop,
            "_start_serving",
            "protocol_factory, sock, sslcontext=None, server=None, backlog=100, ssl_handshake_timeout=None, ssl_shutdown_timeout=None, context=None, shared=False",
            start_serving,
            "Accept the connections of a listening socket. If it is shared, other processes may accept from it, too."
        ),
        method!(
            Loop,
            "_limit",
            "server, connections, delay",
            limit,
            "Limit a server's connections and the loop's delay, each unless it is None, and return its Limit."
        ),
        method0!(any_thread Loop, "_take_accepted",
            take_accepted,
            "Return the transports of connections whose connection_made() has not been called, or what it has \
             scheduled has not begun; each once."
        ),
        method1!(
            Loop,
            "_stop_serving",
            "sock",
            stop_serving,
            "Stop accepting, and close the listening socket."
        ),
        method!(
            Loop,
            "_forget_listener",
            "sock, fd",
            forget_listener,
            "Stop accepting from a listening socket that another thread closes, and that had this number."
        ),
    ]
}
