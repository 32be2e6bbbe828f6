//! Which descriptors are watched, and what is queued when they are ready.
//!
//! A descriptor has either one transport or up to two waiters, one for each direction. The registry keeps both alive, and what
//! add_reader() was given, so that a socket which was closed meanwhile can still be looked up. Called by the Loop's methods,
//! transports, and each poll.

use std::io;
use std::os::fd::RawFd;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::recorder::{READABLE, WRITABLE};
use super::{Core, OnReady, Readiness, ReadyEntry};
use crate::cpython::bound_method::{BoundMethod, InstanceFn, WeakMethod};
use crate::cpython::class::{Native, Obj, This, Visitor};
use crate::cpython::errors::{OrOsError, new_error, no_memory};
use crate::cpython::object::Object;
use crate::handle::Handle;
use crate::intern;
use crate::reactor::clock;
use crate::reactor::poller::{self, Interest};
use crate::reactor::registry::{Registry, Token};

/// What waits for one direction of a descriptor.
pub enum Waiter {
    /// A handle, and the object or number that add_reader() or add_writer() was given.
    Handle(Obj<Handle>, Object),
    /// A step of a socket operation, a listener or a pipe transport.
    Step(BoundMethod),
    /// A step of a listener whose socket other processes accept from, too. See [`super::acceptors`].
    Acceptor(BoundMethod),
}

impl Waiter {
    fn to_ready(&self) -> ReadyEntry {
        match self {
            Waiter::Handle(handle, _) => ReadyEntry::Handle(handle.clone()),
            Waiter::Step(step) | Waiter::Acceptor(step) => ReadyEntry::Step(step.clone()),
        }
    }

    /// Cancels the previous waiter, which then is not called even if it is in the ready queue. Returns whether there was one.
    pub fn dismiss(py: Python<'_>, waiter: Option<Waiter>) -> PyResult<bool> {
        match waiter {
            None => Ok(false),
            Some(Waiter::Handle(handle, _)) => {
                handle.as_object().call_method(py, intern!(py, "cancel"), &[])?;
                Ok(true)
            }
            Some(Waiter::Step(_) | Waiter::Acceptor(_)) => Ok(true),
        }
    }

    fn is_cancelled(&self) -> bool {
        matches!(self, Waiter::Handle(handle, _) if handle.is_cancelled())
    }

    pub fn object(&self) -> &Object {
        match self {
            Waiter::Handle(handle, _) => handle.as_object(),
            Waiter::Step(step) | Waiter::Acceptor(step) => step.instance(),
        }
    }
}

/// What a descriptor is watched for.
pub enum Watch {
    Waiters {
        reader: Option<Waiter>,
        writer: Option<Waiter>,
        /// Consecutive events without a waiter. The registration outlives its waiter, because the program mostly waits again.
        idle: u8,
    },
    /// A transport, which has the descriptor to itself. Before it has `begun`, it gets events that tell of nothing.
    Transport { on_ready: TransportRef, begun: bool },
}

/// A transport and its function for events. The reference is weak while the transport waits for no events: then it lives only as
/// long as the program refers to it, as in asyncio.
pub enum TransportRef {
    Strong(OnReady),
    Weak(WeakMethod<(Readiness,)>),
}

impl TransportRef {
    /// None if the transport is being destroyed.
    fn get(&self) -> Option<OnReady> {
        match self {
            TransportRef::Strong(on_ready) => Some(on_ready.clone()),
            TransportRef::Weak(on_ready) => on_ready.upgrade(),
        }
    }
}

impl Watch {
    /// The place of one direction's waiter. None if the descriptor is a transport's.
    fn waiter(&mut self, direction: Direction) -> Option<&mut Option<Waiter>> {
        match (self, direction) {
            (Watch::Waiters { reader, .. }, Direction::Read) => Some(reader),
            (Watch::Waiters { writer, .. }, Direction::Write) => Some(writer),
            (Watch::Transport { .. }, _) => None,
        }
    }

