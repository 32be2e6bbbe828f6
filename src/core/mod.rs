//! The state of an event loop: ready queue, timers, watched descriptors, transports with something to send.
//!
//! The Python class (in `event_loop`) owns a [`Core`] and shares it with its transports, which the core knows only as
//! [`crate::cpython::bound_method::BoundMethod`]s.
//!
//! Invariant: no Python code runs while state is borrowed. A function that can run Python code takes `py`, or a `This`; any other
//! can at most drop objects, and says so.
//!
//! The cells and [`StateCell`]s are for the thread that may touch the loop: see [`crate::cpython::ownership`]. Other threads wake the
//! loop, read what is [`Published`], and queue callbacks: with the GIL in `ready`, without it in `injected`.

mod acceptors;
mod delays;
mod due;
mod gates;
mod gil;
mod handshakes;
mod iterations;
mod late;
mod metrics;
mod polling;
mod ready;
mod receiving;
pub mod recorder;
mod sending;
mod tls_buffers;
pub mod watchdog;
mod watching;

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use pyo3::prelude::*;

use crate::cpython::borrowing::StateCell;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{Native, Obj, This, Visitor};
use crate::cpython::errors::no_memory;
use crate::cpython::frames;
use crate::cpython::object::{Object, ObjectCell};
use crate::cpython::ownership::Owner;
use crate::cpython::received::{self, UninitBytes};
use crate::handle::{Call, Reusable, Schedule, Unheld};
use crate::reactor::clock;
use crate::reactor::datagram::Batch;
use crate::reactor::handover::Handover;
use crate::reactor::inject_queue::InjectQueue;
use crate::reactor::kernel::Wait;
use crate::reactor::poll_policy::PollPolicy;
use crate::reactor::poller::{self, Backend, Poller};
use crate::reactor::published::Published;
use crate::reactor::registry::{CurrentPoller, Registry, Token};
use crate::reactor::run_monitor::RunMonitor;
use crate::reactor::spin::AdaptiveSpin;

use acceptors::Acceptors;
use gates::Gates;
pub use gates::{Admitted, Gate};
use handshakes::Handshakes;
pub use iterations::report_error;
pub use metrics::Metrics;
use ready::ReadyQueue;
pub use ready::{OnReady, Readiness, ReadyEntry};
pub use receiving::{LEAST, Received};
use recorder::Recorder;
pub use sending::Parts;
use sending::Sending;
use tls_buffers::TlsBuffers;
pub use watching::{Direction, Waiter, Watch};

/// Places in the ready queue that callbacks of the program leave free for entries of the loop's own, besides those of transports.
const HEADROOM: usize = 256;

/// How many steps of a transport can be in the ready queue at a time: connection_lost(), and one that comes before it.
const TRANSPORT_STEPS: usize = 2;

/// One receive gets at the most this many bytes: asyncio's `max_size`.
pub const RECEIVE_BUFFER: usize = 256 * 1024;

/// Iterations from accepting a connection until the tasks that its connection_made() has made have begun.
const BEGINNING: u64 = 2;

/// After this many failed attempts, the loop stays asleep until the next wake-up.
const WAKE_ATTEMPTS: u32 = 3;

