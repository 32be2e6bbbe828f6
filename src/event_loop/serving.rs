//! Accepting connections for servers.

use std::cell::Cell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;
use std::io;

use super::overrides::sockets_are_patched;
use super::transport_factories::check_protocol;
use super::{Loop, ThisLoop, given};
use crate::core::{Core, Direction, Waiter};
use crate::cpython::args::{Args, all};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{self, Definition, Native, Obj, This, Visitor};
use crate::cpython::errors::os_error;
use crate::cpython::module::add;
use crate::cpython::object::{
    Object, Stack, call_method_with_keywords, copy_context, copy_of_context, dict, run_in_context, tuple,
};
use crate::cpython::socket::DescriptorPlace;
use crate::handle::reraise_fatal;
use crate::imports::imports;
use crate::intern;
use crate::reactor::socket;
use crate::transports::address::Address;
use crate::transports::endpoint::EndpointParams;
use crate::transports::socket_file::{SocketFile, socket_of};
use crate::transports::stream::Stream;
use crate::{method, method0, method1};

/// A listening socket whose connections become transports.
pub struct Listener {
    core: Rc<Core>,
    event_loop: Object,
    protocol_factory: Object,
    socket: Object,
    fd: RawFd,
    /// Where the socket keeps its descriptor: the program can close it, and the number can be another socket's then.
    place: Option<DescriptorPlace>,
    server: Option<Object>,
    backlog: usize,
    /// How many connections to accept before looking at other descriptors: one more call, to hear that no more are
    /// waiting, is wasted where they come one by one.
    batch: Cell<usize>,
    tls: Option<Tls>,
    /// What each connection's context is a copy of.
    context: Object,
    /// Whether all callbacks of a connection share one context: what servers ask for from 3.15 on.
    shares_context: bool,
    stopped: Cell<bool>,
}

/// What TLS connections need besides; None in all of it stands for one without TLS.
struct Tls {
    context: Object,
    handshake_timeout: Object,
    shutdown_timeout: Object,
}

type ThisListener<'a, 'py> = This<'a, 'py, Listener>;

fn start_serving<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    const METHOD: &str = "_start_serving";
    let py = this.py();
    let names = [
        "protocol_factory",
        "sock",
        "sslcontext",
        "server",
        "backlog",
        "ssl_handshake_timeout",
        "ssl_shutdown_timeout",
        "context",
    ];
    let [factory, sock, tls, server, backlog, handshake_timeout, shutdown_timeout, context] =
        args.parse(METHOD, names, 2, 8)?;
    this.check_closed(this.py())?;
    let [protocol_factory, socket] = all(py, METHOD, &["protocol_factory", "sock"], [factory, sock])?;
    let fd = super::descriptor(&socket.bind(py))?;
    // Connections inherit it where it matters most; elsewhere it is set again for each.
    socket::set_nodelay(fd);
    let context = given(context);
    let listener = Listener {
        core: Rc::clone(&this.core),
        event_loop: this.object(),
        protocol_factory,
        place: DescriptorPlace::find(py, &socket, fd)?,
        socket,
        fd,
        server: given(server),
        backlog: match given(backlog) {
            Some(backlog) => backlog.bind(py).extract::<i64>()?.max(0) as usize,
            None => 100,
        },
        batch: Cell::new(1),
        tls: given(tls).map(|context| Tls {
            context,
            handshake_timeout: handshake_timeout.unwrap_or_else(|| Object::none(py)),
            shutdown_timeout: shutdown_timeout.unwrap_or_else(|| Object::none(py)),
        }),
        shares_context: context.is_some(),
        context: match context {
            Some(context) => context,
            None => copy_context(py)?,
        },
        stopped: Cell::new(false),
    };
    let listener = Obj::new(py, listener)?;
    Listener::listen(listener.this(py))?;
    Ok(Object::none(py))
}

