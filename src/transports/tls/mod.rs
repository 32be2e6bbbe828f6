//! TLS over a transport: asyncio's SSLProtocol and its transport.
//!
//! ```text
//! Unwrapped ── connection_made() ──> Handshake ──> Wrapped ── close(), close_notify, eof ──> Flushing ──> Shutdown
//!     ^                                  │            │                                         │            │
//!     └── connection_lost(), abort() ────┴────────────┴─────────────────────────────────────────┴────────────┘
//! ```
//!
//! The [`Protocol`] is that of the transport below, which tells it what has come; [`Transport`] is what the program's protocol gets.
//! [`engine::Engine`] encrypts and decrypts. Over a [`Stream`] no Python code runs for what comes and goes but the program's own; any
//! other transport is called by its methods.
//!
//! The states, the order of calls and the errors are those of the running Python's `asyncio/sslproto.py`, whose names the functions
//! have. What a connection does once (`hotloop/_tls.py`) is done in Python.

pub mod class;
mod ending;
mod engine;
mod handshake;
mod imports;
mod reading;
mod writing;

use std::cell::Cell;
use std::collections::VecDeque;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::flow::FlowControl;
use super::stream::Stream;
use crate::core::Core;
use crate::cpython::borrowing::StateCell;
use crate::cpython::buffer::Bytes;
use crate::cpython::class::{Class, Native, Obj, This, Visitor};
use crate::cpython::errors::{made, new_error};
use crate::cpython::object::{Object, ObjectCell};
use crate::cpython::ownership::{Owner, Shared, locked};
use crate::cpython::statics;
use crate::intern;
use crate::reactor::published::Published;
use engine::Engine;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unwrapped,
    Handshake,
    Wrapped,
    /// What is to be sent goes out, and what comes is still delivered.
    Flushing,
    Shutdown,
}

impl State {
    /// As asyncio's SSLProtocolState is shown.
    fn name(self) -> &'static str {
        match self {
            State::Unwrapped => "SSLProtocolState.UNWRAPPED",
            State::Handshake => "SSLProtocolState.DO_HANDSHAKE",
            State::Wrapped => "SSLProtocolState.WRAPPED",
            State::Flushing => "SSLProtocolState.FLUSHING",
            State::Shutdown => "SSLProtocolState.SHUTDOWN",
        }
    }
}

/// What the program's protocol was told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    ConnectionMade,
    Eof,
    ConnectionLost,
}

/// What is to be encrypted when the handshake is done, or when OpenSSL has what it needs of the peer.
#[derive(Default)]
struct Backlog {
    chunks: VecDeque<Bytes>,
    /// Bytes of the first chunk that are encrypted.
    written: usize,
    /// Bytes that are not.
    size: usize,
}

pub struct Protocol {
    core: Shared<Core>,
    event_loop: Object,
    engine: Engine,
    /// What get_extra_info() knows: a dict.
    extra: Object,
    /// What a transport of another kind receives into: a bytearray.
    buffer: ObjectCell,
    protocol: ObjectCell,
    is_buffered: Cell<bool>,
    transport: ObjectCell,
    /// The transport below, from connection_made() to connection_lost().
    below: ObjectCell,
    /// A future that is done when the handshake is.
    waiter: ObjectCell,
    state: Cell<State>,
    told: Cell<Told>,
    /// asyncio's `_conn_lost`: the loss itself, and writes since.
    conn_lost: Cell<u32>,
    backlog: StateCell<Backlog>,
    /// How long a handshake and a shutdown may take: numbers.
    timeouts: [Object; 2],
    handshake_timer: ObjectCell,
    shutdown_timer: ObjectCell,
    /// Whether a step of the handshake is left to another iteration.
    handshake_waits: Cell<bool>,
    /// In debug mode, when the handshake began.
    handshake_start: Cell<f64>,
    /// The transport below has enough to send.
    below_is_full: Cell<bool>,
    /// The transport below was told to stop reading.
    below_is_paused: Cell<bool>,
    reading_is_paused: Published<bool>,
    writing_is_paused: Cell<bool>,
    eof_received: Cell<bool>,
    incoming_limits: FlowControl,
    outgoing_limits: FlowControl,
}

pub type ThisProtocol<'a, 'py> = This<'a, 'py, Protocol>;

/// What the program's protocol gets.
pub struct Transport {
    core: Shared<Core>,
    event_loop: Object,
    /// None after a close() of what was closed already, as in asyncio: a connection that has ended leaves no garbage so.
    tls: ObjectCell,
    closed: Published<bool>,
    /// Whether another thread has closed it, which the loop has yet to do.
    ended_elsewhere: Published<bool>,
}

