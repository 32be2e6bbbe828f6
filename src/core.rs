//! What an event loop is made of: its ready queue, timers, watched descriptors, and what its transports have to send.
//!
//! The Python class (in `event_loop`) owns a [`Core`] and shares it with its transports. Nothing here knows what a
//! transport is: it is an object with a function to call when something happens to it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use crate::cpython::class::{Obj, Visitor};
use crate::cpython::object::{Object, check_signals};
use crate::cpython::os_error::OrOsError;
use crate::handle::{Handle, Schedule, ThreadSafeHandle, TimerHandle};
use crate::imports::imports;
use crate::reactor::clock;
use crate::reactor::poller::{self, Interest, Poller};
use crate::reactor::registry::{Registry, Slot};
use crate::reactor::waker::Inbox;

/// A step of something that belongs to the event loop, called with the object that it was queued for.
pub type Step = fn(Python<'_>, &Object) -> PyResult<()>;

/// What to do when a watched descriptor is ready.
pub type OnReady = fn(Python<'_>, &Object, Readiness) -> PyResult<()>;

#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
}

/// An entry of the ready queue.
pub enum Ready {
    Handle(Obj<Handle>),
    Timer(Obj<TimerHandle>),
    ThreadSafe(Obj<ThreadSafeHandle>),
    /// An asyncio.Handle that is not of our making.
    Foreign(Object),
    Step(Object, Step),
    Event(Object, OnReady, Readiness),
}

/// Who waits for one direction of a descriptor.
pub enum Waiter {
    Handle(Obj<Handle>),
    /// An operation on a socket.
    Operation(Object, Step),
}

impl Waiter {
    fn to_ready(&self) -> Ready {
        match self {
            Waiter::Handle(handle) => Ready::Handle(handle.clone()),
            Waiter::Operation(object, step) => Ready::Step(object.clone(), *step),
        }
    }

    fn object(&self) -> &Object {
        match self {
            Waiter::Handle(handle) => handle.as_object(),
            Waiter::Operation(object, _) => object,
        }
    }
}

/// On whose behalf a descriptor is watched.
pub enum Watch {
    Waiters {
        reader: Option<Waiter>,
        writer: Option<Waiter>,
    },
    /// A transport, which has the descriptor to itself.
    Transport(Object, OnReady),
}

/// A direction of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// One receive gets at the most this many bytes: asyncio's `max_size`.
const RECEIVE_BUFFER: usize = 256 * 1024;

/// While callbacks are ready, descriptors are looked at no more often than this, in seconds...
const POLL_INTERVAL: f64 = 100e-6;
/// ...but at least once in so many iterations, so that a program that counts its turns sees I/O progress.
const POLL_ITERATIONS: u32 = 8;

/// Callbacks run between two looks at what waits to be sent.
const FLUSH_CALLBACKS: usize = 128;
/// Callbacks run between two looks at the clock, for the sake of what waits to be sent...
const FLUSH_CLOCK_CALLBACKS: usize = 8;
/// ...which is sent after this long, in seconds, even if the iteration goes on.
const FLUSH_INTERVAL: f64 = 1e-3;

/// A timer is due when this much is left, in seconds: the step of the clock, as in asyncio.
const CLOCK_RESOLUTION: f64 = 1e-9;

/// A wait is at most this long, as asyncio's: select() and its kin have limits.
const LONGEST_WAIT: f64 = 24.0 * 3600.0;

pub struct Core {
    pub schedule: Rc<Schedule>,
    ready: RefCell<VecDeque<Ready>>,
    /// Handles from other threads.
    inbox: Inbox<Ready>,
    /// None once the event loop is closed.
    registry: RefCell<Option<Registry<Watch>>>,
    /// Transports with something to send at the end of the iteration.
    unsent: RefCell<Vec<(Object, Step)>>,
    /// Whether callbacks of an iteration are being run, so that there will be an end of the iteration.
    iterating: Cell<bool>,
    stopping: Cell<bool>,
    /// Lent to one receive at a time.
    buffer: Cell<Option<Box<[u8]>>>,
    events: Cell<Option<Box<poller::Ready>>>,
    last_poll: Cell<f64>,
    polls_skipped: Cell<u32>,
    /// Whether this loop did something since the last poll that can have made a descriptor ready.
    stirred: Cell<bool>,
}

impl Core {
    pub fn new(portable: bool) -> io::Result<Core> {
        Ok(Core {
            schedule: Rc::default(),
            ready: RefCell::default(),
            inbox: Inbox::default(),
            registry: RefCell::new(Some(Registry::new(Poller::new(portable)?))),
            unsent: RefCell::default(),
            iterating: Cell::new(false),
            stopping: Cell::new(false),
            buffer: Cell::new(None),
            events: Cell::new(None),
            last_poll: Cell::new(f64::NEG_INFINITY),
            polls_skipped: Cell::new(0),
            stirred: Cell::new(true),
        })
    }

    pub fn is_portable(&self) -> bool {
        self.registry.borrow().as_ref().is_some_and(|registry| registry.poller().is_portable())
    }

    pub fn stopping(&self) -> bool {
        self.stopping.get()
    }

    pub fn set_stopping(&self, stopping: bool) {
        self.stopping.set(stopping);
    }

    // --- The ready queue ---

    pub fn push(&self, entry: Ready) {
        if self.inbox.is_filled() {
            // What another thread has sent came first.
            self.collect_inbox();
        }
        self.ready.borrow_mut().push_back(entry);
    }

    /// Queues from another thread, and wakes the event loop if it is asleep.
    pub fn send(&self, entry: Ready) -> PyResult<()> {
        if self.inbox.deliver(entry) { self.wake() } else { Ok(()) }
    }

    /// Ends a wait that is under way in another thread.
    pub fn rouse(&self) -> PyResult<()> {
        if self.inbox.rouse() { self.wake() } else { Ok(()) }
    }

    fn wake(&self) -> PyResult<()> {
        match &*self.registry.borrow() {
            Some(registry) => registry.poller().wake().or_os_error(),
            None => Ok(()),
        }
    }

    fn collect_inbox(&self) {
        let entries = self.inbox.collect();
        self.ready.borrow_mut().extend(entries);
    }

    // --- Iterations ---

    /// Runs iterations until [`Core::set_stopping`]; the one under way then is finished.
    pub fn run(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        // What happened before may have made descriptors ready.
        self.stirred.set(true);
        loop {
            self.iterate(py, event_loop)?;
            if self.stopping.get() {
                return Ok(());
            }
        }
    }

    /// One iteration, in asyncio's order: wait, take in what is ready and what is due, run the callbacks that are
    /// there by then, send what they wrote.
    pub fn iterate(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        if self.inbox.is_filled() {
            self.collect_inbox();
        }
        let callbacks_wait = !self.ready.borrow().is_empty() || self.stopping.get();
        let now = clock::now();
        if callbacks_wait {
            if self.poll_is_due(now) {
                self.last_poll.set(now);
                self.poll(py, Some(Duration::ZERO))?;
            }
        } else {
            let timeout = self.schedule.timers.borrow().next_deadline().map(|deadline| {
                // NaN cannot occur: the timers see to it.
                Duration::from_secs_f64((deadline - now).clamp(0.0, LONGEST_WAIT))
            });
            self.poll(py, timeout)?;
        }
        if self.inbox.is_filled() {
            self.collect_inbox();
        }
        let started = if callbacks_wait { now } else { clock::now() };
        self.queue_due_timers(started);
        self.iterating.set(true);
        let result = self.run_ready(py, event_loop, started);
        self.iterating.set(false);
        let flushed = self.flush(py);
        result.and(flushed)
    }

    fn poll_is_due(&self, now: f64) -> bool {
        let skipped = self.polls_skipped.get();
        if self.stirred.get() || skipped >= POLL_ITERATIONS || now - self.last_poll.get() >= POLL_INTERVAL {
            return true;
        }
        self.polls_skipped.set(skipped + 1);
        false
    }

    /// Waits for descriptors and queues what became ready. Signals that arrive are handled.
    fn poll(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<()> {
        self.polls_skipped.set(0);
        self.stirred.set(false);
        let mut events = self.events.take().unwrap_or_default();
        let result = self.wait(py, &mut events, timeout);
        let check = events.interrupted || timeout != Some(Duration::ZERO);
        let taken_in = result.and_then(|()| self.take_in(&events));
        self.events.set(Some(events));
        taken_in.or_os_error()?;
        if check { check_signals(py) } else { Ok(()) }
    }

    fn wait(&self, py: Python<'_>, events: &mut poller::Ready, timeout: Option<Duration>) -> io::Result<()> {
        let poller = {
            let mut registry = self.registry.borrow_mut();
            let Some(registry) = &mut *registry else { return Ok(()) };
            registry.own_poller()?;
            if timeout == Some(Duration::ZERO) {
                return registry.poller().wait(events, timeout);
            }
            Arc::clone(registry.poller())
        };
        if !self.inbox.fall_asleep() {
            return poller.wait(events, Some(Duration::ZERO));
        }
        let result = py.detach(|| poller.wait(events, timeout));
        self.inbox.awake();
        result
    }

    fn take_in(&self, events: &poller::Ready) -> io::Result<()> {
        if events.events.is_empty() {
            return Ok(());
        }
        let mut borrowed = self.registry.borrow_mut();
        let Some(registry) = &mut *borrowed else { return Ok(()) };
        let mut ready = self.ready.borrow_mut();
        let mut ghosts = false;
        for event in &events.events {
            let Some((slot, watch)) = registry.resolve(event.key) else {
                ghosts = true;
                continue;
            };
            if event.only_priority {
                registry.narrow(slot);
                continue;
            }
            let asked = registry.registered(slot);
            let readiness = Readiness {
                readable: event.readable && asked.readable,
                writable: event.writable && asked.writable,
            };
            match watch {
                Watch::Transport(object, on_ready) => {
                    ready.push_back(Ready::Event(object.clone(), *on_ready, readiness))
                }
                Watch::Waiters { reader, writer } => {
                    if readiness.readable
                        && let Some(reader) = reader
                    {
                        ready.push_back(reader.to_ready());
                    }
                    if readiness.writable
                        && let Some(writer) = writer
                    {
                        ready.push_back(writer.to_ready());
                    }
                }
            }
        }
        if ghosts { registry.rebuild() } else { Ok(()) }
    }

    fn queue_due_timers(&self, now: f64) {
        let mut timers = self.schedule.timers.borrow_mut();
        if timers.is_empty() {
            return;
        }
        let mut ready = self.ready.borrow_mut();
        while let Some(timer) = timers.pop_due(now + CLOCK_RESOLUTION) {
            timer.set_fired();
            ready.push_back(Ready::Timer(timer));
        }
    }

    /// Runs the callbacks that are in the queue now, not those that they add.
    fn run_ready(&self, py: Python<'_>, event_loop: &Object, started: f64) -> PyResult<()> {
        let count = self.ready.borrow().len();
        let mut flushed = started;
        for done in 1..=count {
            let Some(entry) = self.ready.borrow_mut().pop_front() else { break };
            if self.schedule.debug.get() {
                entry.run_watched(py, event_loop)?;
            } else {
                entry.run(py)?;
            }
            drop(entry);
            if done % FLUSH_CLOCK_CALLBACKS == 0 && !self.unsent.borrow().is_empty() {
                let now = clock::now();
                if done % FLUSH_CALLBACKS == 0 || now - flushed > FLUSH_INTERVAL {
                    self.flush(py)?;
                    flushed = now;
                }
            }
        }
        Ok(())
    }

    // --- Sending ---

    /// Asks for `step` to be called at the end of the iteration. False if there is none to come: call it now.
    #[must_use]
    pub fn flush_later(&self, object: &Object, step: Step) -> bool {
        if !self.iterating.get() {
            return false;
        }
        self.unsent.borrow_mut().push((object.clone(), step));
        true
    }

    /// Lets all transports send that asked for it.
    pub fn flush(&self, py: Python<'_>) -> PyResult<()> {
        if self.unsent.borrow().is_empty() {
            return Ok(());
        }
        let mut unsent = self.unsent.take();
        let mut result = Ok(());
        for (object, step) in unsent.drain(..) {
            result = result.and(step(py, &object));
        }
        let mut place = self.unsent.borrow_mut();
        if place.is_empty() {
            *place = unsent;
        }
        result
    }

    /// Says that something was done that can have made a descriptor ready.
    pub fn stir(&self) {
        self.stirred.set(true);
    }

    /// Lends the receive buffer to `f`.
    pub fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = self.buffer.take().unwrap_or_else(|| vec![0; RECEIVE_BUFFER].into_boxed_slice());
        let result = f(&mut buffer);
        self.buffer.set(Some(buffer));
        result
    }

    // --- Descriptors ---

    fn with_registry<R>(&self, f: impl FnOnce(&mut Registry<Watch>) -> io::Result<R>) -> PyResult<R> {
        match &mut *self.registry.borrow_mut() {
            Some(registry) => f(registry).or_os_error(),
            None => Err(PyRuntimeError::new_err("Event loop is closed")),
        }
    }

    /// The transport that a descriptor belongs to.
    pub fn transport_of(&self, fd: RawFd) -> Option<Object> {
        let registry = self.registry.borrow();
        let registry = registry.as_ref()?;
        match registry.get(registry.find(fd)?)? {
            Watch::Transport(object, _) => Some(object.clone()),
            Watch::Waiters { .. } => None,
        }
    }

    /// Gives a descriptor to a transport; waiters that were left from an earlier file of that number are dropped.
    pub fn attach(&self, fd: RawFd, transport: &Object, on_ready: OnReady) -> PyResult<Slot> {
        let (slot, stale) = self.with_registry(|registry| {
            let stale = registry.find(fd).and_then(|slot| registry.remove(slot));
            Ok((registry.insert(fd, Watch::Transport(transport.clone(), on_ready)), stale))
        })?;
        drop(stale);
        Ok(slot)
    }

    /// Ends a transport's hold of its descriptor. To be called before the descriptor is closed.
    pub fn detach(&self, slot: Slot) {
        let watch = match &mut *self.registry.borrow_mut() {
            Some(registry) => registry.remove(slot),
            None => None,
        };
        drop(watch);
    }

    /// Asks for events of a transport's descriptor.
    pub fn set_interest(&self, slot: Slot, interest: Interest) -> PyResult<()> {
        self.stir();
        self.with_registry(|registry| registry.set_interest(slot, interest))
    }

    /// What the kernel has been asked for on behalf of a transport.
    pub fn interest(&self, slot: Slot) -> Interest {
        self.registry.borrow().as_ref().map_or(Interest::NONE, |registry| registry.registered(slot))
    }

    /// Watches one direction of a descriptor and returns who waited for it before.
    pub fn add_waiter(&self, fd: RawFd, direction: Direction, waiter: Waiter) -> PyResult<Option<Waiter>> {
        self.stir();
        self.with_registry(|registry| {
            let slot = match registry.find(fd) {
                Some(slot) => slot,
                None => registry.insert(fd, Watch::Waiters { reader: None, writer: None }),
            };
            let mut interest = registry.registered(slot);
            match direction {
                Direction::Read => interest.readable = true,
                Direction::Write => interest.writable = true,
            }
            if let Err(error) = registry.renew_interest(slot, interest) {
                if matches!(registry.get(slot), Some(Watch::Waiters { reader: None, writer: None })) {
                    registry.remove(slot);
                }
                return Err(error);
            }
            match registry.get_mut(slot) {
                Some(Watch::Waiters { reader, writer }) => Ok(match direction {
                    Direction::Read => reader.replace(waiter),
                    Direction::Write => writer.replace(waiter),
                }),
                _ => Err(io::Error::other("the descriptor belongs to a transport")),
            }
        })
    }

    /// Stops watching one direction of a descriptor and returns who waited for it. With `only`, nothing happens
    /// unless it is that one.
    pub fn remove_waiter(&self, fd: RawFd, direction: Direction, only: Option<&Object>) -> Option<Waiter> {
        let mut registry = self.registry.borrow_mut();
        let registry = registry.as_mut()?;
        let slot = registry.find(fd)?;
        let Some(Watch::Waiters { reader, writer }) = registry.get_mut(slot) else { return None };
        let place = match direction {
            Direction::Read => &mut *reader,
            Direction::Write => &mut *writer,
        };
        if let (Some(only), Some(waiter)) = (only, &*place)
            && !waiter.object().is(only)
        {
            return None;
        }
        let waiter = place.take();
        let interest = Interest { readable: reader.is_some(), writable: writer.is_some() };
        if interest.is_none() {
            registry.remove(slot);
        } else {
            // If the descriptor is not what it was, there is nothing to be told of it any more.
            let _ = registry.set_interest(slot, interest);
        }
        waiter
    }

    // --- The end ---

    /// Sends what can be sent and drops everything: handles, timers, watchers, the poller.
    pub fn close(&self, py: Python<'_>) -> PyResult<()> {
        let flushed = self.flush(py);
        let registry = self.registry.borrow_mut().take();
        let ready = self.ready.take();
        let timers = self.schedule.timers.borrow_mut().drain();
        let sent = self.inbox.collect();
        for timer in &timers {
            timer.set_fired();
        }
        // Dropping runs Python code: nothing is borrowed any more.
        drop((ready, timers, sent));
        if let Some(mut registry) = registry {
            drop(registry.drain());
        }
        flushed
    }

    pub fn clear(&self) {
        let registry = self.registry.try_borrow_mut().ok().and_then(|mut registry| registry.take());
        let ready = self.ready.try_borrow_mut().map(|mut ready| std::mem::take(&mut *ready));
        let timers = self.schedule.timers.try_borrow_mut().map(|mut timers| timers.drain());
        let unsent = self.unsent.try_borrow_mut().map(|mut unsent| std::mem::take(&mut *unsent));
        drop((ready, timers, unsent, self.inbox.collect()));
        if let Some(mut registry) = registry {
            drop(registry.drain());
        }
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        if let Ok(ready) = self.ready.try_borrow() {
            for entry in ready.iter() {
                visitor.object(entry.object());
            }
        }
        if let Ok(timers) = self.schedule.timers.try_borrow() {
            for timer in timers.iter() {
                visitor.object(timer.as_object());
            }
        }
        if let Ok(unsent) = self.unsent.try_borrow() {
            for (object, _) in unsent.iter() {
                visitor.object(object);
            }
        }
        if let Ok(registry) = self.registry.try_borrow()
            && let Some(registry) = &*registry
        {
            for watch in registry.watches() {
                match watch {
                    Watch::Transport(object, _) => visitor.object(object),
                    Watch::Waiters { reader, writer } => {
                        for waiter in [reader, writer].into_iter().flatten() {
                            visitor.object(waiter.object());
                        }
                    }
                }
            }
        }
    }
}

impl Ready {
    pub fn run(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Ready::Handle(handle) => handle.run(py, handle.as_object()),
            Ready::Timer(timer) => timer.handle().run(py, timer.as_object()),
            Ready::ThreadSafe(handle) => handle.run(py, handle.as_object()),
            Ready::Foreign(handle) => handle.call_method0(py, intern!(py, "_run")).map(drop),
            Ready::Step(object, step) => step(py, object),
            Ready::Event(object, on_ready, readiness) => on_ready(py, object, *readiness),
        }
    }

    /// Runs in debug mode: callbacks that take long are logged.
    fn run_watched(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        let handle = if self.is_handle() { self.object().clone() } else { Object::none(py) };
        event_loop.bind(py).setattr(intern!(py, "_current_handle"), handle.bind(py))?;
        let start = clock::now();
        let result = self.run(py);
        let duration = (clock::now() - start).into_pyobject(py)?.into();
        event_loop.bind(py).setattr(intern!(py, "_current_handle"), py.None())?;
        result?;
        imports(py)?.report_slow.call(py, &[event_loop, self.object(), &duration]).map(drop)
    }

    /// The handle, or the object that the step or event is for.
    pub fn object(&self) -> &Object {
        match self {
            Ready::Handle(handle) => handle.as_object(),
            Ready::Timer(timer) => timer.as_object(),
            Ready::ThreadSafe(handle) => handle.as_object(),
            Ready::Foreign(object) | Ready::Step(object, _) | Ready::Event(object, ..) => object,
        }
    }

    fn is_handle(&self) -> bool {
        matches!(self, Ready::Handle(_) | Ready::Timer(_) | Ready::ThreadSafe(_) | Ready::Foreign(_))
    }
}
