//! Listening sockets whose connections become transports, with TLS and without.
//!
//! Resolving addresses, binding, and the server object are asyncio's: it starts and stops a listener by the event loop's
//! `_start_serving()` and `_stop_serving()`.
//!
//! Whether a server that is limited accepts is decided by its gate (`core/gates.rs`), which is asked before each accept().
//!
//! Invariant: every accepted socket goes through [`set_options`], whichever transport it gets.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use pyo3::prelude::*;

use super::address::Address;
use super::endpoint::EndpointParams;
use super::limit::{AdmittedServer, Limit};
use super::socket_file::{SocketFile, socket_of};
use super::sockets_are_patched;
use super::stream::Stream;
use crate::core::recorder::Kind;
use crate::core::{Admitted, Core, Direction, Gate, Waiter};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{self, Class, Definition, Native, Obj, This, Visitor};
use crate::cpython::errors::os_error;
use crate::cpython::module::add;
use crate::cpython::object::{Object, copy_context, copy_of_context, dict, run_in_context, tuple};
use crate::cpython::ownership::{Owner, Shared};
use crate::cpython::socket::DescriptorPlace;
use crate::cpython::statics;
use crate::handle::reraise_fatal;
use crate::imports::imports;
use crate::intern;
use crate::method0;
use crate::reactor::socket;

pub struct ListenerParams {
    pub core: Shared<Core>,
    pub event_loop: Object,
    pub protocol_factory: Object,
    pub socket: Object,
    pub fd: RawFd,
    pub server: Option<Object>,
    pub backlog: usize,
    /// The SSLContext; None for connections without TLS.
    pub tls: Object,
    pub handshake_timeout: Object,
    pub shutdown_timeout: Object,
    /// Each connection gets a copy for all its callbacks. None for a context per callback. Servers give one from 3.15 on.
    pub context: Option<Object>,
    /// Whether other processes may accept from the socket, too.
    pub shared: bool,
}

/// A listening socket whose connections become transports.
pub struct Listener {
    params: ListenerParams,
    /// Where the socket keeps its descriptor: the program can close it, and the number can be another socket's then.
    place: Option<DescriptorPlace>,
    /// How many connections to accept in a row. Accepting until there are no more costs a further call each time, which is wasted
    /// if connections arrive singly.
    batch: Cell<usize>,
    /// Whether other processes may accept from the socket, too. It also shows when one has taken the connection of an event.
    shared: Cell<bool>,
    /// What each connection's context is a copy of.
    context: Object,
    stopped: Cell<bool>,
    /// Whether it accepts no more until the gate of its server opens.
    held: Cell<bool>,
    /// The server's limit, if it has a server.
    limit: Option<Obj<Limit>>,
}

pub type ThisListener<'a, 'py> = This<'a, 'py, Listener>;

/// What became of one attempt to accept.
enum Accepted {
    Connection(OwnedFd, Address),
    /// The connection was aborted before it could be accepted.
    Aborted,
    /// No more are waiting.
    None,
    /// There is no descriptor or memory for it.
    Exhausted(io::Error),
}

impl Listener {
    /// Makes a listener and begins to accept.
    pub fn start(py: Python<'_>, params: ListenerParams) -> PyResult<()> {
        // Linux hands it on to the connections: see set_options().
        socket::set_nodelay(params.fd);
        let listener = Listener {
            place: DescriptorPlace::find(py, &params.socket, params.fd)?,
            batch: Cell::new(1),
            shared: Cell::new(params.shared && cfg!(target_os = "linux")),
            context: match &params.context {
                Some(context) => context.clone(),
                None => copy_context(py)?,
            },
            limit: match &params.server {
                Some(server) => Limit::of(py, &params.core, &params.event_loop, server)?,
                None => None,
            },
            params,
            stopped: Cell::new(false),
            held: Cell::new(false),
        };
        let listener = Obj::new(py, listener)?;
        let this = listener.this(py);
        Listener::listen(this)?;
        match &listener.limit {
            Some(limit) => Limit::add(limit.this(py), listener.clone()).inspect_err(|_| {
                Listener::unlisten(this);
                Listener::end(this);
            }),
            None => Ok(()),
        }
    }