pub type ThisTransport<'a, 'py> = This<'a, 'py, Transport>;

/// asyncio's high-water marks, in bytes.
const INCOMING: usize = 256 * 1024;
const OUTGOING: usize = 512 * 1024;

/// What a connection is made of.
pub struct ProtocolParams {
    pub core: Shared<Core>,
    pub event_loop: Object,
    pub protocol: Object,
    pub waiter: Option<Object>,
    pub ssl_object: Object,
    pub raw: Option<Object>,
    /// MemoryBIOs.
    pub memory: [Object; 2],
    pub may_be_direct: bool,
    pub extra: Object,
    pub timeouts: [Object; 2],
    pub calls_connection_made: bool,
}

impl Protocol {
    pub fn create(py: Python<'_>, params: ProtocolParams) -> PyResult<Obj<Protocol>> {
        let ProtocolParams { ssl_object, raw, memory, may_be_direct, protocol, .. } = params;
        let is_buffered = is_buffered(py, &protocol)?;
        let tls = Protocol {
            engine: Engine::new(py, ssl_object, raw, memory, may_be_direct)?,
            core: params.core,
            event_loop: params.event_loop,
            extra: params.extra,
            buffer: ObjectCell::default(),
            protocol: ObjectCell::new(Some(protocol)),
            is_buffered: Cell::new(is_buffered),
            transport: ObjectCell::default(),
            below: ObjectCell::default(),
            waiter: ObjectCell::new(params.waiter),
            state: Cell::new(State::Unwrapped),
            told: Cell::new(if params.calls_connection_made { Told::Nothing } else { Told::ConnectionMade }),
            conn_lost: Cell::new(0),
            backlog: StateCell::default(),
            timeouts: params.timeouts,
            handshake_timer: ObjectCell::default(),
            shutdown_timer: ObjectCell::default(),
            handshake_waits: Cell::new(false),
            handshake_start: Cell::new(0.0),
            below_is_full: Cell::new(false),
            below_is_paused: Cell::new(false),
            reading_is_paused: Published::new(false),
            writing_is_paused: Cell::new(false),
            eof_received: Cell::new(false),
            incoming_limits: FlowControl::with_high_water(INCOMING),
            outgoing_limits: FlowControl::with_high_water(OUTGOING),
        };
        let tls = Obj::new(py, tls)?;
        let transport = Transport {
            core: Shared::clone(&tls.core),
            event_loop: tls.event_loop.clone(),
            tls: ObjectCell::new(Some(tls.as_object().clone())),
            closed: Published::new(false),
            ended_elsewhere: Published::new(false),
        };
        tls.transport.set(Some(Obj::new(py, transport)?.into_object()));
        Ok(tls)
    }

    fn debug(&self) -> bool {
        self.core.schedule.debug()
    }

    /// The protocol that is called with what was decrypted.
    pub fn program_protocol(&self) -> Option<Object> {
        self.protocol.get()
    }

    fn set_protocol(this: ThisProtocol<'_, '_>, protocol: Object) -> PyResult<()> {
        this.is_buffered.set(is_buffered(this.py(), &protocol)?);
        replace(this, &this.protocol, Some(protocol));
        Ok(())
    }

    fn set_state(&self, py: Python<'_>, state: State) -> PyResult<()> {
        let before = self.state.get();
        let is_allowed = matches!(
            (before, state),
            (_, State::Unwrapped)
                | (State::Unwrapped, State::Handshake)
                | (State::Handshake, State::Wrapped)
                | (State::Wrapped, State::Flushing)
                | (State::Flushing, State::Shutdown)
        );
        if !is_allowed {
            let message = format!("cannot switch state from {} to {}", before.name(), state.name());
            return Err(new_error::<PyRuntimeError>(py, message));
        }
        self.state.set(state);
        Ok(())
    }

    /// Marks the transport as closed, so that nobody is warned.
    fn close_transport(&self) {
        if let Some(transport) = self.transport.get().as_ref().and_then(Obj::<Transport>::downcast) {
            transport.closed.set(true);
        }
    }

    /// The transport below, if no Python code has to be called for it.
    fn stream(&self) -> Option<Obj<Stream>> {
        self.below.get().as_ref().and_then(Obj::<Stream>::downcast)
    }

    /// Calls a method of the transport below, if it is there.
    fn call_below(&self, py: Python<'_>, method: &Bound<'_, PyString>, args: &[&Object]) -> PyResult<()> {
        match self.below.get() {
            Some(below) => below.call_method(py, method, args).map(drop),
            None => Ok(()),
        }
    }

