//! The stream transport: TCP and Unix sockets.
//!
//! What is written is sent at the end of the iteration, all of it at once, so that a busy server does not wake its
//! peers one by one in the middle of its work. Nobody can tell: whatever looks at what was sent (the buffer's size,
//! close(), abort(), write_eof()) has it sent first.
//!
//! Interest in events is changed late: pause_reading() sets a flag, and only an event that arrives while it is set
//! costs a system call.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::address::Address;
use super::flow::{self, FlowControl, Parties};
use super::write_queue::{Progress, WriteQueue};
use crate::core::{Core, Readiness, Ready};
use crate::cpython::class::{Class, Native, Obj, This, Visitor};
use crate::cpython::object::{
    Bytes, Object, ObjectCell, WritableBuffer, copy_context, new_bytes, run_in_context,
};
use crate::cpython::os_error::{OrOsError, os_error};
use crate::handle::survivable;
use crate::imports::imports;
use crate::reactor::poller::Interest;
use crate::reactor::registry::Slot;
use crate::reactor::socket;

/// Who owns the descriptor.
pub enum Socket {
    /// Nobody has asked for a Python object yet.
    Native(OwnedFd),
    /// A socket.socket.
    Python(Object),
    Closed,
}

impl Socket {
    pub fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        match self {
            Socket::Native(fd) => Ok(fd.as_raw_fd()),
            Socket::Python(socket) => socket.bind(py).call_method0(intern!(py, "fileno"))?.extract(),
            Socket::Closed => Ok(-1),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Open,
    /// close() was called; what is queued is still being sent.
    Closing,
    /// connection_lost() is scheduled.
    Lost,
    /// connection_lost() was called.
    Closed,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ProtocolKind {
    Streaming,
    Buffered,
}

/// What a transport is made of.
pub struct Parts {
    pub core: Rc<Core>,
    pub event_loop: Object,
    pub socket: Socket,
    pub protocol: Object,
    /// A future to resolve when connection_made() has been called.
    pub waiter: Option<Object>,
    pub extra: Option<Object>,
    pub server: Option<Object>,
    /// The context of all callbacks, if they are to share one.
    pub context: Option<Object>,
    pub peer: Option<Address>,
}

pub struct Stream {
    core: Rc<Core>,
    event_loop: Object,
    pub(super) socket: RefCell<Socket>,
    pub(super) fd: RawFd,
    slot: Cell<Option<Slot>>,
    pub(super) protocol: ObjectCell,
    kind: Cell<ProtocolKind>,
    waiter: ObjectCell,
    pub(super) extra: ObjectCell,
    server: ObjectCell,
    pub(super) phase: Cell<Phase>,
    /// Whether pause_reading() is in force.
    paused: Cell<bool>,
    /// Whether what arrives is wanted: not before connection_made(), while paused, or after the end of the stream.
    pub(super) wants_read: Cell<bool>,
    /// Whether write_eof() was called.
    pub(super) eof_written: Cell<bool>,
    pub(super) queue: RefCell<WriteQueue>,
    /// Whether the socket took no more, so that the rest waits for it to become writable.
    pub(super) blocked: Cell<bool>,
    /// Whether the queue will be sent at the end of the iteration.
    flush_scheduled: Cell<bool>,
    pub(super) flow: FlowControl,
    /// Writes since the connection was lost.
    lost_writes: Cell<u32>,
    /// A future that sendfile waits for: the queue is empty, and nothing may be added.
    pub(super) empty_waiter: ObjectCell,
    context: Option<Object>,
    made_context: ObjectCell,
    read_context: Object,
    lost_context: ObjectCell,
    lost_exception: ObjectCell,
    pub(super) peer: Option<Address>,
    /// The local address, noted when the socket is closed.
    pub(super) local: RefCell<Option<Address>>,
}

pub type ThisStream<'a, 'py> = This<'a, 'py, Stream>;

impl Stream {
    /// Makes a transport, attaches it to its server, and schedules connection_made().
    pub fn create(py: Python<'_>, parts: Parts) -> PyResult<Obj<Stream>> {
        let fd = parts.socket.fileno(py)?;
        let fixed_or_copy = || match &parts.context {
            Some(context) => Ok(context.clone()),
            None => copy_context(py),
        };
        let stream = Stream {
            made_context: ObjectCell::new(Some(fixed_or_copy()?)),
            read_context: fixed_or_copy()?,
            kind: Cell::new(kind_of(py, &parts.protocol)?),
            core: parts.core,
            event_loop: parts.event_loop,
            socket: RefCell::new(parts.socket),
            fd,
            slot: Cell::new(None),
            protocol: ObjectCell::new(Some(parts.protocol)),
            waiter: ObjectCell::new(parts.waiter),
            extra: ObjectCell::new(parts.extra),
            server: ObjectCell::default(),
            phase: Cell::new(Phase::Open),
            paused: Cell::new(false),
            wants_read: Cell::new(false),
            eof_written: Cell::new(false),
            queue: RefCell::default(),
            blocked: Cell::new(false),
            flush_scheduled: Cell::new(false),
            flow: FlowControl::default(),
            lost_writes: Cell::new(0),
            empty_waiter: ObjectCell::default(),
            context: parts.context,
            lost_context: ObjectCell::default(),
            lost_exception: ObjectCell::default(),
            peer: parts.peer,
            local: RefCell::default(),
        };
        let stream = Obj::new(py, stream)?;
        let object = stream.as_object();
        stream.slot.set(Some(stream.core.attach(fd, object, on_ready)?));
        if let Some(server) = parts.server {
            call_server(py, &server, "_attach", object)?;
            stream.server.set(Some(server));
        }
        stream.core.push(Ready::Step(object.clone(), connection_made));
        Ok(stream)
    }

    pub fn event_loop(&self) -> &Object {
        &self.event_loop
    }

    pub fn debug(&self) -> bool {
        self.core.schedule.debug.get()
    }

    pub fn is_closing(&self) -> bool {
        self.phase.get() != Phase::Open
    }

    pub fn is_reading(&self) -> bool {
        !self.is_closing() && !self.paused.get()
    }

    fn is_lost(&self) -> bool {
        matches!(self.phase.get(), Phase::Lost | Phase::Closed)
    }

    pub fn set_protocol(&self, py: Python<'_>, protocol: Object) -> PyResult<()> {
        self.kind.set(kind_of(py, &protocol)?);
        self.protocol.set(Some(protocol));
        Ok(())
    }

    fn with_parties<R>(
        &self,
        transport: &Object,
        py: Python<'_>,
        f: impl FnOnce(&Parties<'_>) -> PyResult<R>,
    ) -> PyResult<R> {
        let protocol = self.protocol.get().unwrap_or_else(|| Object::none(py));
        f(&Parties { event_loop: &self.event_loop, transport, protocol: &protocol })
    }

    // --- Interest in events ---

    /// Asks the kernel for the events that are wanted now.
    fn sync_interest(&self) -> PyResult<()> {
        let Some(slot) = self.slot.get() else { return Ok(()) };
        self.core
            .set_interest(slot, Interest { readable: self.wants_read.get(), writable: self.blocked.get() })
    }

    fn is_registered_for_reading(&self) -> bool {
        self.slot.get().is_some_and(|slot| self.core.interest(slot).readable)
    }

    pub fn pause_reading(&self) -> bool {
        if !self.is_reading() {
            return false;
        }
        self.paused.set(true);
        self.wants_read.set(false);
        true
    }

    pub fn resume_reading(&self) -> PyResult<bool> {
        if self.is_closing() || !self.paused.get() {
            return Ok(false);
        }
        self.paused.set(false);
        self.wants_read.set(true);
        if !self.is_registered_for_reading() {
            self.sync_interest()?;
        }
        Ok(true)
    }

    // --- Reading ---

    fn read(this: ThisStream<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let Some(protocol) = this.protocol.get() else { return Ok(()) };
        let received = match this.kind.get() {
            ProtocolKind::Streaming => Stream::receive(this, &protocol),
            ProtocolKind::Buffered => Stream::receive_into_buffer(this, &protocol),
        };
        match received {
            Ok(Received::Data(_) | Received::Nothing) => Ok(()),
            Ok(Received::End) => Stream::end_of_stream(this, &protocol),
            Err((error, message)) => Stream::fail(py, &this, error, message),
        }
    }

    fn receive(this: ThisStream<'_, '_>, protocol: &Object) -> Result<Received, Failure> {
        let py = this.py();
        let data = this.core.with_buffer(|buffer| match socket::recv(this.fd, buffer) {
            Ok(0) => Ok(Received::End),
            Ok(count) => match new_bytes(py, &buffer[..count]) {
                Ok(data) => Ok(Received::Data(data)),
                Err(error) => Err((error, READ_FAILED)),
            },
            Err(error) => no_data(error),
        })?;
        let Received::Data(data) = data else { return Ok(data) };
        match protocol.call_method1(py, intern!(py, "data_received"), &data) {
            Ok(_) => Ok(Received::Nothing),
            Err(error) => Err((error, "Fatal error: protocol.data_received() call failed.")),
        }
    }

    fn receive_into_buffer(this: ThisStream<'_, '_>, protocol: &Object) -> Result<Received, Failure> {
        let py = this.py();
        let get_buffer_failed = |error| (error, "Fatal error: protocol.get_buffer() call failed.");
        let hint =
            (-1).into_pyobject(py).map(|hint| Object::from(&hint)).unwrap_or_else(|never| match never {});
        let buffer =
            protocol.call_method1(py, intern!(py, "get_buffer"), &hint).map_err(get_buffer_failed)?;
        if buffer.bind(py).len().map_err(get_buffer_failed)? == 0 {
            let error = PyRuntimeError::new_err("get_buffer() returned an empty buffer");
            return Err(get_buffer_failed(error));
        }
        let received = match WritableBuffer::new(&buffer, py) {
            Ok(mut view) => socket::recv(this.fd, view.as_mut_slice()),
            Err(error) => return Err((error, READ_FAILED)),
        };
        match received {
            Ok(0) => Ok(Received::End),
            Ok(count) => {
                let updated = count.into_pyobject(py).map_err(PyErr::from).and_then(|count| {
                    protocol.call_method1(py, intern!(py, "buffer_updated"), &count.into())
                });
                match updated {
                    Ok(_) => Ok(Received::Nothing),
                    Err(error) => Err((error, "Fatal error: protocol.buffer_updated() call failed.")),
                }
            }
            Err(error) => no_data(error),
        }
    }

    fn end_of_stream(this: ThisStream<'_, '_>, protocol: &Object) -> PyResult<()> {
        let py = this.py();
        if this.debug() {
            log_debug(py, "%r received EOF", &this)?;
        }
        let keep_open = protocol
            .call_method0(py, intern!(py, "eof_received"))
            .and_then(|keep_open| keep_open.bind(py).is_truthy());
        match keep_open {
            Ok(true) => {
                this.wants_read.set(false);
                Ok(())
            }
            Ok(false) => Stream::close(this),
            Err(error) => Stream::fail(py, &this, error, "Fatal error: protocol.eof_received() call failed."),
        }
    }

    // --- Writing ---

    /// Queues chunks, to be sent at the end of the iteration.
    pub fn write(this: ThisStream<'_, '_>, chunks: impl IntoIterator<Item = Bytes>) -> PyResult<()> {
        let py = this.py();
        if this.is_lost() {
            return this.count_lost_write(py);
        }
        let size = {
            let mut queue = this.queue.borrow_mut();
            chunks.into_iter().for_each(|chunk| queue.push(chunk));
            queue.size()
        };
        if size == 0 {
            return Ok(());
        }
        if this.blocked.get() {
            return Stream::pause_protocol_if_above(this, size);
        }
        if size > this.flow.high() {
            Stream::flush(this)?;
            let size = this.queue.borrow().size();
            return Stream::pause_protocol_if_above(this, size);
        }
        if !this.flush_scheduled.get() {
            if !this.core.flush_later(&this.object(), flush_step) {
                return Stream::flush(this);
            }
            this.flush_scheduled.set(true);
        }
        Ok(())
    }

    /// asyncio's LOG_THRESHOLD_FOR_CONNLOST_WRITES: so many writes to a lost connection pass in silence.
    fn count_lost_write(&self, py: Python<'_>) -> PyResult<()> {
        let count = self.lost_writes.get().saturating_add(1);
        self.lost_writes.set(count);
        if count >= 5 { imports(py)?.log_lost_write.call(py, &[]).map(drop) } else { Ok(()) }
    }

    pub fn pause_protocol_if_above(this: ThisStream<'_, '_>, size: usize) -> PyResult<()> {
        if size <= this.flow.high() {
            return Ok(());
        }
        let py = this.py();
        this.with_parties(&this.object(), py, |parties| this.flow.pause_if_above(py, size, parties))
    }

    /// Sends what is queued, unless the socket has said that it takes no more.
    pub fn flush_unless_blocked(this: ThisStream<'_, '_>) -> PyResult<()> {
        if this.blocked.get() || this.queue.borrow().is_empty() { Ok(()) } else { Stream::flush(this) }
    }

    /// Sends what is queued; what the socket does not take waits until it becomes writable.
    fn flush(this: ThisStream<'_, '_>) -> PyResult<()> {
        Stream::send_queued(this)?;
        if this.phase.get() == Phase::Closing && this.queue.borrow().is_empty() {
            return this.lose(this.py(), &this.object(), None);
        }
        Ok(())
    }

    fn send_queued(this: ThisStream<'_, '_>) -> PyResult<()> {
        let py = this.py();
        if this.is_lost() {
            return Ok(());
        }
        this.core.stir();
        let progress = this.queue.borrow_mut().send(this.fd);
        match progress {
            Ok(Progress::Drained) => {
                if this.blocked.replace(false) {
                    this.sync_interest()?;
                }
                Ok(())
            }
            Ok(Progress::Blocked) => {
                if !this.blocked.replace(true) {
                    this.sync_interest()?;
                }
                Ok(())
            }
            Err(error) => {
                this.queue.borrow_mut().clear();
                let error = os_error(error);
                let exception = Object::from(error.value(py));
                Stream::fail(py, &this, error, "Fatal write error on socket transport")?;
                if let Some(waiter) = this.empty_waiter.get() {
                    waiter.call_method1(py, intern!(py, "set_exception"), &exception)?;
                }
                Ok(())
            }
        }
    }

    /// The socket can be written to again.
    fn write_ready(this: ThisStream<'_, '_>) -> PyResult<()> {
        let py = this.py();
        Stream::send_queued(this)?;
        if this.is_lost() {
            return Ok(());
        }
        let size = this.queue.borrow().size();
        this.with_parties(&this.object(), py, |parties| this.flow.resume_if_below(py, size, parties))?;
        // The protocol may have written more, or closed.
        if this.is_lost() || !this.queue.borrow().is_empty() {
            return Ok(());
        }
        if let Some(waiter) = this.empty_waiter.get() {
            waiter.call_method1(py, intern!(py, "set_result"), &Object::none(py))?;
        }
        if this.phase.get() == Phase::Closing {
            this.phase.set(Phase::Lost);
            return Stream::call_connection_lost(this, &Object::none(py));
        }
        if this.eof_written.get() {
            socket::shutdown_write(this.fd).or_os_error()?;
        }
        Ok(())
    }

    pub fn write_eof(this: ThisStream<'_, '_>) -> PyResult<()> {
        if this.is_closing() || this.eof_written.get() {
            return Ok(());
        }
        Stream::flush_unless_blocked(this)?;
        if this.is_lost() {
            return Ok(());
        }
        this.eof_written.set(true);
        if this.queue.borrow().is_empty() {
            socket::shutdown_write(this.fd).or_os_error()?;
        }
        Ok(())
    }

    // --- Closing ---

    pub fn close(this: ThisStream<'_, '_>) -> PyResult<()> {
        if this.is_closing() {
            return Ok(());
        }
        Stream::flush_unless_blocked(this)?;
        if this.is_closing() {
            return Ok(());
        }
        this.wants_read.set(false);
        if this.queue.borrow().is_empty() {
            this.lose(this.py(), &this.object(), None)
        } else {
            this.phase.set(Phase::Closing);
            Ok(())
        }
    }

    /// Closes at once, with an exception for connection_lost().
    pub fn abort(this: ThisStream<'_, '_>, exception: Option<Object>) -> PyResult<()> {
        if this.is_lost() {
            return Ok(());
        }
        // asyncio has sent by now what was written, as far as the socket took it.
        Stream::flush_unless_blocked(this)?;
        this.force_close(this.py(), &this.object(), exception)
    }

    fn force_close(&self, py: Python<'_>, this: &Object, exception: Option<Object>) -> PyResult<()> {
        if self.is_lost() {
            return Ok(());
        }
        self.queue.borrow_mut().clear();
        self.blocked.set(false);
        self.wants_read.set(false);
        self.lose(py, this, exception)
    }

    /// Schedules connection_lost().
    fn lose(&self, py: Python<'_>, this: &Object, exception: Option<Object>) -> PyResult<()> {
        self.phase.set(Phase::Lost);
        let context = match &self.context {
            Some(context) => context.clone(),
            None => copy_context(py)?,
        };
        self.lost_context.set(Some(context));
        self.lost_exception.set(exception);
        self.core.push(Ready::Step(this.clone(), connection_lost));
        Ok(())
    }

    /// Ends the connection because of an error, which is reported unless it is the network's.
    pub fn fail(py: Python<'_>, this: &ThisStream<'_, '_>, error: PyErr, message: &str) -> PyResult<()> {
        let exception = survivable(py, error)?;
        // asyncio has sent by now what was written.
        Stream::flush_unless_blocked(*this)?;
        let object = this.object();
        let protocol = this.protocol.get().unwrap_or_else(|| Object::none(py));
        let message = message.into_pyobject(py)?.into();
        let arguments = [&this.event_loop, &message, &exception, &object, &protocol];
        imports(py)?.report_fatal.call(py, &arguments)?;
        this.force_close(py, &object, Some(exception))
    }

    fn call_connection_lost(this: ThisStream<'_, '_>, exception: &Object) -> PyResult<()> {
        let py = this.py();
        let protocol = this.protocol.get();
        let result = match &protocol {
            Some(protocol) => protocol.call_method1(py, intern!(py, "connection_lost"), exception),
            None => Ok(Object::none(py)),
        };
        let object = this.object();
        let reported = this.with_parties(&object, py, |parties| {
            flow::report(py, result, "Exception in callback protocol.connection_lost()", parties)
        });
        let released = this.release(py, &object);
        if let Some(waiter) = this.empty_waiter.get() {
            imports(py)?.fail_empty_waiter.call(py, &[&waiter])?;
        }
        reported.and(released)
    }

    /// Closes the socket and lets go of everything.
    fn release(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        self.phase.set(Phase::Closed);
        self.wants_read.set(false);
        self.blocked.set(false);
        if let Some(slot) = self.slot.take() {
            self.core.detach(slot);
        }
        if self.local.borrow().is_none() {
            let address = socket::local_address(self.fd).ok().map(Address::from);
            self.local.replace(address);
        }
        let socket = self.socket.replace(Socket::Closed);
        let closed = match &socket {
            Socket::Python(socket) => socket.call_method0(py, intern!(py, "close")).map(drop),
            Socket::Native(_) | Socket::Closed => Ok(()),
        };
        drop(socket);
        self.queue.borrow_mut().clear();
        self.protocol.set(None);
        let detached = match self.server.take() {
            Some(server) => call_server(py, &server, "_detach", this),
            None => Ok(()),
        };
        closed.and(detached)
    }

    // --- sendfile ---

    pub fn make_empty_waiter(this: ThisStream<'_, '_>) -> PyResult<Object> {
        let py = this.py();
        if this.empty_waiter.is_some() {
            return Err(PyRuntimeError::new_err("Empty waiter is already set"));
        }
        Stream::flush_unless_blocked(this)?;
        let waiter = this.event_loop.call_method0(py, intern!(py, "create_future"))?;
        this.empty_waiter.set(Some(waiter.clone()));
        if this.queue.borrow().is_empty() {
            waiter.call_method1(py, intern!(py, "set_result"), &Object::none(py))?;
        }
        Ok(waiter)
    }

    // --- What Python sees of the socket ---

    /// The socket.socket, which from now on owns the descriptor.
    pub fn python_socket(&self, py: Python<'_>) -> PyResult<Object> {
        let descriptor = {
            let mut socket = self.socket.borrow_mut();
            match std::mem::replace(&mut *socket, Socket::Closed) {
                Socket::Native(fd) => Some(fd.into_raw_fd()),
                Socket::Python(object) => {
                    *socket = Socket::Python(object.clone());
                    return Ok(object);
                }
                Socket::Closed => None,
            }
        };
        let descriptor = descriptor.unwrap_or(-1).into_pyobject(py)?.into();
        let made = imports(py)?.make_socket.call(py, &[&descriptor])?;
        if !matches!(self.phase.get(), Phase::Closed) {
            self.socket.replace(Socket::Python(made.clone()));
        }
        Ok(made)
    }

    pub fn local_address(&self, py: Python<'_>) -> PyResult<Object> {
        let asked = match &*self.local.borrow() {
            Some(address) => address.to_python(py)?,
            None => match socket::local_address(self.fd) {
                Ok(address) => Address::from(address).to_python(py)?,
                Err(_) => Some(Object::none(py)),
            },
        };
        match asked {
            Some(address) => Ok(address),
            None => Ok(self.python_socket(py)?.bind(py).call_method0("getsockname")?.into()),
        }
    }

    pub fn peer_address(&self, py: Python<'_>) -> PyResult<Object> {
        let Some(peer) = &self.peer else { return Ok(Object::none(py)) };
        match peer.to_python(py)? {
            Some(address) => Ok(address),
            None => Ok(self.python_socket(py)?.bind(py).call_method0("getpeername")?.into()),
        }
    }
}

enum Received {
    Data(Object),
    /// Nothing that is not delivered yet.
    Nothing,
    End,
}

const READ_FAILED: &str = "Fatal read error on socket transport";

/// An error, and what to say of it.
type Failure = (PyErr, &'static str);

fn no_data(error: io::Error) -> Result<Received, Failure> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Received::Nothing),
        _ => Err((os_error(error), READ_FAILED)),
    }
}

fn kind_of(py: Python<'_>, protocol: &Object) -> PyResult<ProtocolKind> {
    let buffered = protocol.bind(py).is_instance(&imports(py)?.buffered_protocol.bind(py))?;
    Ok(if buffered { ProtocolKind::Buffered } else { ProtocolKind::Streaming })
}

/// Tells a server of a connection; before 3.13 it only counts them.
fn call_server(py: Python<'_>, server: &Object, method: &str, transport: &Object) -> PyResult<()> {
    let server = server.bind(py);
    if imports(py)?.server_takes_transport {
        server.call_method1(method, (transport.bind(py),)).map(drop)
    } else {
        server.call_method0(method).map(drop)
    }
}

pub fn log_debug(py: Python<'_>, message: &str, this: &ThisStream<'_, '_>) -> PyResult<()> {
    imports(py)?.logger.bind(py).call_method1(intern!(py, "debug"), (message, this.as_any())).map(drop)
}

/// The stream that a step was queued for.
fn stream(object: &Object) -> PyResult<Obj<Stream>> {
    Obj::downcast(object).ok_or_else(|| PyRuntimeError::new_err("not a stream transport"))
}

fn connection_made(py: Python<'_>, object: &Object) -> PyResult<()> {
    let stream = stream(object)?;
    let Some(context) = stream.made_context.take() else { return Ok(()) };
    run_in_context(py, &context, || {
        if let Some(protocol) = stream.protocol.get() {
            let result = protocol.call_method1(py, intern!(py, "connection_made"), object);
            stream.with_parties(object, py, |parties| {
                flow::report(py, result, "Exception in callback protocol.connection_made()", parties)
            })?;
        }
        if stream.is_reading() {
            stream.wants_read.set(true);
            if let Err(error) = stream.sync_interest() {
                let message = "Fatal error: the socket cannot be watched";
                Stream::fail(py, &stream.this(py), error, message)?;
            }
        }
        match stream.waiter.take() {
            Some(waiter) if !waiter.bind(py).call_method0(intern!(py, "done"))?.is_truthy()? => {
                waiter.call_method1(py, intern!(py, "set_result"), &Object::none(py)).map(drop)
            }
            _ => Ok(()),
        }
    })
}

fn on_ready(py: Python<'_>, object: &Object, readiness: Readiness) -> PyResult<()> {
    let stream = stream(object)?;
    let this = stream.this(py);
    run_in_context(py, &stream.read_context, || {
        let mut unwanted = false;
        if readiness.readable && !stream.is_lost() {
            if stream.wants_read.get() {
                Stream::read(this)?;
            } else {
                unwanted = true;
            }
        }
        if readiness.writable && !stream.is_lost() {
            if stream.blocked.get() {
                Stream::write_ready(this)?;
            } else {
                unwanted = true;
            }
        }
        if unwanted { stream.sync_interest() } else { Ok(()) }
    })
}

fn flush_step(py: Python<'_>, object: &Object) -> PyResult<()> {
    let stream = stream(object)?;
    stream.flush_scheduled.set(false);
    Stream::flush_unless_blocked(stream.this(py))
}

fn connection_lost(py: Python<'_>, object: &Object) -> PyResult<()> {
    let stream = stream(object)?;
    let Some(context) = stream.lost_context.take() else { return Ok(()) };
    let exception = stream.lost_exception.take().unwrap_or_else(|| Object::none(py));
    run_in_context(py, &context, || Stream::call_connection_lost(stream.this(py), &exception))
}

impl Native for Stream {
    fn class() -> &'static Class {
        static CLASS: Class = Class::new(0);
        &CLASS
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.event_loop);
        if let Ok(socket) = self.socket.try_borrow()
            && let Socket::Python(socket) = &*socket
        {
            visitor.object(socket);
        }
        visitor.cell(&self.protocol);
        visitor.cell(&self.waiter);
        visitor.cell(&self.extra);
        visitor.cell(&self.server);
        visitor.cell(&self.empty_waiter);
        visitor.optional(&self.context);
        visitor.cell(&self.made_context);
        visitor.object(&self.read_context);
        visitor.cell(&self.lost_context);
        visitor.cell(&self.lost_exception);
    }

    fn clear(&self) {
        self.protocol.set(None);
        self.waiter.set(None);
        self.extra.set(None);
        self.server.set(None);
        self.empty_waiter.set(None);
        self.made_context.set(None);
        self.lost_context.set(None);
        self.lost_exception.set(None);
    }

    const FINALIZES: bool = true;

    fn finalize(this: This<'_, '_, Self>) {
        if this.phase.get() == Phase::Closed {
            return;
        }
        let py = this.py();
        let object = this.object();
        let warned = imports(py).and_then(|imports| imports.warn_unclosed.call(py, &[&object]));
        let released = this.release(py, &object);
        if let Err(error) = warned.map(drop).and(released) {
            error.write_unraisable(py, Some(&this.as_any()));
        }
    }
}