    /// Stops the listener of a socket. The caller has to close the socket.
    pub fn stop(py: Python<'_>, core: &Core, socket: &Object, fd: RawFd) -> PyResult<()> {
        let waiter = core.remove_waiter(fd, Direction::Read, None);
        let listener = waiter.as_ref().and_then(|waiter| Obj::<Listener>::downcast(waiter.object()));
        if let Some(listener) = listener.or_else(|| Listener::not_listening(core, socket)) {
            Listener::end(listener.this(py));
        }
        Waiter::dismiss(py, waiter).map(drop)
    }

    /// Stops the listener of a socket that another thread has closed. Its number can be another file's by now.
    pub fn forget(py: Python<'_>, core: &Core, socket: &Object, fd: RawFd) {
        let reader = core.reader_of(fd);
        if let Some(listener) = reader.as_ref().and_then(Obj::<Listener>::downcast)
            && listener.is_of(socket)
        {
            drop(core.remove_waiter(fd, Direction::Read, reader.as_ref()));
            Listener::end(listener.this(py));
        } else if let Some(listener) = Listener::not_listening(core, socket) {
            Listener::end(listener.this(py));
        }
    }

    /// The listener of a socket, of a server with a limit, that accepts no more for the time being.
    fn not_listening(core: &Core, socket: &Object) -> Option<Obj<Listener>> {
        core.gates.find(|limit| Obj::<Limit>::downcast(limit)?.listener_of(socket))
    }

    /// The socket that connections are accepted from.
    pub fn socket(&self) -> &Object {
        &self.params.socket
    }

    pub fn is_of(&self, socket: &Object) -> bool {
        self.params.socket.is(socket)
    }

    /// Notes that it accepts no more for good.
    fn end(this: ThisListener<'_, '_>) {
        if !this.stopped.replace(true)
            && let Some(limit) = &this.limit
        {
            Limit::remove(limit.this(this.py()), this);
        }
    }

    pub fn is_held(&self) -> bool {
        self.held.get()
    }

    /// Accepts no more until [`Listener::release`].
    fn hold(this: ThisListener<'_, '_>) {
        this.held.set(true);
        Listener::unlisten(this);
    }

    /// Accepts again. If that fails, it is reported and tried again.
    pub fn release(this: ThisListener<'_, '_>) -> PyResult<()> {
        let py = this.py();
        this.held.set(false);
        let Err(error) = resume(this) else { return Ok(()) };
        let exception = reraise_fatal(py, error).inspect_err(|_| this.held.set(true))?;
        let arguments = [&this.params.event_loop, &exception, &this.params.socket, &this.object()];
        imports(py)?.report_accept.call(py, &arguments).map(drop)
    }

    fn listen(this: ThisListener<'_, '_>) -> PyResult<()> {
        let (py, core, fd) = (this.py(), &this.params.core, this.params.fd);
        let step = BoundMethod::new(this, Listener::accept_batch);
        if this.shared.get() {
            return core.add_acceptor(py, fd, step);
        }
        core.add_waiter(py, fd, Direction::Read, Waiter::Step(step)).map(drop)
    }

    /// Accepts no more until [`Listener::listen`].
    fn unlisten(this: ThisListener<'_, '_>) {
        drop(this.params.core.remove_waiter(this.params.fd, Direction::Read, Some(&this.object())));
    }