    /// Has the loop call a method of this object.
    fn call_soon(this: ThisProtocol<'_, '_>, method: &Bound<'_, PyString>) -> PyResult<()> {
        let py = this.py();
        let callback = Object::from(this.as_any().getattr(method)?);
        this.event_loop.call_method(py, intern!(py, "call_soon"), &[&callback]).map(drop)
    }

    /// Has the loop call a method of this object after some time. Returns the timer.
    fn call_later(
        this: ThisProtocol<'_, '_>,
        delay: &Object,
        method: &Bound<'_, PyString>,
    ) -> PyResult<Object> {
        let py = this.py();
        let callback = Object::from(this.as_any().getattr(method)?);
        this.event_loop.call_method(py, intern!(py, "call_later"), &[delay, &callback])
    }
}

/// Replaces what other threads may [`ask`] for, and drops what it was.
fn replace(this: ThisProtocol<'_, '_>, cell: &ObjectCell, object: Option<Object>) {
    drop(locked(this.as_any(), || cell.replace(object)));
}

/// What a cell has, in any thread.
fn ask(this: ThisProtocol<'_, '_>, cell: &ObjectCell) -> Option<Object> {
    locked(this.as_any(), || cell.get())
}

/// Cancels a timer, if there is one.
fn cancel(py: Python<'_>, timer: &ObjectCell) -> PyResult<()> {
    match timer.take() {
        Some(timer) => timer.call_method(py, intern!(py, "cancel"), &[]).map(drop),
        None => Ok(()),
    }
}

fn is_buffered(py: Python<'_>, protocol: &Object) -> PyResult<bool> {
    let protocol = protocol.bind(py);
    // As asyncio, which finds it faster so.
    Ok(protocol.hasattr(intern!(py, "get_buffer"))?
        && protocol.is_instance(&crate::imports::imports(py)?.buffered_protocol.bind(py))?)
}

/// The exception, if `except Exception` would catch it.
fn caught(py: Python<'_>, error: PyErr) -> PyResult<Object> {
    let error = made(py, error);
    if !error.is_instance_of::<pyo3::exceptions::PyException>(py) {
        return Err(error);
    }
    Ok(error.into_value(py).into_bound(py).into())
}

impl Native for Protocol {
    fn class() -> &'static Class {
        &statics::SSL_PROTOCOL
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.event_loop);
        visitor.object(&self.extra);
        self.engine.traverse(visitor);
        self.timeouts.iter().for_each(|timeout| visitor.object(timeout));
        self.cells().iter().for_each(|cell| visitor.cell(cell));
        self.incoming_limits.traverse(visitor);
        self.outgoing_limits.traverse(visitor);
    }

    fn clear(&self) {
        self.cells().iter().for_each(|cell| cell.set(None));
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }
}

impl Protocol {
    fn cells(&self) -> [&ObjectCell; 7] {
        [
            &self.buffer,
            &self.protocol,
            &self.transport,
            &self.below,
            &self.waiter,
            &self.handshake_timer,
            &self.shutdown_timer,
        ]
    }
}

impl Transport {
    /// For the owner of the event loop.
    fn tls(&self) -> Option<Obj<Protocol>> {
        self.tls.get().as_ref().and_then(Obj::downcast)
    }

    /// As [`Transport::tls`], for any thread.
    fn tls_anywhere(this: ThisTransport<'_, '_>) -> Option<Obj<Protocol>> {
        locked(this.as_any(), || this.tls())
    }

    fn forget_tls(this: ThisTransport<'_, '_>) {
        drop(locked(this.as_any(), || this.tls.take()));
    }
}

impl Native for Transport {
    fn class() -> &'static Class {
        &statics::SSL_TRANSPORT
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.event_loop);
        visitor.cell(&self.tls);
    }

    fn clear(&self) {
        self.tls.set(None);
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }

    const FINALIZES: bool = true;

    fn needs_finalizer(&self) -> bool {
        !self.closed.get()
    }

    fn finalize(this: ThisTransport<'_, '_>) {
        let py = this.py();
        if this.closed.replace(true) {
            return;
        }
        let warned = imports::tls_imports(py).and_then(|imports| imports.warn_unclosed.call(py, &[]));
        if let Err(error) = warned {
            error.write_unraisable(py, Some(&this.as_any()));
        }
    }

    fn finalize_elsewhere(this: ThisTransport<'_, '_>) {
        Transport::finalize(this);
    }
}