fn stop_serving<'py>(this: ThisLoop<'_, 'py>, sock: pyo3::Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let py = this.py();
    let sock = Object::from(sock);
    let fd: RawFd = sock.call_method0(py, intern!(py, "fileno"))?.bind(py).extract()?;
    let waiter = this.core.remove_waiter(fd, Direction::Read, None);
    if let Some(listener) = waiter.as_ref().and_then(|waiter| Obj::<Listener>::downcast(waiter.object())) {
        listener.stopped.set(true);
    }
    Waiter::dismiss(py, waiter)?;
    sock.call_method0(py, intern!(py, "close"))?;
    Ok(Object::none(py))
}

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
    fn listen(this: ThisListener<'_, '_>) -> PyResult<()> {
        let waiter = Waiter::Step(BoundMethod::new(this, accept_step));
        let previous = this.core.add_waiter(this.py(), this.fd, Direction::Read, waiter)?;
        drop(previous);
        Ok(())
    }

    fn accept(&self, py: Python<'_>) -> PyResult<Accepted> {
        // SAFETY: the listener keeps the socket.
        let fd = self.place.map_or(self.fd, |place| unsafe { place.get() });
        match socket::accept(fd) {
            Ok((fd, peer)) => Ok(Accepted::Connection(fd, peer.into())),
            Err(error) if socket::is_not_ready(&error) => Ok(Accepted::None),
            Err(error) => match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::ConnectionAborted, _) => Ok(Accepted::Aborted),
                (_, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
                    Ok(Accepted::Exhausted(error))
                }
                _ => Err(os_error(py, error)),
            },
        }
    }

    /// Accepts connections that wait, twice as many each time until there are no more, and at the most as many as the
    /// backlog says that there can be. The poller tells of the rest.
    fn accept_batch(this: ThisListener<'_, '_>) -> PyResult<()> {
        // SAFETY: the listener keeps the socket.
        if this.place.is_some_and(|place| unsafe { place.get() } < 0) {
            // The program has closed it, and its number is somebody else's by now.
            this.stopped.set(true);
            drop(this.core.remove_waiter(this.fd, Direction::Read, Some(&this.object())));
            return Ok(());
        }
        let batch = this.batch.get();
        this.batch.set((2 * batch).min(this.backlog + 1));
        for _ in 0..batch {
            // A protocol factory may have closed the server.
            if this.stopped.get() {
                return Ok(());
            }
            match this.accept(this.py())? {
                Accepted::Connection(fd, peer) => {
                    this.core.metrics.counts.accepted.add(1);
                    Listener::serve(this, fd, peer)?;
                }
                Accepted::Aborted => {}
                Accepted::None => {
                    this.batch.set(1);
                    return Ok(());
                }
                Accepted::Exhausted(error) => return Listener::rest(this, error),
            }
        }
        Ok(())
    }

    /// Reports that connections cannot be accepted now, and tries again in a second.
    fn rest(this: ThisListener<'_, '_>, error: io::Error) -> PyResult<()> {
        let py = this.py();
        drop(this.core.remove_waiter(this.fd, Direction::Read, Some(&this.object())));
        let error = Object::from(os_error(py, error).value(py));
        let arguments = [&this.event_loop, &error, &this.socket, &this.object()];
        let reported = imports(py).and_then(|imports| imports.report_accept.call(py, &arguments));
        reported.map(drop).or_else(|error| {
            // Nobody will call resume(). The event loop may run again after what left it.
            resume(this).and(Err(error))
        })
    }

    /// Makes a transport of a connection, in a context of its own. What goes wrong is told in debug mode only, as
    /// asyncio has it: any stranger can make it happen.
    fn serve(this: ThisListener<'_, '_>, fd: OwnedFd, peer: Address) -> PyResult<()> {
        let py = this.py();
        let context = copy_of_context(py, &this.context)?;
        let result = run_in_context(py, &context, || {
            if this.core.schedule.debug() {
                Listener::log(this, &fd, &peer)?;
            }
            match &this.tls {
                Some(tls) => Listener::serve_as_asyncio(this, tls, fd, &peer, &context),
                None if sockets_are_patched() => {
                    let none = || Object::none(py);
                    let plain = Tls { context: none(), handshake_timeout: none(), shutdown_timeout: none() };
                    Listener::serve_as_asyncio(this, &plain, fd, &peer, &context)
                }
                None => Listener::serve_plainly(this, fd, peer, &context),
            }
        });
        let Err(error) = result else { return Ok(()) };
        let exception = reraise_fatal(py, error)?;
        if this.core.schedule.debug() {
            imports(py)?.report_connection.call(py, &[&this.event_loop, &exception])?;
        }
        Ok(())
    }

    #[cold]
    fn log(this: ThisListener<'_, '_>, fd: &OwnedFd, peer: &Address) -> PyResult<()> {
        let py = this.py();
        let none = Object::none(py);
        let server = this.server.as_ref().unwrap_or(&none);
        let peer = peer.to_python(py)?.unwrap_or_else(|| none.clone());
        let fd = Object::from_int(py, fd.as_raw_fd())?;
        imports(py)?.log_connection.call(py, &[server, &peer, &fd]).map(drop)
    }

    fn serve_plainly(
        this: ThisListener<'_, '_>,
        fd: OwnedFd,
        peer: Address,
        context: &Object,
    ) -> PyResult<()> {
        let py = this.py();
        let protocol = this.protocol_factory.call(py, &[])?;
        check_protocol(py, &protocol)?;
        if cfg!(not(target_os = "linux")) && peer.is_internet() {
            socket::set_nodelay(fd.as_raw_fd());
        }
        let number = fd.as_raw_fd();
        let params = EndpointParams {
            core: Rc::clone(&this.core),
            event_loop: this.event_loop.clone(),
            fd: number,
            protocol,
            waiter: None,
            extra: None,
            context: this.shares_context.then(|| context.clone()),
        };
        let file = SocketFile::new(fd, Some(peer));
        let transport = Stream::create(py, params, file, this.server.clone())?;
        if let Some(token) = transport.token() {
            this.core.note_accepted(token);
        }
        Ok(())
    }

    /// asyncio's own way: a task, which waits for the handshake if there is one.
    fn serve_as_asyncio(
        this: ThisListener<'_, '_>,
        tls: &Tls,
        fd: OwnedFd,
        peer: &Address,
        context: &Object,
    ) -> PyResult<()> {
        let py = this.py();
        let connection = socket_of(py, fd).map_err(|(error, _)| error)?;
        let extra = dict(py)?;
        let peername = match peer.to_python(py)? {
            Some(peername) => peername,
            None => connection.call_method0(py, intern!(py, "getpeername"))?,
        };
        extra.set_item(intern!(py, "peername"), peername.bind(py))?;
        let extra = Object::from(extra);
        let none = Object::none(py);
        let mut arguments = vec![
            &this.event_loop,
            &this.protocol_factory,
            &connection,
            &extra,
            &tls.context,
            this.server.as_ref().unwrap_or(&none),
            &tls.handshake_timeout,
            &tls.shutdown_timeout,
        ];
        let keywords = dict(py)?;
        if this.shares_context {
            arguments.push(context);
            keywords.set_item(intern!(py, "context"), context.bind(py))?;
        }
        let mut call = Stack::new();
        arguments.into_iter().for_each(|argument| call.push(argument));
        let accept = call.call_method(py, intern!(py, "_accept_connection2"))?;
        let name = intern!(py, "create_task");
        call_method_with_keywords(py, &this.event_loop, name, &[&accept], &keywords).map(drop)
    }
}