    /// What the waiters wait for. A transport sets its interest itself.
    pub(super) fn wanted(&self) -> Interest {
        match self {
            Watch::Waiters { reader, writer, .. } => Interest {
                readable: reader.is_some(),
                writable: writer.is_some(),
                exclusive: matches!(reader, Some(Waiter::Acceptor(_))) && writer.is_none(),
            },
            Watch::Transport { .. } => Interest::NONE,
        }
    }

    /// Moves waiters whose handle was cancelled to `taken`.
    fn take_cancelled(&mut self, taken: &mut Vec<Waiter>) {
        let Watch::Waiters { reader, writer, .. } = self else { return };
        for place in [reader, writer] {
            taken.extend(place.take_if(|waiter| waiter.is_cancelled()));
        }
    }

    fn is_idle(&self) -> bool {
        matches!(self, Watch::Waiters { reader: None, writer: None, .. })
    }

    /// Whether it is a transport's that waits for no events.
    fn is_weak(&self) -> bool {
        matches!(self, Watch::Transport { on_ready: TransportRef::Weak(_), .. })
    }

    pub(super) fn traverse(&self, visitor: &mut Visitor) {
        match self {
            Watch::Transport { on_ready: TransportRef::Strong(on_ready), .. } => {
                visitor.object(on_ready.instance())
            }
            Watch::Transport { on_ready: TransportRef::Weak(_), .. } => {}
            Watch::Waiters { reader, writer, .. } => {
                for waiter in [reader, writer].into_iter().flatten() {
                    visitor.object(waiter.object());
                    if let Waiter::Handle(_, file) = waiter {
                        visitor.object(file);
                    }
                }
            }
        }
    }
}

/// A direction of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

/// Consecutive events without a waiter that are tolerated before the descriptor is unregistered. One poll always comes between
/// waking a task and its next wait.
const IDLE_EVENTS: u8 = 2;

fn event_loop_is_closed(py: Python<'_>) -> PyErr {
    new_error::<PyRuntimeError>(py, "Event loop is closed")
}

/// Counts an event without a waiter. After [`IDLE_EVENTS`], the kernel is asked only for what is waited for.
fn unregister_if_idle(registry: &mut Registry<Watch>, token: Token) {
    let Some(watch) = registry.get_mut(token) else { return };
    let wanted = watch.wanted();
    let Watch::Waiters { idle, .. } = watch else { return };
    *idle += 1;
    if *idle <= IDLE_EVENTS {
        return;
    }
    *idle = 0;
    if wanted.is_none() {
        // It has no waiters, so that dropping it runs no Python code.
        registry.remove(token);
    } else {
        // This fails if the descriptor was closed: then there are no events to stop.
        let _ = registry.set_interest(token, wanted);
    }
}

impl Core {
    /// The transports and waiters of all descriptors. None without memory for them.
    pub fn watched_objects(&self) -> Option<Vec<Object>> {
        let registry = self.registry.borrow();
        let watches = || registry.iter().flat_map(Registry::watches);
        let mut objects = Vec::new();
        objects.try_reserve(2 * watches().count()).ok()?;
        for watch in watches() {
            match watch {
                Watch::Transport { on_ready, .. } => {
                    objects.extend(on_ready.get().map(|on_ready| on_ready.instance().clone()));
                }
                Watch::Waiters { reader, writer, .. } => {
                    let [reader, writer] = [reader, writer].map(|waiter| waiter.as_ref().map(Waiter::object));
                    let both = reader.zip(writer).is_some_and(|(reader, writer)| reader.is(writer));
                    objects.extend(reader.cloned());
                    objects.extend(writer.filter(|_| !both).cloned());
                }
            }
        }
        Some(objects)
    }