#[derive(Default)]
pub struct Core {
    pub owner: Owner,
    pub schedule: Schedule,
    ready: StateCell<ReadyQueue>,
    /// Entries of other threads without the GIL, and when they were pushed, in ticks. With the GIL, only whether the loop has to be woken.
    injected: InjectQueue<(ReadyEntry, u64)>,
    /// None once the event loop is closed.
    registry: StateCell<Option<Registry<Watch>>>,
    /// For threads that wake the loop.
    current_poller: Arc<CurrentPoller<Poller>>,
    /// Steps of transports with something to send at the end of the iteration.
    unsent: StateCell<Vec<BoundMethod>>,
    /// How many iterations have begun.
    pub iteration: Cell<u64>,
    /// Tokens of transports of recently accepted connections, with the iteration.
    accepted: StateCell<VecDeque<(u64, Token)>>,
    sending: Sending,
    /// Whether [`Core::run`] ends after the iteration that is under way, or the next one.
    pub stopping: Published<bool>,
    /// Whether a subclass or the program has overridden time(), which decides when timers are due.
    pub overridden_clock: Published<bool>,
    /// The program's select.select(), if it is patched to run other (green) threads meanwhile.
    overridden_wait: ObjectCell,
    /// Taken out by [`Core::with_buffer`] for one receive at a time.
    buffer: Cell<Option<Box<[u8]>>>,
    /// For data that were received when there is no memory for a new bytes object.
    spare: Cell<Option<UninitBytes>>,
    bytes_pool: StateCell<received::BytesPool>,
    /// Taken out by TLS connections for what is decrypted, and for what is encrypted until it is sent.
    pub plain_buffer: Cell<Option<Box<[u8]>>>,
    pub output_buffer: Cell<Vec<u8>>,
    tls_buffers: TlsBuffers,
    acceptors: Acceptors,
    pub handshakes: Handshakes,
    /// Those of servers that are limited.
    pub gates: Gates,
    /// How many bytes sock_recv() usually gets.
    pub recv_size_hint: Cell<usize>,
    /// Taken out by [`Core::with_batch`] for one receive of datagrams at a time.
    batch: Cell<Option<Box<Batch>>>,
    events: Cell<Option<Box<poller::Events>>>,
    pub poll_policy: PollPolicy,
    handover: Handover,
    /// Whether the last wait failed. Only the first failure of several is reported.
    wait_failed: Cell<bool>,
    spin: AdaptiveSpin,
    pub metrics: Metrics,
    pub recorder: Recorder,
    /// Shared with the watchdog's thread; None if the loop is not watched.
    run_monitor: StateCell<Option<Arc<RunMonitor>>>,
}

impl Core {
    pub fn new(backend: Backend) -> io::Result<Core> {
        let registry = Registry::new(Poller::new(backend)?);
        Ok(Core {
            current_poller: Arc::clone(registry.current()),
            registry: StateCell::new(Some(registry)),
            handover: Handover::default(),
            ..Core::default()
        })
    }

    /// None if the loop is closed.
    pub fn backend(&self) -> Option<Backend> {
        self.registry.borrow().as_ref().map(|registry| registry.poller().backend())
    }

    pub fn is_closed(&self) -> bool {
        self.registry.borrow().is_none()
    }

    /// Keeps the memory of an empty vector for the next TLS connection, if it is no more than `most`.
    pub fn keep_output(&self, memory: Vec<u8>, most: usize) {
        if (1..=most).contains(&memory.capacity()) {
            self.output_buffer.set(memory);
        }
    }

    /// Drops the previous function.
    pub fn set_overridden_wait(&self, _py: Python<'_>, wait: Option<Object>) {
        self.overridden_wait.set(wait);
    }

    pub fn has_overridden_wait(&self) -> bool {
        self.overridden_wait.is_some()
    }

    /// Queues a callback of the program's, made by `entry` in its place. MemoryError if there is no room.
    #[inline(always)]
    pub fn push_new(&self, py: Python<'_>, entry: impl FnOnce() -> ReadyEntry) -> PyResult<()> {
        self.take_injected();
        let headroom = self.headroom();
        let mut ready = self.ready.borrow_mut();
        if ready.capacity() - ready.len() < headroom && !ready.reserve(headroom + HEADROOM) {
            drop(ready);
            return Err(no_memory(py));
        }
        ready.push_back(entry());
        Ok(())
    }

    /// Places in the ready queue for entries of the loop's own. All transports may end in the same iteration.
    fn headroom(&self) -> usize {
        HEADROOM + TRANSPORT_STEPS * self.metrics.transports.get()
    }

