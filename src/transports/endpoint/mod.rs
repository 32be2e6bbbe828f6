//! What all transports share: a descriptor that an event loop watches, a protocol, and the stages of a life.
//!
//! Interest in events is changed late: pause_reading() sets a flag, and only an event that arrives while it is set
//! costs a system call.

mod ending;
mod protocol_calls;

use std::cell::Cell;
use std::ops::Deref;
use std::os::fd::RawFd;
use std::rc::Rc;

use pyo3::exceptions::PyPermissionError;
use pyo3::prelude::*;

use super::flow::FlowControl;
use crate::core::{Core, Direction, Readiness, ReadyEntry, Waiter};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{Native, Obj, This, Visitor};
use crate::cpython::object::{Object, ObjectCell, copy_context, copy_of_context, run_in_context};
use crate::handle::reraise_fatal;
use crate::imports::{imports, resolve};
use crate::intern;
use crate::reactor::poller::Interest;
use crate::reactor::registry::Token;

use ending::{call_connection_lost, tear_down};
pub use ending::{
    close, fatal_error, finalize, finish_closing, force_close, schedule_connection_lost, unregister,
};
pub use protocol_calls::{call_protocol, log, pause_protocol, report, resume_protocol};

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

/// What an endpoint is made of.
pub struct EndpointParams {
    pub core: Rc<Core>,
    pub event_loop: Object,
    pub fd: RawFd,
    pub protocol: Object,
    /// A future to resolve when connection_made() has been called.
    pub waiter: Option<Object>,
    pub extra: Option<Object>,
    /// The context of all callbacks, if they are to share one.
    pub context: Option<Object>,
}

pub struct Endpoint {
    pub core: Rc<Core>,
    pub event_loop: Object,
    pub fd: RawFd,
    token: Cell<Option<Token>>,
    pub protocol: ObjectCell,
    waiter: ObjectCell,
    pub extra: ObjectCell,
    pub phase: Cell<Phase>,
    /// Whether the event loop keeps the transport alive.
    held: Cell<bool>,
    /// Which directions are watched, if the descriptor is shared.
    watches_read: Cell<bool>,
    watches_write: Cell<bool>,
    /// Whether pause_reading() is in force.
    paused: Cell<bool>,
    /// Whether what arrives is wanted: not before connection_made(), while paused, or after the end.
    pub wants_read: Cell<bool>,
    /// Whether the descriptor took no more, so that the rest waits for it to become writable.
    pub blocked: Cell<bool>,
    pub flow: FlowControl,
    /// Writes since the connection was lost.
    lost_writes: Cell<u32>,
    context: Option<Object>,
    made_context: ObjectCell,
    read_context: ObjectCell,
    /// That of the write which found the descriptor full, unless the connection's does for all.
    write_context: ObjectCell,
    lost_context: ObjectCell,
    lost_exception: ObjectCell,
    /// In debug mode, the stack of whoever made the transport or closed it.
    source_traceback: ObjectCell,
}

impl Endpoint {
    pub fn new(py: Python<'_>, params: EndpointParams) -> PyResult<Endpoint> {
        let fixed_or_copy = || match &params.context {
            Some(context) => Ok(context.clone()),
            None => copy_context(py),
        };
        params.core.metrics.open_transport();
        Ok(Endpoint {
            made_context: ObjectCell::new(Some(fixed_or_copy()?)),
            read_context: ObjectCell::new(Some(fixed_or_copy()?)),
            core: params.core,
            event_loop: params.event_loop,
            fd: params.fd,
            token: Cell::new(None),
            protocol: ObjectCell::new(Some(params.protocol)),
            waiter: ObjectCell::new(params.waiter),
            extra: ObjectCell::new(params.extra),
            phase: Cell::new(Phase::Open),
            held: Cell::new(true),
            watches_read: Cell::new(false),
            watches_write: Cell::new(false),
            paused: Cell::new(false),
            wants_read: Cell::new(false),
            blocked: Cell::new(false),
            flow: FlowControl::default(),
            lost_writes: Cell::new(0),
            context: params.context,
            write_context: ObjectCell::default(),
            lost_context: ObjectCell::default(),
            lost_exception: ObjectCell::default(),
            source_traceback: ObjectCell::default(),
        })
    }