    /// Queues what has become ready, and drops cancelled waiters, which can run Python code.
    ///
    /// Returns true if the next poll would end at once for nothing: all events were of stale registrations, or there was no memory
    /// to queue them, and a new poller cannot be had.
    pub(super) fn dispatch_events(&self, _py: Python<'_>, events: &mut poller::Events) -> bool {
        let count = events.len();
        if count == 0 {
            return false;
        }
        let mut borrowed = self.registry.borrow_mut();
        let Some(registry) = &mut *borrowed else { return false };
        let mut ready = self.ready.borrow_mut();
        // Each can queue two entries. The next poll returns the events for which there is no memory.
        let room = ready.make_room(2 * count, self.headroom());
        if room < 2 * count {
            if room < 2 {
                return true;
            }
            events.truncate(room / 2);
        }
        let mut stale = false;
        let mut unwaited = Vec::new();
        for event in events.events() {
            self.metrics.counts.io_events.add(1);
            let Some((token, watch)) = registry.resolve(event.key) else {
                stale = true;
                continue;
            };
            if event.only_priority {
                registry.mask_priority(token);
                continue;
            }
            let asked = registry.registered(token);
            let readiness = Readiness {
                readable: event.readable && asked.readable,
                writable: event.writable && asked.writable,
            };
            if self.recorder.is_on() {
                let flags = if readiness.readable { READABLE } else { 0 }
                    | if readiness.writable { WRITABLE } else { 0 };
                self.recorder.note_ready(clock::ticks(), registry.descriptor(token), ready.end(), flags);
            }
            match watch {
                Watch::Transport { on_ready, begun } => {
                    if let Some(on_ready) = on_ready.get() {
                        let readiness = if *begun { readiness } else { Readiness::NONE };
                        ready.push_back(ReadyEntry::Event(on_ready, readiness));
                    }
                }
                Watch::Waiters { reader, writer, .. } => {
                    let waits = |waiter: &Option<Waiter>| {
                        waiter.as_ref().is_some_and(|waiter| !waiter.is_cancelled())
                    };
                    let waited =
                        (readiness.readable && waits(reader)) || (readiness.writable && waits(writer));
                    // Without memory, it is looked at again with the next event.
                    if !waited && unwaited.try_reserve(1).is_ok() {
                        unwaited.push(token);
                    }
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
        if !stale && unwaited.is_empty() {
            return false;
        }
        let nothing = ready.is_empty();
        drop(ready);
        let mut cancelled = Vec::new();
        if cancelled.try_reserve(2 * unwaited.len()).is_ok() {
            for token in unwaited {
                if let Some(watch) = registry.get_mut(token) {
                    watch.take_cancelled(&mut cancelled);
                }
                unregister_if_idle(registry, token);
            }
        }
        if stale {
            registry.suspect_stale();
        }
        let in_vain = stale && registry.keeps_stale() && nothing;
        // Dropping waiters can run Python code: nothing is borrowed.
        drop(borrowed);
        drop(cancelled);
        in_vain
    }

    fn with_registry<R>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut Registry<Watch>) -> io::Result<R>,
    ) -> PyResult<R> {
        // Making the error can run Python code: nothing is borrowed then.
        let result = self.registry.borrow_mut().as_mut().map(f);
        match result {
            Some(result) => result.or_os_error(py),
            None => Err(event_loop_is_closed(py)),
        }
    }

    /// The transport that a descriptor belongs to.
    pub fn transport_of(&self, fd: RawFd) -> Option<Object> {
        let token = self.registry.borrow().as_ref()?.find(fd)?;
        self.transport_at(token)
    }

    pub fn transport_at(&self, token: Token) -> Option<Object> {
        match self.registry.borrow().as_ref()?.get(token)? {
            Watch::Transport { on_ready, .. } => on_ready.get().map(|on_ready| on_ready.instance().clone()),
            Watch::Waiters { .. } => None,
        }
    }

    /// Gives a descriptor to a transport, which gets events after [`Core::begin`]. Waiters of an earlier file of that number are
    /// dropped. An idle registration left by earlier waiters is reused, switched to READABLE.
    pub fn attach(&self, py: Python<'_>, fd: RawFd, on_ready: OnReady) -> PyResult<Token> {
        let watch = Watch::Transport { on_ready: TransportRef::Strong(on_ready), begun: false };
        let mut borrowed = self.registry.borrow_mut();
        let Some(registry) = &mut *borrowed else {
            drop(borrowed);
            drop(watch);
            return Err(event_loop_is_closed(py));
        };
        let (token, stale) = if let Some(token) = registry.find(fd)
            && registry.get(token).is_some_and(Watch::is_idle)
            && let Ok(token) = registry.renew_or_move(token, Interest::READABLE)
            && let Some(place) = registry.get_mut(token)
        {
            (token, Some(std::mem::replace(place, watch)))
        } else if registry.reserve(fd) {
            let stale = registry.find(fd).and_then(|token| registry.remove(token));
            (registry.insert(fd, watch), stale)
        } else {
            drop(borrowed);
            drop(watch);
            return Err(no_memory(py));
        };
        // Dropping waiters can run Python code: nothing is borrowed.
        drop(borrowed);
        drop(stale);
        Ok(token)
    }

    /// Gives a transport the events of polls from now on. Those that are in the ready queue by now tell of nothing: they would
    /// come before the tasks that connection_made() has woken. The next poll returns them again.
    pub fn begin(&self, token: Token) {
        if let Some(Watch::Transport { begun, .. }) =
            self.registry.borrow_mut().as_mut().and_then(|registry| registry.get_mut(token))
        {
            *begun = true;
        }
    }

    /// Makes the reference to a transport strong or weak.
    pub fn set_strong<T: Native>(
        &self,
        token: Token,
        this: This<'_, '_, T>,
        on_ready: impl InstanceFn<T, (Readiness,)>,
        strong: bool,
    ) -> PyResult<()> {
        let reference = if strong {
            TransportRef::Strong(BoundMethod::new(this, on_ready))
        } else {
            TransportRef::Weak(WeakMethod::new(this, on_ready)?)
        };
        let former = match self.registry.borrow_mut().as_mut().and_then(|registry| registry.get_mut(token)) {
            Some(Watch::Transport { on_ready, .. }) => Some(std::mem::replace(on_ready, reference)),
            _ => None,
        };
        drop(former);
        Ok(())
    }

    /// Takes a descriptor from its transport, before it is closed. Drops the transport.
    pub fn detach(&self, _py: Python<'_>, token: Token) {
        let watch = self.registry.borrow_mut().as_mut().and_then(|registry| registry.remove(token));
        drop(watch);
    }

    /// Sets what the kernel is asked for on behalf of a transport.
    pub fn set_interest(&self, py: Python<'_>, token: Token, interest: Interest) -> PyResult<()> {
        self.request_poll();
        self.with_registry(py, |registry| registry.set_interest(token, interest))
    }

    /// What the kernel is asked for on behalf of a transport.
    pub fn interest(&self, token: Token) -> Interest {
        self.registry.borrow().as_ref().map_or(Interest::NONE, |registry| registry.registered(token))
    }

    /// Adds the waiter of one direction of a descriptor, and returns the previous one.
    ///
    /// Without the GIL, it takes the descriptor from a transport that waits for nothing: if the collector of another thread has found
    /// that to be garbage, and closed its socket, the number can be another file's before the loop finalizes the transport.
    pub fn add_waiter(
        &self,
        py: Python<'_>,
        fd: RawFd,
        direction: Direction,
        waiter: Waiter,
    ) -> PyResult<Option<Waiter>> {
        self.request_poll();
        // It is taken out on success only, so that an error drops it when nothing is borrowed.
        let mut waiter = Some(waiter);
        let mut abandoned = None;
        let result = self.with_registry(py, |registry| {
            if cfg!(Py_GIL_DISABLED)
                && let Some(token) = registry.find(fd)
                && registry.get(token).is_some_and(Watch::is_weak)
            {
                abandoned = registry.remove(token);
            }
            let token = match registry.find(fd) {
                Some(token) => token,
                None if registry.reserve(fd) => {
                    registry.insert(fd, Watch::Waiters { reader: None, writer: None, idle: 0 })
                }
                None => return Err(io::ErrorKind::OutOfMemory.into()),
            };
            let mut interest = registry.registered(token);
            // The other direction's waiter need not be registered: the last attempt may have failed.
            let wanted = registry.get(token).map_or(Interest::NONE, Watch::wanted);
            interest.readable |= wanted.readable;
            interest.writable |= wanted.writable;
            match direction {
                Direction::Read => {
                    interest.readable = true;
                    interest.exclusive = matches!(waiter, Some(Waiter::Acceptor(_)));
                }
                Direction::Write => interest.writable = true,
            }
            interest.exclusive &= !interest.writable;
            let taken = || io::Error::other("the descriptor belongs to a transport");
            registry.get_mut(token).and_then(|watch| watch.waiter(direction)).ok_or_else(taken)?;
            let token = match registry.renew_or_move(token, interest) {
                Ok(token) => token,
                Err(error) => {
                    let token = registry.find(fd).unwrap_or(token);
                    if registry.get(token).is_some_and(Watch::is_idle) {
                        registry.remove(token);
                    }
                    return Err(error);
                }
            };
            let watch = registry.get_mut(token).ok_or_else(taken)?;
            if let Watch::Waiters { idle, .. } = watch {
                *idle = 0;
            }
            let place = watch.waiter(direction).ok_or_else(taken)?;
            Ok(std::mem::replace(place, waiter.take()))
        });
        drop(abandoned);
        result
    }

    /// The descriptor of an object that add_reader() or add_writer() was given, also if the object is closed by now.
    pub fn descriptor_of(&self, file: &Object) -> Option<RawFd> {
        self.registry.borrow().as_ref()?.find_by(|watch| match watch {
            Watch::Waiters { reader, writer, .. } => [reader, writer]
                .into_iter()
                .flatten()
                .any(|waiter| matches!(waiter, Waiter::Handle(_, watched) if watched.is(file))),
            Watch::Transport { .. } => false,
        })
    }

    /// What waits until a descriptor can be read from, if it is not a transport's.
    pub fn reader_of(&self, fd: RawFd) -> Option<Object> {
        let registry = self.registry.borrow();
        let registry = registry.as_ref()?;
        match registry.get(registry.find(fd)?)? {
            Watch::Waiters { reader, .. } => reader.as_ref().map(|waiter| waiter.object().clone()),
            Watch::Transport { .. } => None,
        }
    }

    /// Takes out a waiter that is ready, and leaves the descriptor registered for the next one.
    pub fn take_waiter(&self, fd: RawFd, direction: Direction, only: &Object) -> Option<Waiter> {
        let mut registry = self.registry.borrow_mut();
        let registry = registry.as_mut()?;
        let token = registry.find(fd)?;
        registry.get_mut(token)?.waiter(direction)?.take_if(|waiter| waiter.object().is(only))
    }

    /// Stops watching one direction of a descriptor and returns its waiter. With `only`, this is a no-op for any other waiter.
    pub fn remove_waiter(&self, fd: RawFd, direction: Direction, only: Option<&Object>) -> Option<Waiter> {
        let mut registry = self.registry.borrow_mut();
        let registry = registry.as_mut()?;
        let token = registry.find(fd)?;
        let watch = registry.get_mut(token)?;
        let place = watch.waiter(direction)?;
        if let (Some(only), Some(waiter)) = (only, &*place)
            && !waiter.object().is(only)
        {
            return None;
        }
        let waiter = place.take();
        let interest = watch.wanted();
        if interest.is_none() {
            registry.remove(token);
        } else {
            // This fails if the descriptor was closed: then there are no events to stop.
            let _ = registry.set_interest(token, interest);
        }
        waiter
    }
}