    /// Counts a new transport, and makes room for its steps. MemoryError if there is none.
    pub fn open_transport(&self, py: Python<'_>) -> PyResult<()> {
        self.metrics.open_transport();
        // Some room is left for others, so that the loop goes on where there is no more memory.
        if self.ready.borrow_mut().reserve(self.headroom() + HEADROOM) { Ok(()) } else { Err(no_memory(py)) }
    }

    /// Queues an entry of the loop's own, for which [`Core::headroom`] keeps room.
    #[inline(always)]
    pub fn push(&self, entry: ReadyEntry) {
        self.take_injected();
        self.ready.borrow_mut().push_back(entry);
    }

    /// Notes that a transport's connection was accepted in this iteration.
    pub fn note_accepted(&self, token: Token) {
        let mut accepted = self.accepted.borrow_mut();
        let iteration = self.iteration.get();
        while accepted.front().is_some_and(|(then, _)| iteration - then > BEGINNING) {
            accepted.pop_front();
        }
        // Without memory, all_tasks() does not show its task.
        if accepted.try_reserve(1).is_ok() {
            accepted.push_back((iteration, token));
        }
    }

    /// Takes out the transports of connections whose connection_made() was not called yet, or whose tasks have not begun.
    /// None without memory for them.
    pub fn take_accepted(&self) -> Option<Vec<Object>> {
        let iteration = self.iteration.get();
        let mut transports = Vec::new();
        transports.try_reserve(self.accepted.borrow().len()).ok()?;
        let recent = self.accepted.take().into_iter().filter(|(then, _)| iteration - then <= BEGINNING);
        transports.extend(recent.filter_map(|(_, token)| self.transport_at(token)));
        Some(transports)
    }

    /// A copy of the queue, of which all callbacks have handles. MemoryError if there is no room for it.
    pub fn ready_entries(&self, py: Python<'_>, event_loop: &Object) -> PyResult<Vec<ReadyEntry>> {
        let looked_at = Cell::new(0);
        self.hold(py, event_loop, |ready| {
            looked_at.set(ready.next_unheld(looked_at.get())?);
            Some(looked_at.get())
        })?;
        let ready = self.ready.borrow();
        let mut entries = Vec::new();
        if entries.try_reserve(ready.len()).is_err() {
            drop(ready);
            return Err(no_memory(py));
        }
        entries.extend(ready.iter().cloned());
        Ok(entries)
    }

    /// Takes the next entry out of the queue. A callback has a handle.
    pub fn pop_ready(&self, py: Python<'_>, event_loop: &Object) -> PyResult<Option<ReadyEntry>> {
        self.hold(py, event_loop, |ready| {
            ready.next_unheld(0).filter(|position| *position == ready.positions().start)
        })?;
        Ok(self.ready.borrow_mut().pop_front())
    }

    /// Queues from another thread, and wakes the event loop if it is asleep. MemoryError if there is no room.
    #[inline(always)]
    pub fn push_threadsafe(&self, py: Python<'_>, entry: impl FnOnce() -> ReadyEntry) -> PyResult<()> {
        if cfg!(Py_GIL_DISABLED) { self.inject(py, entry()) } else { self.push_from_thread(py, entry) }
    }

    fn inject(&self, py: Python<'_>, entry: ReadyEntry) -> PyResult<()> {
        // What is not queued is dropped without the lock: that can run Python code.
        if self.injected.push((entry, clock::ticks())).map_err(|_| no_memory(py))? {
            self.wake_poller();
        }
        Ok(())
    }