    pub fn debug(&self) -> bool {
        self.core.schedule.debug()
    }

    pub fn is_closing(&self) -> bool {
        self.phase.get() != Phase::Open
    }

    pub fn is_reading(&self) -> bool {
        !self.is_closing() && !self.paused.get()
    }

    /// Whether connection_lost() was called, or is about to be.
    pub fn is_lost(&self) -> bool {
        matches!(self.phase.get(), Phase::Lost | Phase::Closed)
    }

    pub fn protocol_or_none(&self, py: Python<'_>) -> Object {
        self.protocol.get().unwrap_or_else(|| Object::none(py))
    }

    /// asyncio's LOG_THRESHOLD_FOR_CONNLOST_WRITES: five writes to a lost connection pass in silence. The loss
    /// itself counts as one where it was noticed.
    pub fn count_lost_write(&self, py: Python<'_>, message: &str) -> PyResult<()> {
        let count = self.lost_writes.get();
        self.note_loss();
        if count < 5 {
            return Ok(());
        }
        let message = Object::from_str(py, message)?;
        imports(py)?.logger.call_method1(py, intern!(py, "warning"), &message).map(drop)
    }

    pub fn note_loss(&self) {
        self.lost_writes.set(self.lost_writes.get().saturating_add(1));
    }

    /// Notes the context of a write that found the descriptor full: in it the protocol will be told to go on.
    pub fn note_writer(&self, py: Python<'_>) -> PyResult<()> {
        if self.context.is_none() {
            self.write_context.set(Some(copy_context(py)?));
        }
        Ok(())
    }

    /// Forgets the context of the writer, which was not the present one.
    pub fn forget_writer(&self) {
        self.write_context.set(None);
    }

    /// Notes, in debug mode, where a callback of the protocol is scheduled.
    fn note_source(&self, py: Python<'_>) -> PyResult<()> {
        if self.debug() {
            self.source_traceback.set(self.core.schedule.source_traceback(py)?);
        }
        Ok(())
    }

    fn is_registered_for_reading(&self) -> bool {
        self.token.get().is_some_and(|token| self.core.interest(token).readable)
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

    pub fn token(&self) -> Option<Token> {
        self.token.get()
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.event_loop);
        visitor.cell(&self.protocol);
        visitor.cell(&self.waiter);
        visitor.cell(&self.extra);
        visitor.optional(&self.context);
        visitor.cell(&self.made_context);
        visitor.cell(&self.read_context);
        visitor.cell(&self.write_context);
        visitor.cell(&self.lost_context);
        visitor.cell(&self.lost_exception);
        visitor.cell(&self.source_traceback);
        self.flow.traverse(visitor);
    }

    pub fn clear(&self) {
        self.protocol.set(None);
        self.waiter.set(None);
        self.extra.set(None);
        self.made_context.set(None);
        self.read_context.set(None);
        self.write_context.set(None);
        self.lost_context.set(None);
        self.lost_exception.set(None);
        self.source_traceback.set(None);
    }
}

/// A transport: an endpoint, and what its kind adds.
pub trait Transport: Native + Deref<Target = Endpoint> {
    /// The descriptor can be read from.
    fn readable(this: This<'_, '_, Self>) -> PyResult<()>;

    /// The descriptor takes more.
    fn writable(this: This<'_, '_, Self>) -> PyResult<()>;

    /// Sends what waits for the end of the iteration.
    fn flush(_this: This<'_, '_, Self>) -> PyResult<()> {
        Ok(())
    }

    /// Whether anything is still to be sent.
    fn has_queued(&self) -> bool;

    /// How many bytes are still to be sent.
    fn queued_size(&self) -> usize;

    /// Drops what is still to be sent.
    fn clear_queue(&self);

