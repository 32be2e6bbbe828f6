//! What all transports share: a registered descriptor, a protocol, the contexts of its callbacks, and a [`Phase`].
//!
//! What is received and sent is the business of [`Transport`]s: `stream`, `datagram`, `pipe`.
//!
//! Invariant: events are ignored once connection_lost() is scheduled.
//!
//! The steps are called by the event loop, which gives their errors to the exception handler (`core::report_error`).

mod ending;
mod protocol_calls;
mod registration;
mod traffic;

use std::cell::Cell;
use std::ops::Deref;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::prelude::*;

use super::flow::FlowControl;
use crate::core::recorder::Kind;
use crate::core::{Core, Readiness, ReadyEntry};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{Native, Obj, This, Visitor};
use crate::cpython::object::{Object, ObjectCell, boolean, copy_context, copy_of_context, run_in_context};
use crate::cpython::ownership::{Shared, locked};
use crate::imports::{imports, resolve};
use crate::intern;
use crate::reactor::published::Published;
#[cfg(Py_GIL_DISABLED)]
use crate::reactor::published::Word;

use ending::{call_connection_lost, tear_down};
pub use ending::{
    close, fatal_error, finalize, finish_closing, force_close, schedule_connection_lost, unregister,
};
pub use protocol_calls::{adopt_streams, call_protocol, log, pause_protocol, report, resume_protocol};
pub use registration::{
    Narrowing, cannot_watch, pause_reading, resume_reading, set_blocked, sync, sync_now, sync_or_end,
};
use registration::{Registration, attach};
use traffic::Traffic;

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

#[cfg(Py_GIL_DISABLED)]
impl Word for Phase {
    fn to_word(self) -> u64 {
        self as u64
    }

    fn from_word(word: u64) -> Phase {
        [Phase::Open, Phase::Closing, Phase::Lost, Phase::Closed][word as usize]
    }
}

pub struct EndpointParams {
    pub core: Shared<Core>,
    pub event_loop: Object,
    pub fd: RawFd,
    pub protocol: Object,
    /// A future to resolve when connection_made() has been called.
    pub waiter: Option<Object>,
    pub extra: Option<Object>,
    /// The context of all callbacks, if they are to share one.
    pub context: Option<Object>,
}

impl EndpointParams {
    /// AttributeError for what is no protocol: asyncio looks for connection_made() when it makes a transport.
    pub fn new(
        py: Python<'_>,
        core: &Shared<Core>,
        event_loop: &Object,
        fd: RawFd,
        protocol: Object,
    ) -> PyResult<EndpointParams> {
        protocol.bind(py).getattr(intern!(py, "connection_made"))?;
        Ok(EndpointParams {
            core: Shared::clone(core),
            event_loop: event_loop.clone(),
            fd,
            protocol,
            waiter: None,
            extra: None,
            context: None,
        })
    }
}

pub struct Endpoint {
    pub core: Shared<Core>,
    pub event_loop: Object,
    pub fd: RawFd,
    pub protocol: ObjectCell,
    waiter: ObjectCell,
    pub extra: ObjectCell,
    pub phase: Published<Phase>,
    /// Whether another thread has closed the transport, which the loop has yet to do.
    #[cfg(Py_GIL_DISABLED)]
    ended_elsewhere: Published<bool>,
    pub registration: Registration,
    pub flow: FlowControl,
    /// Invariant: with the GIL, a stream transport has at most 496 bytes, with which CPython allocates it from its pools.
    pub traffic: Traffic,
    /// asyncio's `_conn_lost`: the loss itself, and writes since.
    conn_lost: Cell<u32>,
    /// What [`Endpoint::note_waiting`] was told last.
    #[cfg(Py_GIL_DISABLED)]
    waiting: Published<usize>,
    context: Option<Object>,
    made_context: ObjectCell,
    read_context: ObjectCell,
    /// Context of the write() that would have blocked; None if it is not known, or all callbacks share one context.
    write_context: ObjectCell,
    lost_context: ObjectCell,
    lost_exception: ObjectCell,
    /// In debug mode, the stack that scheduled connection_made() or connection_lost().
    source_traceback: ObjectCell,
}