    /// With the GIL, which guards the ready queue: nothing of it is borrowed where the GIL is released.
    #[inline(always)]
    fn push_from_thread(&self, py: Python<'_>, entry: impl FnOnce() -> ReadyEntry) -> PyResult<()> {
        let pushed_at = clock::ticks();
        self.push_new(py, entry)?;
        let position = self.ready.borrow().end() - 1;
        self.metrics.delays.pushed(pushed_at, position, &self.poll_policy.tick);
        self.recorder.note_injected(pushed_at, position);
        // The loop begins a wait with the GIL, and only where nothing is queued.
        if !self.injected.parker.is_unparked() && self.injected.parker.unpark() {
            self.wake_poller();
        }
        Ok(())
    }

    /// Makes the last handle that is queued the next one, if nobody else has it: see [`Unheld`]. Returns it, or the call. It is not queued
    /// yet.
    #[inline(always)]
    pub fn reuse_last<T: Reusable>(&self, _py: Python<'_>, next: Call) -> Result<Obj<T>, Call> {
        if cfg!(Py_GIL_DISABLED) {
            // The queue is not this thread's.
            return Err(next);
        }
        let reused = match self.ready.borrow_mut().back_mut() {
            Some(last) => Unheld::reuse(last, next),
            None => Err(next),
        };
        // The event loop is dropped while nothing is borrowed.
        reused.map(|(handle, _)| handle)
    }

    /// Gives entries of the queue handles that have lost theirs, until `next` finds no more. Nothing is queued after that.
    fn hold(
        &self,
        py: Python<'_>,
        event_loop: &Object,
        next: impl Fn(&ReadyQueue) -> Option<u64>,
    ) -> PyResult<()> {
        loop {
            self.take_injected();
            let Some(position) = next(&self.ready.borrow()) else { return Ok(()) };
            let unheld = self.ready.borrow_mut().unheld_at(position).cloned();
            // This can run Python code, which may queue other entries and take some out.
            let held = unheld.map(|entry| entry.held(py, event_loop)).transpose()?;
            if let Some(place) = self.ready.borrow_mut().unheld_at(position)
                && let Some(held) = held
            {
                *place = held;
            }
        }
    }

    /// Leaves an object's finalizer to the loop. Without memory for that, the object is destroyed without.
    pub fn finalize_later<T: Native>(&self, this: This<'_, '_, T>) {
        let finalize = |this: This<'_, '_, T>| {
            T::finalize(this);
            Ok(())
        };
        let _ = self.push_threadsafe(this.py(), || ReadyEntry::Finalize(BoundMethod::new(this, finalize)));
    }

    /// Ends a wait that is under way in another thread, or about to begin.
    pub fn wake(&self) {
        if self.injected.notify() {
            self.wake_poller();
        }
    }

    /// Ignores errors, as asyncio does: the caller could not do anything about them.
    fn wake_poller(&self) {
        let Some(poller) = self.current_poller.get() else { return };
        if (0..WAKE_ATTEMPTS).all(|_| poller.wake().is_err()) {
            self.injected.parker.wake_failed();
        }
    }

    /// Queues the entries that other threads have pushed so far: they come before any that is queued after this call.
    #[inline(always)]
    fn take_injected(&self) {
        if self.injected.has_entries() {
            self.queue_injected();
        }
    }

    #[cold]
    fn queue_injected(&self) {
        let mut ready = self.ready.borrow_mut();
        let count = self.injected.count();
        let room = ready.make_room(count, self.headroom());
        let queue = |(entry, pushed_at)| {
            let position = ready.end();
            ready.push_back(entry);
            self.metrics.delays.queued_since(pushed_at, position..ready.end());
            self.recorder.note_injected(pushed_at, position);
        };
        if room == count {
            self.injected.take_all().into_iter().for_each(queue);
        } else {
            // The others stay where they are until these have run, which can free memory.
            self.injected.take(room, queue);
        }
    }

    /// How many callbacks are ready now.
    pub fn ready_length(&self) -> usize {
        self.ready.borrow().len()
    }

