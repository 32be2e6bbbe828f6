//! Connecting to an address that needs no resolving, without a socket object in between: what create_connection() does
//! for most clients.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};

use super::transport_factories::params;
use super::{Loop, ThisLoop, watchers};
use crate::core::{Direction, Waiter};
use crate::cpython::args::{Args, all};
use crate::cpython::audit;
use crate::cpython::borrowing::StateCell;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{self, Definition, Native, Obj, This, Visitor};
use crate::cpython::errors::{OrOsError, new_error, numbered, os_error};
use crate::cpython::module::add;
use crate::cpython::object::{Object, tuple};
use crate::imports::resolve;
use crate::intern;
use crate::reactor::socket;
use crate::transports::address::Address;
use crate::transports::socket_file::SocketFile;
use crate::transports::stream::Stream;
use crate::{attribute, method, method0, method1};

/// A TCP connection that is being made.
pub struct Connection {
    event_loop: Obj<Loop>,
    fd: RawFd,
    peer: SocketAddr,
    /// None once it belongs to a transport, or was closed.
    file: StateCell<Option<SocketFile>>,
    /// A future of the moment when it is made, or has failed.
    connected: Object,
    watched: Cell<bool>,
}

type ThisConnection<'a, 'py> = This<'a, 'py, Connection>;

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
    const METHOD: &str = "_connect";
    const NAMES: [&str; 2] = ["host", "port"];
    let py = this.py();
    let [host, port] = all(py, METHOD, &NAMES, args.parse(METHOD, NAMES, 2, 2)?)?;
    let Some(peer) = numeric(&host.bind(py), &port.bind(py))? else { return Ok(Object::none(py)) };
    this.check_closed(this.py())?;
    let socket = socket::stream(&peer).or_os_error(py)?;
    let fd = socket.as_raw_fd();
    watchers::ensure_no_transport(this, fd, &Object::from_int(py, fd)?.bind(py))?;
    let event_loop = this.obj();
    let connected = event_loop.as_object().call_method0(py, intern!(py, "create_future"))?;
    let file = SocketFile::new(socket, Some(Address::Internet(peer)));
    audit::raise(py, c"socket.connect", &|py| file.python_socket(py), &|py| address(py, peer))?;
    let connection = Connection {
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

impl Connection {
    /// The descriptor to make system calls on: -1 if the socket is closed, as an audit hook can do that was shown it.
    fn descriptor(&self) -> RawFd {
        self.file.borrow().as_ref().map_or(-1, SocketFile::descriptor)
    }

    fn begin(this: ThisConnection<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let core = &this.event_loop.core;
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

    /// The error that the attempt ended with, if it did, as asyncio words it.
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
            drop(self.event_loop.core.remove_waiter(self.fd, Direction::Write, Some(this)));
        }
        drop(self.file.take());
    }
}

/// An address as the socket module has it.
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
        drop(this.event_loop.core.take_waiter(this.fd, Direction::Write, &this.object()));
    }
    resolve(this.py(), &this.connected)
}

/// Makes the transport, whose protocol will be told of it: returns both, and a future of that.
fn transport<'py>(
    this: ThisConnection<'_, 'py>,
    protocol_factory: pyo3::Borrowed<'_, 'py, PyAny>,
) -> PyResult<Object> {
    let py = this.py();
    if this.file.borrow().is_some() {
        this.check(py)?;
    }
    this.event_loop.core.metrics.counts.connected.add(1);
    let protocol = Object::from(protocol_factory).call0(py)?;
    let Some(file) = this.file.take() else {
        return Err(new_error::<PyRuntimeError>(py, "the connection is a transport's already, or closed"));
    };
    socket::set_nodelay(file.descriptor());
    let event_loop = this.event_loop.as_object();
    let made = event_loop.call_method0(py, intern!(py, "create_future"))?;
    let params = params(this.event_loop.this(py), this.fd, protocol.clone(), Some(made.clone()), None)?;
    let transport = Stream::create(py, params, file, None)?.into_object();
    tuple(py, &[&transport, &protocol, &made])
}

impl Native for Connection {
    crate::class_static!(0);

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(self.event_loop.as_object());
        visitor.object(&self.connected);
        if let Ok(file) = self.file.try_borrow()
            && let Some(file) = &*file
        {
            file.traverse(visitor);
        }
    }

    fn clear(&self) {}
}

/// Makes the class of connections.
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
                "close($self, /)\n--\n\nGive up, unless a transport was made."
            ),
        ],
        attributes: vec![attribute!(Connection, "connected", |this| Ok(this.connected.clone()))],
        slots: Vec::new(),
        open: false,
    };
    add(module, "Connection", class::make::<Connection>(definition)?)
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![method!(
        Loop,
        "_connect",
        connect,
        "_connect($self, host, port)\n--\n\n\
         Begin to connect to an IP address and port, and return the connection; None if they are not numbers."
    )]
}
