//! The `sock_*` methods. Any thread may call them, as it may call a coroutine function; the coroutine is for the loop's thread.

use std::cell::Cell;

use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::socket_operation::{Operation, SocketOperation};
use super::{Loop, ThisLoop};
use crate::cpython::args::Args;
use crate::cpython::coroutine_method::{self, CoroutineMethod};
use crate::cpython::module::{attribute, import, set_attribute};
use crate::cpython::object::Object;
use crate::method;

/// Parses N required arguments, and makes an operation of them.
fn operation<'py, const N: usize>(
    this: ThisLoop<'_, 'py>,
    args: Args<'_, 'py>,
    make: impl FnOnce([Object; N]) -> (Object, Operation),
) -> PyResult<Object> {
    let (required, []) = args.parse()?;
    let (socket, operation) = make(required);
    SocketOperation::create(this, socket, operation)
}

fn sock_recv<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    operation(this, args, |[sock, n]| (sock, Operation::Recv(n)))
}

fn sock_recv_into<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    operation(this, args, |[sock, buf]| (sock, Operation::RecvInto(buf)))
}

fn sock_recvfrom<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    operation(this, args, |[sock, n]| (sock, Operation::RecvFrom(n)))
}

fn sock_recvfrom_into<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let ([sock, buf], [nbytes]) = args.parse()?;
    let nbytes = match nbytes {
        Some(nbytes) => nbytes,
        None => Object::from_int(this.py(), 0)?,
    };
    SocketOperation::create(this, sock, Operation::RecvFromInto(buf, nbytes))
}

fn sock_sendall<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    operation(this, args, |[sock, data]| {
        (sock, Operation::SendAll { data, view: Cell::new(None), sent: Cell::new(0) })
    })
}

fn sock_sendto<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    operation(this, args, |[sock, data, address]| (sock, Operation::SendTo(data, address)))
}

fn sock_accept<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    operation(this, args, |[sock]| (sock, Operation::Accept))
}

fn sock_connect<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    operation(this, args, |[sock, address]| (sock, Operation::Connect { address, begun: Cell::new(false) }))
}

/// The methods that are coroutine functions in asyncio, and so must look like ones.
const COROUTINE_METHODS: [&str; 7] = [
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendto",
    "sock_accept",
];

/// Makes [`COROUTINE_METHODS`] of the class pass for coroutine functions.
pub fn put_coroutine_methods(class: &Bound<'_, PyType>) -> PyResult<()> {
    let py = class.py();
    coroutine_method::make_class(py)?;
    let asyncio = attribute(&import(py, "asyncio.selector_events")?, "BaseSelectorEventLoop")?;
    for name in COROUTINE_METHODS {
        let method = attribute(class, name)?;
        let function = attribute(asyncio.bind(py).as_any(), name)?;
        set_attribute(class, name, &CoroutineMethod::create(py, method, function)?)?;
    }
    Ok(())
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(any_thread Loop,
            "sock_recv",
            "sock, n",
            sock_recv,
            "Coroutine: receive at most n bytes from a non-blocking socket; b'' at the end of the stream."
        ),
        method!(any_thread Loop,
            "sock_recv_into",
            "sock, buf",
            sock_recv_into,
            "Coroutine: receive from a non-blocking socket into buf; return the number of bytes."
        ),
        method!(any_thread Loop,
            "sock_recvfrom",
            "sock, bufsize",
            sock_recvfrom,
            "Coroutine: receive a datagram of at most bufsize bytes; return it and its sender's address."
        ),
        method!(any_thread Loop,
            "sock_recvfrom_into",
            "sock, buf, nbytes=0",
            sock_recvfrom_into,
            "Coroutine: receive a datagram into buf; return its number of bytes and its sender's address."
        ),
        method!(any_thread Loop,
            "sock_sendall",
            "sock, data",
            sock_sendall,
            "Coroutine: send all of data to a non-blocking socket.\n\n\
             If it is cancelled or fails, there is no telling how much was sent."
        ),
        method!(any_thread Loop,
            "sock_sendto",
            "sock, data, address",
            sock_sendto,
            "Coroutine: send a datagram to address; return the number of bytes sent."
        ),
        method!(any_thread Loop,
            "sock_accept",
            "sock",
            sock_accept,
            "Coroutine: accept a connection; return its socket, which does not block, and the peer's address."
        ),
        method!(any_thread Loop,
            "_sock_connect",
            "sock, address",
            sock_connect,
            "Coroutine: connect to an address that needs no resolving."
        ),
    ]
}