    fn accept(&self, py: Python<'_>) -> PyResult<Accepted> {
        // SAFETY: the listener keeps the socket.
        let fd = self.place.map_or(self.params.fd, |place| unsafe { place.get() });
        match socket::accept(fd) {
            Ok((fd, peer)) => Ok(Accepted::Connection(fd, peer.into())),
            Err(error) if socket::is_not_ready(&error) => Ok(Accepted::None),
            Err(error) => match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::ConnectionAborted, _) => Ok(Accepted::Aborted),
                (_, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
                    Ok(Accepted::Exhausted(error))
                }
                // Another thread has just closed the socket.
                _ if cfg!(Py_GIL_DISABLED) && self.is_socket_closed() => Ok(Accepted::None),
                _ => Err(os_error(py, error)),
            },
        }
    }

    fn is_socket_closed(&self) -> bool {
        // SAFETY: the listener keeps the socket.
        self.place.is_some_and(|place| unsafe { place.get() } < 0)
    }

    /// Accepts connections that wait, twice as many each time until there are no more, and no more than the backlog holds; one if
    /// other processes could take the others. The poller reports the rest.
    fn accept_batch(this: ThisListener<'_, '_>) -> PyResult<()> {
        if this.is_socket_closed() {
            // The program has closed it, and the number can be another file's.
            Listener::unlisten(this);
            Listener::end(this);
            return Ok(());
        }
        let gate = this.get().limit.as_ref().map(|limit| &limit.gate);
        let is_single = this.shared.get() || gate.is_some_and(|gate| gate.is_slow());
        let batch = if is_single { 1 } else { this.batch.get() };
        if !is_single {
            this.batch.set((2 * batch).min(this.params.backlog + 1));
        }
        for attempt in 0..batch {
            // A protocol factory may have closed the server.
            if this.stopped.get() {
                return Ok(());
            }
            if gate.is_some_and(|gate| gate.is_paused()) {
                Listener::hold(this);
                return Ok(());
            }
            match this.accept(this.py())? {
                Accepted::Connection(fd, peer) => {
                    this.params.core.metrics.counts.accepted.add(1);
                    this.params.core.recorder.note(Kind::Accepted, fd.as_raw_fd());
                    if this.shared.get() {
                        this.params.core.requeue_acceptor(this.params.fd);
                    }
                    Listener::serve(this, fd, peer, gate.map(Gate::enter))?;
                }
                Accepted::Aborted => {}
                Accepted::None => {
                    this.batch.set(1);
                    if attempt == 0 && !this.shared.get() && cfg!(target_os = "linux") {
                        this.shared.set(true);
                        return Listener::listen(this);
                    }
                    return Ok(());
                }
                Accepted::Exhausted(error) => return Listener::pause_accepting(this, error),
            }
        }
        if this.shared.get() && !this.stopped.get() && gate.is_some_and(|gate| gate.is_paused()) {
            // Now, so that the next connection wakes another process.
            Listener::hold(this);
        }
        Ok(())
    }

    /// Reports that connections cannot be accepted now. The report sets a timer that calls [`resume`].
    fn pause_accepting(this: ThisListener<'_, '_>, error: io::Error) -> PyResult<()> {
        let py = this.py();
        Listener::unlisten(this);
        let error = Object::from(os_error(py, error).value(py));
        let arguments = [&this.params.event_loop, &error, &this.params.socket, &this.object()];
        let reported = imports(py).and_then(|imports| imports.report_accept.call(py, &arguments));
        reported.map(drop).or_else(|error| {
            // There is no timer then, and the event loop may run again after SystemExit.
            resume(this).and(Err(error))
        })
    }

    /// Makes a transport of a connection, in a context of its own. An error is reported in debug mode only, as in asyncio: any
    /// peer can cause one.
    fn serve(
        this: ThisListener<'_, '_>,
        fd: OwnedFd,
        peer: Address,
        admitted: Option<Admitted>,
    ) -> PyResult<()> {
        let py = this.py();
        let context = copy_of_context(py, &this.context)?;
        let result = run_in_context(py, &context, || {
            if this.params.core.schedule.debug() {
                Listener::log(this, &fd, &peer)?;
            }
            set_options(&fd, &peer);
            if this.params.tls.is_none() && !sockets_are_patched() {
                Listener::serve_natively(this, fd, peer, admitted, &context)
            } else {
                Listener::serve_as_asyncio(this, fd, &peer, admitted, &context)
            }
        });
        let Err(error) = result else { return Ok(()) };
        let exception = reraise_fatal(py, error)?;
        if this.params.core.schedule.debug() {
            imports(py)?.report_connection.call(py, &[&this.params.event_loop, &exception])?;
        }
        Ok(())
    }

    #[cold]
    fn log(this: ThisListener<'_, '_>, fd: &OwnedFd, peer: &Address) -> PyResult<()> {
        let py = this.py();
        let none = Object::none(py);
        let server = this.params.server.as_ref().unwrap_or(&none);
        let peer = peer.to_python(py)?.unwrap_or_else(|| none.clone());
        let fd = Object::from_int(py, fd.as_raw_fd())?;
        imports(py)?.log_connection.call(py, &[server, &peer, &fd]).map(drop)
    }

    fn serve_natively(
        this: ThisListener<'_, '_>,
        fd: OwnedFd,
        peer: Address,
        admitted: Option<Admitted>,
        context: &Object,
    ) -> PyResult<()> {
        let py = this.py();
        let protocol = this.params.protocol_factory.call(py, &[])?;
        let params = &this.params;
        let endpoint = EndpointParams {
            context: params.context.as_ref().map(|_| context.clone()),
            ..EndpointParams::new(py, &params.core, &params.event_loop, fd.as_raw_fd(), protocol)?
        };
        let file = SocketFile::new(fd, Some(peer));
        let transport = Stream::create(py, endpoint, file, params.server.clone(), admitted)?;
        if let Some(token) = transport.registration.token() {
            params.core.note_accepted(token);
        }
        Ok(())
    }

    /// Accepts with asyncio's method, in a task, which waits for the handshake if there is one.
    fn serve_as_asyncio(
        this: ThisListener<'_, '_>,
        fd: OwnedFd,
        peer: &Address,
        admitted: Option<Admitted>,
        context: &Object,
    ) -> PyResult<()> {
        let py = this.py();
        let connection = socket_of(py, fd).map_err(|(error, _)| error)?;
        let extra = dict(py)?;
        let peername = match peer.to_python(py)? {
            Some(peername) => peername,
            None => connection.call_method(py, intern!(py, "getpeername"), &[])?,
        };
        extra.set_item(intern!(py, "peername"), peername.bind(py))?;
        let extra = Object::from(extra);
        let none = Object::none(py);
        let params = &this.params;
        let server = match (&params.server, admitted) {
            (Some(server), Some(admitted)) => {
                AdmittedServer::make(py, &params.core, server.clone(), admitted)?
            }
            (server, _) => server.clone().unwrap_or(none),
        };
        let mut arguments = vec![
            &params.protocol_factory,
            &connection,
            &extra,
            &params.tls,
            &server,
            &params.handshake_timeout,
            &params.shutdown_timeout,
        ];
        if params.context.is_some() {
            arguments.push(context);
        }
        let accept = params.event_loop.call_method(py, intern!(py, "_accept_connection2"), &arguments)?;
        let create_task = Object::from(params.event_loop.bind(py).getattr(intern!(py, "create_task"))?);
        if params.context.is_none() {
            return create_task.call(py, &[&accept]).map(drop);
        }
        let names = tuple(py, &[&Object::from(intern!(py, "context"))])?;
        create_task.call_list(py, &[accept, context.clone()], Some(&names)).map(drop)
    }
}