fn accept_step(this: ThisListener<'_, '_>) -> PyResult<()> {
    if this.stopped.get() { Ok(()) } else { Listener::accept_batch(this) }
}

fn take_accepted(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let accepted = this.core.take_accepted();
    tuple(this.py(), &accepted.iter().collect::<Vec<_>>())
}

/// Listens again after [`Listener::rest`].
fn resume(this: ThisListener<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let fd: RawFd = this.socket.call_method0(py, intern!(py, "fileno"))?.bind(py).extract()?;
    if !this.stopped.get() && fd == this.fd {
        Listener::listen(this)?;
    }
    Ok(Object::none(py))
}

impl Native for Listener {
    crate::class_static!(0);

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.event_loop);
        visitor.object(&self.protocol_factory);
        visitor.object(&self.socket);
        visitor.optional(&self.server);
        visitor.object(&self.context);
        if let Some(tls) = &self.tls {
            visitor.object(&tls.context);
            visitor.object(&tls.handshake_timeout);
            visitor.object(&tls.shutdown_timeout);
        }
    }

    fn clear(&self) {
        self.stopped.set(true);
    }
}

/// Makes the class of listeners.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let definition = Definition {
        name: c"hotloop._core.Listener",
        doc: c"A listening socket whose connections become transports.",
        base: module.py().get_type::<PyAny>(),
        methods: vec![method0!(
            Listener,
            "resume",
            resume,
            "resume($self, /)\n--\n\nAccept connections again, unless the server was closed meanwhile."
        )],
        attributes: Vec::new(),
        slots: Vec::new(),
        open: false,
    };
    add(module, "Listener", class::make::<Listener>(definition)?)
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(
            Loop,
            "_start_serving",
            start_serving,
            "_start_serving($self, protocol_factory, sock, sslcontext=None, server=None, backlog=100, \
             ssl_handshake_timeout=None, ssl_shutdown_timeout=None, context=None)\n--\n\n\
             Accept the connections of a listening socket."
        ),
        method0!(
            Loop,
            "_take_accepted",
            take_accepted,
            "_take_accepted($self, /)\n--\n\n\
             Return the transports of connections whose connection_made() has not been called, or what it has \
             scheduled has not begun; each once."
        ),
        method1!(
            Loop,
            "_stop_serving",
            "sock",
            stop_serving,
            "Stop accepting, and close the listening socket."
        ),
    ]
}
