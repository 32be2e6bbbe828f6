//! Connections to addresses that need no resolving, made without a socket object in between: what create_connection() does for
//! most clients.
//!
//! Other connections are asyncio's to make. `create_connection()` in loop.py starts one by the event loop's `_connect()`, waits for
//! `connected`, and then asks for the transport.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use pyo3::Borrowed;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::address::Address;
use super::endpoint::EndpointParams;
use super::socket_file::SocketFile;
use super::stream::Stream;
use crate::core::recorder::Kind;
use crate::core::{Core, Direction, Waiter};
use crate::cpython::audit;
use crate::cpython::borrowing::StateCell;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{self, Class, Definition, Native, Obj, This, Visitor};
use crate::cpython::errors::{OrOsError, new_error, numbered, os_error};
use crate::cpython::module::add;
use crate::cpython::object::{Object, tuple};
use crate::cpython::ownership::{Owner, Shared};
use crate::cpython::statics;
use crate::imports::resolve;
use crate::intern;
use crate::reactor::socket;
use crate::{attribute, method0, method1};

/// A TCP connection that is being made.
pub struct Connection {
    core: Shared<Core>,
    event_loop: Object,
    fd: RawFd,
    peer: SocketAddr,
    /// None once it belongs to a transport, or was closed.
    file: StateCell<Option<SocketFile>>,
    /// A future that is done when the attempt has succeeded or failed.
    connected: Object,
    watched: Cell<bool>,
}

type ThisConnection<'a, 'py> = This<'a, 'py, Connection>;

impl Connection {
    /// Begins to connect a socket.
    pub fn start(
        py: Python<'_>,
        core: &Shared<Core>,
        event_loop: Object,
        socket: OwnedFd,
        peer: SocketAddr,
    ) -> PyResult<Object> {
        let fd = socket.as_raw_fd();
        let connected = event_loop.call_method(py, intern!(py, "create_future"), &[])?;
        let file = SocketFile::new(socket, Some(Address::Internet(peer)));
        audit::raise(py, c"socket.connect", &|py| file.python_socket(py), &|py| address(py, peer))?;
        let connection = Connection {
            core: Shared::clone(core),
            event_loop,
            fd,
            peer,
            file: StateCell::new(Some(file)),
            connected,
            watched: Cell::new(false),
        };
        let connection = Obj::new(py, connection)?;
        Connection::begin(connection.this(py))?;
        Ok(connection.into_object())
    }

    /// The descriptor for system calls: -1 if the socket is closed, which an audit hook that is given it can do.
    fn descriptor(&self) -> RawFd {
        self.file.borrow().as_ref().map_or(-1, SocketFile::descriptor)
    }

    fn begin(this: ThisConnection<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let core = &this.core;
        core.request_poll();
        match socket::connect(this.descriptor(), &this.peer) {
            Ok(()) => resolve(py, &this.connected),
            Err(error) if is_under_way(&error) => {
                let waiter = Waiter::Step(BoundMethod::new(this, on_writable));
                let previous = core.add_waiter(py, this.fd, Direction::Write, waiter)?;
                this.watched.set(true);
                Waiter::dismiss(py, previous).map(drop)
            }
            Err(error) => Err(os_error(py, error)),
        }
    }

    /// Fails with the error that the attempt ended with, in asyncio's words.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        match socket::take_error(self.descriptor()).or_os_error(py)?.and_then(|error| error.raw_os_error()) {
            None => Ok(()),
            Some(error) => {
                let message = format!("Connect call failed {}", address(py, self.peer)?.bind(py).str()?);
                Err(numbered(py, error, &message))
            }
        }
    }

    fn close(&self, this: &Object) {
        if self.watched.replace(false) {
            drop(self.core.remove_waiter(self.fd, Direction::Write, Some(this)));
        }
        drop(self.file.take());
    }
}

/// An address in the socket module's form.
fn address(py: Python<'_>, address: SocketAddr) -> PyResult<Object> {
    let address = Address::Internet(address).to_python(py)?;
    Ok(address.unwrap_or_else(|| Object::none(py)))
}

fn is_under_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR | libc::EAGAIN))
}

/// The socket is connected, or the attempt has failed.
fn on_writable(this: ThisConnection<'_, '_>) -> PyResult<()> {
    if this.watched.replace(false) {
        drop(this.core.take_waiter(this.fd, Direction::Write, &this.object()));
    }
    resolve(this.py(), &this.connected)
}

/// Returns the transport, its protocol, and a future that is done when connection_made() has been called.
fn transport<'py>(
    this: ThisConnection<'_, 'py>,
    protocol_factory: Borrowed<'_, 'py, PyAny>,
) -> PyResult<Object> {
    let py = this.py();
    if this.file.borrow().is_some() {
        this.check(py)?;
    }
    this.core.metrics.counts.connected.add(1);
    let protocol = Object::from(protocol_factory).call(py, &[])?;
    let Some(file) = this.file.take() else {
        return Err(new_error::<PyRuntimeError>(py, "the connection is a transport's already, or closed"));
    };
    this.core.recorder.note(Kind::Connected, this.fd);
    socket::set_nodelay(file.descriptor());
    let made = this.event_loop.call_method(py, intern!(py, "create_future"), &[])?;
    let params = EndpointParams {
        waiter: Some(made.clone()),
        ..EndpointParams::new(py, &this.core, &this.event_loop, this.fd, protocol.clone())?
    };
    let transport = Stream::create(py, params, file, None, None)?.into_object();
    tuple(py, &[&transport, &protocol, &made])
}

impl Native for Connection {
    fn class() -> &'static Class {
        &statics::CONNECTION
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.event_loop);
        visitor.object(&self.connected);
        if let Ok(file) = self.file.try_borrow()
            && let Some(file) = &*file
        {
            file.traverse(visitor);
        }
    }

    fn clear(&self) {}

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let definition = Definition {
        name: c"hotloop._core.Connection",
        doc: c"A TCP connection that is being made.",
        base: module.py().get_type::<PyAny>(),
        methods: vec![
            method1!(
                Connection,
                "transport",
                "protocol_factory",
                transport,
                "Return a transport, its protocol, and a future of the moment when connection_made() was called.\n\n\
                 Raise OSError if connecting failed."
            ),
            method0!(
                Connection,
                "close",
                |this| {
                    this.get().close(&this.object());
                    Ok(Object::none(this.py()))
                },
                "Give up, unless a transport was made."
            ),
        ],
        attributes: vec![attribute!(Connection, "connected", |this| Ok(this.connected.clone()))],
        slots: Vec::new(),
        open: false,
    };
    add(module, "Connection", class::make::<Connection>(definition)?)
}
