//! The stream transport: TCP and Unix sockets.
//!
//! What is written is sent at the end of the iteration, all of it at once, so that a busy server does not wake its
//! peers one by one in the middle of its work. Nobody can tell: whatever looks at what was sent (the buffer's size,
//! close(), abort(), write_eof()) has it sent first.
//!
//! Interest in events is changed late: pause_reading() sets a flag, and only an event that arrives while it is set
//! costs a system call.

pub mod class;
mod closing;
mod info;
mod reading;
mod writing;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::address::Address;
use super::flow::{self, FlowControl, Parties};
use super::write_queue::WriteQueue;
use crate::core::{Core, Readiness, Ready};
use crate::cpython::class::{Class, Native, Obj, This, Visitor};
use crate::cpython::object::{Object, ObjectCell, copy_context, run_in_context};
use crate::imports::imports;
use crate::reactor::poller::Interest;
use crate::reactor::registry::Slot;

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
    socket: RefCell<Socket>,
    fd: RawFd,
    slot: Cell<Option<Slot>>,
    protocol: ObjectCell,
    kind: Cell<ProtocolKind>,
    waiter: ObjectCell,
    extra: ObjectCell,
    server: ObjectCell,
    phase: Cell<Phase>,
    /// Whether the event loop keeps the transport alive.
    held: Cell<bool>,
    /// Whether pause_reading() is in force.
    paused: Cell<bool>,
    /// Whether what arrives is wanted: not before connection_made(), while paused, or after the end of the stream.
    wants_read: Cell<bool>,
    /// Whether write_eof() was called.
    eof_written: Cell<bool>,
    queue: RefCell<WriteQueue>,
    /// Whether the socket took no more, so that the rest waits for it to become writable.
    blocked: Cell<bool>,
    /// Whether the queue will be sent at the end of the iteration.
    flush_scheduled: Cell<bool>,
    flow: FlowControl,
    /// Writes since the connection was lost.
    lost_writes: Cell<u32>,
    /// A future that sendfile waits for: the queue is empty, and nothing may be added.
    empty_waiter: ObjectCell,
    context: Option<Object>,
    made_context: ObjectCell,
    read_context: ObjectCell,
    /// That of the write which found the socket full, unless the connection's does for all.
    write_context: ObjectCell,
    lost_context: ObjectCell,
    lost_exception: ObjectCell,
    peer: Option<Address>,
    /// The local address, noted when the socket is closed.
    local: RefCell<Option<Address>>,
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
            read_context: ObjectCell::new(Some(fixed_or_copy()?)),
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
            held: Cell::new(true),
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
            write_context: ObjectCell::default(),
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

    /// Runs `f` in one of the contexts, which are there unless the garbage collector has taken the transport apart.
    fn in_context(
        &self,
        py: Python<'_>,
        context: &ObjectCell,
        f: impl FnOnce() -> PyResult<()>,
    ) -> PyResult<()> {
        match context.get() {
            Some(context) => run_in_context(py, &context, f),
            None => Ok(()),
        }
    }

    // --- Interest in events ---

    /// Asks the kernel for the events that are wanted now.
    fn sync_interest(this: ThisStream<'_, '_>) -> PyResult<()> {
        let Some(slot) = this.slot.get() else { return Ok(()) };
        let interest = Interest { readable: this.wants_read.get(), writable: this.blocked.get() };
        this.core.set_interest(slot, interest)?;
        Stream::sync_hold(this)
    }

    /// Has the event loop keep the transport alive while any event is wanted.
    fn sync_hold(this: ThisStream<'_, '_>) -> PyResult<()> {
        let wanted = this.wants_read.get() || this.blocked.get();
        match this.slot.get() {
            Some(slot) if this.held.replace(wanted) != wanted => {
                this.core.hold(this.py(), slot, &this.object(), wanted)
            }
            _ => Ok(()),
        }
    }

    fn is_registered_for_reading(&self) -> bool {
        self.slot.get().is_some_and(|slot| self.core.interest(slot).readable)
    }

    pub fn pause_reading(this: ThisStream<'_, '_>) -> PyResult<bool> {
        if !this.is_reading() {
            return Ok(false);
        }
        this.paused.set(true);
        this.wants_read.set(false);
        Stream::sync_hold(this)?;
        Ok(true)
    }

    pub fn resume_reading(this: ThisStream<'_, '_>) -> PyResult<bool> {
        if this.is_closing() || !this.paused.get() {
            return Ok(false);
        }
        this.paused.set(false);
        this.wants_read.set(true);
        if this.context.is_none() {
            this.read_context.set(Some(copy_context(this.py())?));
        }
        if this.is_registered_for_reading() {
            Stream::sync_hold(this)?;
        } else {
            Stream::sync_interest(this)?;
        }
        Ok(true)
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
            if let Err(error) = Stream::sync_interest(stream.this(py)) {
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
    let mut unwanted = false;
    if readiness.readable && !stream.is_lost() {
        if stream.wants_read.get() {
            stream.in_context(py, &stream.read_context, || Stream::read(this))?;
        } else {
            unwanted = true;
        }
    }
    if readiness.writable && !stream.is_lost() {
        if stream.blocked.get() {
            let context =
                if stream.write_context.is_some() { &stream.write_context } else { &stream.read_context };
            stream.in_context(py, context, || Stream::write_ready(this))?;
        } else {
            unwanted = true;
        }
    }
    if unwanted { Stream::sync_interest(this) } else { Ok(()) }
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
        visitor.cell(&self.read_context);
        visitor.cell(&self.write_context);
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
        self.read_context.set(None);
        self.write_context.set(None);
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