/// Sets the options of an accepted connection's socket.
fn set_options(fd: &OwnedFd, peer: &Address) {
    // Linux takes TCP_NODELAY from the listening socket.
    if cfg!(not(target_os = "linux")) && peer.is_internet() {
        socket::set_nodelay(fd.as_raw_fd());
    }
}

/// Listens again after [`Listener::pause_accepting`]. While it is held, the gate of the server decides.
fn resume(this: ThisListener<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    if this.held.get() {
        return Ok(Object::none(py));
    }
    let fd: RawFd = this.params.socket.call_method(py, intern!(py, "fileno"), &[])?.bind(py).extract()?;
    if fd != this.params.fd {
        Listener::end(this);
    } else if !this.stopped.get() {
        Listener::listen(this)?;
    }
    Ok(Object::none(py))
}

impl Native for Listener {
    fn class() -> &'static Class {
        &statics::LISTENER
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.params.event_loop);
        visitor.object(&self.params.protocol_factory);
        visitor.object(&self.params.socket);
        visitor.optional(&self.params.server);
        visitor.optional(&self.params.context);
        if let Some(limit) = &self.limit {
            visitor.object(limit.as_object());
        }
        visitor.object(&self.context);
        visitor.object(&self.params.tls);
        visitor.object(&self.params.handshake_timeout);
        visitor.object(&self.params.shutdown_timeout);
    }

    fn clear(&self) {
        self.stopped.set(true);
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.params.core.owner)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let definition = Definition {
        name: c"hotloop._core.Listener",
        doc: c"A listening socket whose connections become transports.",
        base: module.py().get_type::<PyAny>(),
        methods: vec![method0!(
            Listener,
            "resume",
            resume,
            "Accept connections again, unless the server was closed meanwhile."
        )],
        attributes: Vec::new(),
        slots: Vec::new(),
        open: false,
    };
    add(module, "Listener", class::make::<Listener>(definition)?)
}