impl Endpoint {
    pub fn new(py: Python<'_>, params: EndpointParams) -> PyResult<Endpoint> {
        let context = || shared_or_copy(py, &params.context).map(Some);
        let traffic = Traffic::new(params.core.poll_policy.polled());
        Ok(Endpoint {
            made_context: ObjectCell::new(context()?),
            read_context: ObjectCell::new(context()?),
            core: params.core,
            event_loop: params.event_loop,
            fd: params.fd,
            protocol: ObjectCell::new(Some(params.protocol)),
            waiter: ObjectCell::new(params.waiter),
            extra: ObjectCell::new(params.extra),
            phase: Published::new(Phase::Open),
            #[cfg(Py_GIL_DISABLED)]
            ended_elsewhere: Published::new(false),
            registration: Registration::default(),
            flow: FlowControl::default(),
            traffic,
            conn_lost: Cell::new(0),
            #[cfg(Py_GIL_DISABLED)]
            waiting: Published::new(0),
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

    /// Notes that another thread has closed the transport.
    pub fn note_ended_elsewhere(&self) {
        #[cfg(Py_GIL_DISABLED)]
        self.ended_elsewhere.set(true);
    }

    /// As [`Endpoint::is_closing`], for the program.
    pub fn is_said_to_close(&self) -> bool {
        #[cfg(Py_GIL_DISABLED)]
        if self.ended_elsewhere.get() {
            return true;
        }
        self.is_closing()
    }

    pub fn is_reading(&self) -> bool {
        !self.is_closing() && !self.registration.is_paused()
    }

    /// Whether connection_lost() was called, or is about to be.
    pub fn is_lost(&self) -> bool {
        matches!(self.phase.get(), Phase::Lost | Phase::Closed)
    }

    pub fn protocol_or_none(&self, py: Python<'_>) -> Object {
        self.protocol.get().unwrap_or_else(|| Object::none(py))
    }

    /// Counts a write to a lost connection: see [`count_lost_write`].
    pub fn count_lost_write(&self, py: Python<'_>, message: &str) -> PyResult<()> {
        count_lost_write(py, &self.conn_lost, message)
    }

    pub fn note_loss(&self) {
        self.conn_lost.set(self.conn_lost.get().saturating_add(1));
    }

    /// Counts bytes that were read.
    #[inline(always)]
    pub fn note_read(&self, count: usize) {
        self.core.metrics.counts.bytes_read.add(count);
        self.traffic.add_read(count, self.core.poll_policy.polled());
    }

    /// Counts bytes that were written.
    #[inline(always)]
    pub fn note_written(&self, count: usize) {
        self.core.metrics.counts.bytes_written.add(count);
        self.traffic.add_written(count, self.core.poll_policy.polled());
    }

    /// Counts how many bytes the descriptor did not take, where other threads cannot look at the queue.
    #[inline(always)]
    #[cfg_attr(not(Py_GIL_DISABLED), allow(unused_variables, reason = "no other thread looks"))]
    pub fn note_waiting(&self, size: usize) {
        #[cfg(Py_GIL_DISABLED)]
        {
            let all = &self.core.metrics.bytes_waiting;
            all.set(all.get() + size - self.waiting.replace(size));
        }
    }

    /// How many bytes the descriptor did not take, for threads that do not own the event loop. With the GIL, all do.
    pub fn waiting(&self) -> usize {
        #[cfg(Py_GIL_DISABLED)]
        return self.waiting.get();
        #[cfg(not(Py_GIL_DISABLED))]
        0
    }

    /// Keeps the present context for what follows when the descriptor takes more.
    pub fn keep_write_context(&self, py: Python<'_>) -> PyResult<()> {
        if self.context.is_none() {
            self.write_context.set(Some(copy_context(py)?));
        }
        Ok(())
    }

    pub fn drop_write_context(&self) {
        self.write_context.set(None);
    }

    /// In debug mode, keeps the present stack.
    fn keep_source_traceback(&self, py: Python<'_>) -> PyResult<()> {
        if self.debug() {
            self.source_traceback.set(self.core.schedule.source_traceback(py)?);
        }
        Ok(())
    }

    /// Runs `f` in one of the contexts. Does nothing if the garbage collector has cleared it.
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

    fn cells(&self) -> [&ObjectCell; 9] {
        [
            &self.protocol,
            &self.waiter,
            &self.extra,
            &self.made_context,
            &self.read_context,
            &self.write_context,
            &self.lost_context,
            &self.lost_exception,
            &self.source_traceback,
        ]
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.event_loop);
        visitor.optional(&self.context);
        self.cells().iter().for_each(|cell| visitor.cell(cell));
        self.flow.traverse(visitor);
    }

    pub fn clear(&self) {
        self.cells().iter().for_each(|cell| cell.set(None));
    }
}

/// Counts a write to a lost connection, and logs `message` if asyncio's LOG_THRESHOLD_FOR_CONNLOST_WRITES is reached.
pub fn count_lost_write(py: Python<'_>, lost: &Cell<u32>, message: &str) -> PyResult<()> {
    let count = lost.get();
    lost.set(count.saturating_add(1));
    if count < 5 {
        return Ok(());
    }
    let message = Object::from_str(py, message)?;
    imports(py)?.logger.call_method(py, intern!(py, "warning"), &[&message]).map(drop)
}

/// The context that all callbacks share, or a copy of the present one.
fn shared_or_copy(py: Python<'_>, shared: &Option<Object>) -> PyResult<Object> {
    match shared {
        Some(context) => Ok(context.clone()),
        None => copy_context(py),
    }
}

/// Implements Deref for a transport with a field `endpoint`.
#[macro_export]
macro_rules! has_endpoint {
    ($native:ty) => {
        impl std::ops::Deref for $native {
            type Target = $crate::transports::endpoint::Endpoint;

            fn deref(&self) -> &Self::Target {
                &self.endpoint
            }
        }
    };
}

/// A transport: an endpoint, and what its kind adds. The default is one that does not write.
pub trait Transport: Native + Deref<Target = Endpoint> {
    /// The descriptor can be read from.
    fn readable(this: This<'_, '_, Self>) -> PyResult<()>;

    /// The descriptor takes more.
    fn writable(_this: This<'_, '_, Self>) -> PyResult<()> {
        Ok(())
    }

    /// Sends what is queued, unless the descriptor is known to take no more: the default is for transports that queue nothing else.
    fn send_now(_this: This<'_, '_, Self>) -> PyResult<()> {
        Ok(())
    }

    /// Whether anything is still to be sent.
    fn has_queued(&self) -> bool {
        self.queued_size() > 0
    }

    /// How many bytes are still to be sent.
    fn queued_size(&self) -> usize {
        0
    }

    /// Drops what is still to be sent.
    fn clear_queue(&self) {}

    /// Closes the descriptor. Called once.
    fn close_file(&self, py: Python<'_>, this: &Object) -> PyResult<()>;

    /// Whether the program, or the garbage collector, has closed the descriptor.
    fn is_file_closed(&self) -> bool {
        false
    }

    /// What get_extra_info() returns unless `extra` has the name.
    fn extra_info(this: This<'_, '_, Self>, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>>;

    /// The names that [`Transport::extra_info`] knows.
    const EXTRA: &'static [&'static str];

    fn set_protocol(this: This<'_, '_, Self>, protocol: Object) -> PyResult<()> {
        replace_protocol(this, Some(protocol));
        Ok(())
    }

    /// Whether several transports can use the descriptor, as that of a terminal which is read and written.
    const SHARES: bool = false;

    /// Whether the descriptor is a character device's. The kernel refuses to watch some.
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

    /// Called after connection_lost(), when the descriptor is closed.
    fn after_lost(_this: This<'_, '_, Self>) -> PyResult<()> {
        Ok(())
    }

    /// Whether an error is reported in debug mode only.
    fn is_connection_error(py: Python<'_>, exception: &Object) -> bool {
        exception.bind(py).is_instance_of::<pyo3::exceptions::PyOSError>()
    }
}

/// Drops the previous protocol. Other threads may ask for the protocol.
pub fn replace_protocol<T: Transport>(this: This<'_, '_, T>, protocol: Option<Object>) {
    drop(locked(this.as_any(), || this.protocol.replace(protocol)));
}

/// Whether `hotloop._support.note_opened()` is called with each transport that is made.
pub static NOTES_OPENED: AtomicBool = AtomicBool::new(false);

/// Tells Python of a transport that was made: of pipes always, as the registry does not list all of them.
#[inline(always)]
fn note_opened<T: Transport>(py: Python<'_>, transport: &Obj<T>) -> PyResult<()> {
    if T::SHARES || NOTES_OPENED.load(Relaxed) {
        call_note_opened(py, &transport.event_loop, transport.as_object(), T::SHARES)?;
    }
    Ok(())
}

#[cold]
fn call_note_opened(py: Python<'_>, event_loop: &Object, transport: &Object, is_pipe: bool) -> PyResult<()> {
    imports(py)?.note_opened.call(py, &[event_loop, transport, &boolean(py, is_pipe)]).map(drop)
}

/// Makes a transport, registers it, runs `prepare`, and schedules connection_made(). If that fails, the descriptor is closed: the
/// program never gets the transport.
pub fn start<T: Transport>(
    py: Python<'_>,
    transport: T,
    prepare: impl FnOnce(&Obj<T>) -> PyResult<()>,
) -> PyResult<Obj<T>> {
    let transport = Obj::new(py, transport)?;
    let opened = transport.core.open_transport(py).and_then(|()| {
        let recorder = &transport.core.recorder;
        recorder.note_transport(py, Kind::Opened, transport.fd, transport.protocol.get())
    });
    attach(py, &transport)?;
    // The first error is the one to return.
    let prepared = opened.and_then(|()| prepare(&transport)).and_then(|()| note_opened(py, &transport));
    match prepared.and_then(|()| schedule_made(py, &transport)) {
        Ok(()) => Ok(transport),
        Err(error) => {
            drop(tear_down(transport.this(py)));
            Err(error)
        }
    }
}

fn schedule_made<T: Transport>(py: Python<'_>, transport: &Obj<T>) -> PyResult<()> {
    transport.keep_source_traceback(py)?;
    transport.core.push(ReadyEntry::Step(BoundMethod::new(transport.this(py), connection_made::<T>)));
    Ok(())
}

/// Runs `f` in the context of the protocol's data_received().
pub fn in_read_context<T: Transport>(
    this: This<'_, '_, T>,
    f: impl FnOnce() -> PyResult<()>,
) -> PyResult<()> {
    this.in_context(this.py(), &this.read_context, f)
}

/// Runs `f` outside of all callbacks, in a copy of [`in_read_context`]'s: the protocol and the exception handler find the connection's
/// variables there.
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
    if let Some(token) = this.registration.token() {
        this.core.begin(token);
    }
    run_in_context(py, &context, || {
        // After SystemExit, which leaves the event loop, the transport must be usable.
        let called = call_protocol(this, intern!(py, "connection_made"), &[&this.object()]);
        if this.starts_reading() {
            this.registration.start_reading();
        }
        let watched = sync_or_end(this);
        let resolved = match this.waiter.take() {
            Some(waiter) => resolve(py, &waiter),
            None => Ok(()),
        };
        called.and(watched).and(resolved)
    })
}

fn on_ready<T: Transport>(this: This<'_, '_, T>, readiness: Readiness) -> PyResult<()> {
    let py = this.py();
    let mut unwanted = false;
    if readiness.readable && !this.is_lost() {
        if this.registration.wants_read() {
            this.in_context(py, &this.read_context, || T::readable(this))?;
        } else {
            unwanted = true;
        }
    }
    if readiness.writable && !this.is_lost() {
        if this.registration.is_blocked() {
            let known = this.write_context.is_some();
            let context = if known { &this.write_context } else { &this.read_context };
            this.in_context(py, context, || T::writable(this))?;
        } else {
            unwanted = true;
        }
    }
    if unwanted { sync_now(this) } else { Ok(()) }
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