    /// Closes the descriptor. Called once.
    fn close_file(&self, py: Python<'_>, this: &Object) -> PyResult<()>;

    /// What get_extra_info() knows of itself.
    fn extra_info(this: This<'_, '_, Self>, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>>;

    /// The names that [`Transport::extra_info`] knows.
    const EXTRA: &'static [&'static str];

    fn set_protocol(&self, _py: Python<'_>, protocol: Object) -> PyResult<()> {
        self.protocol.set(Some(protocol));
        Ok(())
    }

    /// Whether the descriptor can be another transport's, too, as that of a terminal which is read and written.
    const SHARES: bool = false;

    /// Whether the descriptor is a device's, of which the kernel refuses to watch some.
    fn is_device(&self) -> bool {
        false
    }

    /// Whether reading begins when connection_made() was called.
    fn starts_reading(&self) -> bool {
        self.is_reading()
    }

    /// Called when connection_lost() is scheduled.
    fn on_lost(&self) {
        self.note_loss();
    }

    /// Called when reading was resumed.
    fn resumed(_this: This<'_, '_, Self>) -> PyResult<()> {
        Ok(())
    }

    /// Called when connection_lost() was, and the descriptor is closed.
    fn after_lost(_this: This<'_, '_, Self>) -> PyResult<()> {
        Ok(())
    }

    /// Whether an error is told in debug mode only: the network's, not the program's.
    fn is_connection_error(py: Python<'_>, exception: &Object) -> bool {
        exception.bind(py).is_instance_of::<pyo3::exceptions::PyOSError>()
    }
}

/// Has the event loop watch a new transport, does what else its kind needs, and schedules connection_made(). A transport
/// for which that fails closes its descriptor: nobody gets to know of it.
pub fn start<T: Transport>(
    py: Python<'_>,
    transport: &Obj<T>,
    prepare: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    attach(py, transport)?;
    let started = prepare().and_then(|()| schedule_made(py, transport));
    // The first error is the one to tell.
    started.inspect_err(|_| drop(tear_down(transport.this(py))))
}

/// Has the event loop watch a new transport.
fn attach<T: Transport>(py: Python<'_>, transport: &Obj<T>) -> PyResult<()> {
    if T::SHARES {
        return Ok(());
    }
    let on_ready = BoundMethod::new(transport.this(py), on_ready::<T>);
    transport.token.set(Some(transport.core.attach(py, transport.fd, on_ready)?));
    Ok(())
}

/// Schedules connection_made().
fn schedule_made<T: Transport>(py: Python<'_>, transport: &Obj<T>) -> PyResult<()> {
    transport.note_source(py)?;
    transport.core.push(ReadyEntry::Step(BoundMethod::new(transport.this(py), connection_made::<T>)));
    Ok(())
}

// --- Interest in events ---

/// Asks the kernel for the events that are wanted now.
pub fn sync_interest<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    let interest = Interest { readable: this.wants_read.get(), writable: this.blocked.get() };
    if T::SHARES {
        watch_shared(this, Direction::Read, interest.readable, &this.watches_read)?;
        return watch_shared(this, Direction::Write, interest.writable, &this.watches_write);
    }
    let Some(token) = this.token.get() else { return Ok(()) };
    this.core.set_interest(this.py(), token, interest)?;
    sync_hold(this)
}

/// The same for a transport that is in use: one that cannot be watched would wait for ever, so it ends.
pub fn watch<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    sync_interest(this).or_else(|error| fatal_error(this, error, CANNOT_WATCH))
}

/// [`watch`], called outside of all callbacks.
pub fn watch_in_connection_context<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    sync_interest(this)
        .or_else(|error| in_connection_context(this, || fatal_error(this, error, CANNOT_WATCH)))
}

const CANNOT_WATCH: &str = "Fatal error: the descriptor cannot be watched";

/// The same for a new one. A device that nobody can wait for stays open, as in asyncio: it can be closed, and written to.
#[cold]
fn cannot_watch<T: Transport>(this: This<'_, '_, T>, error: PyErr) -> PyResult<()> {
    let py = this.py();
    if !this.is_device() || !error.is_instance_of::<PyPermissionError>(py) {
        return fatal_error(this, error, CANNOT_WATCH);
    }
    this.wants_read.set(false);
    report(this, CANNOT_WATCH, &reraise_fatal(py, error)?)
}