    /// Has the watchdog see what the loop does from now on, or no longer.
    pub fn set_run_monitor(&self, py: Python<'_>, run_monitor: Option<Arc<RunMonitor>>) {
        self.schedule.set_watched(run_monitor.is_some());
        if let Some(run_monitor) = &run_monitor {
            run_monitor.set_thread(frames::thread_state(py));
        }
        self.run_monitor.replace(run_monitor);
    }

    pub fn run_monitor(&self) -> Option<Arc<RunMonitor>> {
        self.run_monitor.borrow().clone()
    }

    /// To be called after anything that can have made a descriptor ready.
    pub fn request_poll(&self) {
        self.poll_policy.request_poll();
    }

    /// Calls `f` with the memory for datagrams. MemoryError if there is none. `f` may run Python code, and a nested call gets other
    /// memory.
    pub fn with_batch<R>(&self, py: Python<'_>, f: impl FnOnce(&mut Batch) -> R) -> PyResult<R> {
        let mut batch =
            self.batch.take().or_else(|| Batch::new().map(Box::new)).ok_or_else(|| no_memory(py))?;
        let result = f(&mut batch);
        self.batch.set(Some(batch));
        Ok(result)
    }

    /// Sends what the sockets take, and drops handles, timers, waiters and the poller.
    pub fn close(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        let flushed = self.send_scheduled(py, event_loop);
        let registry = self.registry.borrow_mut().take();
        let ready = self.ready.borrow_mut().take_all();
        let injected = self.injected.take_all();
        let mut finalized = Ok(());
        for entry in ready.iter().chain(injected.iter().map(|(entry, _)| entry)) {
            if let ReadyEntry::Finalize(step) = entry {
                let result = step.call(py, ());
                let reported = result.or_else(|error| report_error(py, event_loop, step.instance(), error));
                finalized = finalized.and(reported);
            }
        }
        self.drop_timers();
        // Dropping can run Python code: nothing is borrowed.
        drop((ready, injected));
        if let Some(mut registry) = registry {
            drop(registry.drain());
        }
        drop((self.bytes_pool.take(), self.spare.take(), self.gates.take_all()));
        flushed.and(finalized)
    }

    /// Drops the timers one by one: dropping can run Python code, which may add others.
    fn drop_timers(&self) {
        let count = self.schedule.timers.try_borrow().map_or(0, |timers| timers.len());
        for _ in 0..count {
            let timer = self.schedule.timers.try_borrow_mut().ok().and_then(|mut timers| timers.pop_any());
            let Some(timer) = timer else { return };
            timer.set_fired();
            drop(timer);
        }
    }

    /// Drops everything that may be part of a reference cycle, for the garbage collector and the loop's destructor.
    pub fn clear(&self) {
        let registry = self.registry.try_borrow_mut().ok().and_then(|mut registry| registry.take());
        let ready = self.ready.try_borrow_mut().map(|mut ready| ready.take_all());
        let unsent = self.unsent.try_borrow_mut().map(|mut unsent| std::mem::take(&mut *unsent));
        drop((ready, unsent, self.injected.take_all(), self.overridden_wait.take(), self.gates.take_all()));
        self.drop_timers();
        if let Some(mut registry) = registry {
            drop(registry.drain());
        }
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        if let Ok(ready) = self.ready.try_borrow() {
            ready.iter().for_each(|entry| entry.traverse(visitor));
        }
        if let Ok(timers) = self.schedule.timers.try_borrow() {
            for timer in timers.iter() {
                visitor.object(timer.as_object());
            }
        }
        if let Ok(unsent) = self.unsent.try_borrow() {
            unsent.iter().for_each(|step| visitor.object(step.instance()));
        }
        self.injected.try_for_each(|(entry, _)| entry.traverse(visitor));
        visitor.cell(&self.overridden_wait);
        self.gates.traverse(visitor);
        if let Ok(registry) = self.registry.try_borrow()
            && let Some(registry) = &*registry
        {
            registry.watches().for_each(|watch| watch.traverse(visitor));
        }
    }
}