/// Watches one direction of a descriptor that others may watch, too, or no longer.
fn watch_shared<T: Transport>(
    this: This<'_, '_, T>,
    direction: Direction,
    wanted: bool,
    watched: &Cell<bool>,
) -> PyResult<()> {
    if watched.replace(wanted) == wanted {
        return Ok(());
    }
    if !wanted {
        drop(this.core.remove_waiter(this.fd, direction, Some(&this.object())));
        return Ok(());
    }
    let step = match direction {
        Direction::Read => BoundMethod::new(this, on_readable::<T>),
        Direction::Write => BoundMethod::new(this, on_writable::<T>),
    };
    match this.core.add_waiter(this.py(), this.fd, direction, Waiter::Step(step)) {
        Ok(previous) => Waiter::dismiss(this.py(), previous).map(drop),
        Err(error) => {
            watched.set(false);
            Err(error)
        }
    }
}

/// Has the event loop keep the transport alive while any event is wanted.
pub fn sync_hold<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    if T::SHARES {
        // It is the watched directions that keep it alive.
        return sync_interest(this);
    }
    let wanted = this.wants_read.get() || this.blocked.get();
    match this.token.get() {
        Some(token) if this.held.replace(wanted) != wanted => {
            this.core.set_strong(token, this, on_ready::<T>, wanted)
        }
        _ => Ok(()),
    }
}

pub fn pause_reading<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    if !this.is_reading() {
        return Ok(());
    }
    this.paused.set(true);
    this.wants_read.set(false);
    sync_hold(this)?;
    if this.debug() { log(this, "debug", "%r pauses reading") } else { Ok(()) }
}

pub fn resume_reading<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    if this.is_closing() || !this.paused.get() {
        return Ok(());
    }
    this.paused.set(false);
    this.wants_read.set(true);
    if this.context.is_none() {
        this.read_context.set(Some(copy_context(this.py())?));
    }
    if this.is_registered_for_reading() {
        sync_hold(this)?;
    } else {
        sync_interest(this)?;
    }
    T::resumed(this)?;
    if this.debug() { log(this, "debug", "%r resumes reading") } else { Ok(()) }
}

/// Runs `f` in the context in which arrivals are told.
pub fn in_read_context<T: Transport>(
    this: This<'_, '_, T>,
    f: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    this.in_context(this.py(), &this.read_context, f)
}

/// Runs `f`, which ends the connection outside of all callbacks, in a copy of the context in which arrivals are told: the
/// protocol and the exception handler find the connection's variables there.
#[cold]
pub fn in_connection_context<T: Transport>(
    this: This<'_, '_, T>,
    f: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    let Some(context) = this.read_context.get() else { return f() };
    run_in_context(this.py(), &copy_of_context(this.py(), &context)?, f)
}

// --- Steps ---

fn connection_made<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    let py = this.py();
    let Some(context) = this.made_context.take() else { return Ok(()) };
    if let Some(token) = this.token.get() {
        this.core.begin(token);
    }
    run_in_context(py, &context, || {
        // Even if it leaves the event loop, with SystemExit, the connection is to be in order afterwards.
        let told = call_protocol(this, intern!(py, "connection_made"), &[&this.object()]);
        if this.starts_reading() {
            this.wants_read.set(true);
        }
        let watched = sync_interest(this).or_else(|error| cannot_watch(this, error));
        let resolved = match this.waiter.take() {
            Some(waiter) => resolve(py, &waiter),
            None => Ok(()),
        };
        told.and(watched).and(resolved)
    })
}

fn on_ready<T: Transport>(this: This<'_, '_, T>, readiness: Readiness) -> PyResult<()> {
    let py = this.py();
    let mut unwanted = false;
    if readiness.readable && !this.is_lost() {
        if this.wants_read.get() {
            this.in_context(py, &this.read_context, || T::readable(this))?;
        } else {
            unwanted = true;
        }
    }
    if readiness.writable && !this.is_lost() {
        if this.blocked.get() {
            let known = this.write_context.is_some();
            let context = if known { &this.write_context } else { &this.read_context };
            this.in_context(py, context, || T::writable(this))?;
        } else {
            unwanted = true;
        }
    }
    if unwanted { sync_interest(this) } else { Ok(()) }
}

fn on_readable<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    on_ready(this, Readiness { readable: true, writable: false })
}

fn on_writable<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    on_ready(this, Readiness { readable: false, writable: true })
}

fn connection_lost<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    let py = this.py();
    let Some(context) = this.lost_context.take() else { return Ok(()) };
    let exception = this.lost_exception.take().unwrap_or_else(|| Object::none(py));
    run_in_context(py, &context, || call_connection_lost(this, &exception))
}
