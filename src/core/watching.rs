//! Which descriptors are watched, and what happens when they are ready.

use std::io;
use std::os::fd::RawFd;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

use super::{Core, OnReady, Readiness, ReadyEntry, Step};
use crate::cpython::class::{Obj, Visitor};
use crate::cpython::errors::OrOsError;
use crate::cpython::errors::new_error;
use crate::cpython::object::Object;
use crate::handle::Handle;
use crate::intern;
use crate::reactor::poller::{self, Interest};
use crate::reactor::registry::{Registry, Token};

/// Who waits for one direction of a descriptor.
pub enum Waiter {
    /// With what add_reader() or add_writer() was given, an object or a number, which is kept as long as it is watched.
    Handle(Obj<Handle>, Object),
    /// An operation on a socket.
    Operation(Object, Step),
}

impl Waiter {
    fn to_ready(&self) -> ReadyEntry {
        match self {
            Waiter::Handle(handle, _) => ReadyEntry::Handle(handle.clone()),
            Waiter::Operation(object, step) => ReadyEntry::Step(object.clone(), *step),
        }
    }

    /// Cancels what waited before, so that it is not called even if it is in the ready queue. False if there was
    /// nothing.
    pub fn dismiss(py: Python<'_>, waiter: Option<Waiter>) -> PyResult<bool> {
        match waiter {
            None => Ok(false),
            Some(Waiter::Handle(handle, _)) => {
                handle.as_object().call_method(py, intern!(py, "cancel"), &[])?;
                Ok(true)
            }
            Some(Waiter::Operation(..)) => Ok(true),
        }
    }

    fn is_cancelled(&self) -> bool {
        matches!(self, Waiter::Handle(handle, _) if handle.is_cancelled())
    }

    fn object(&self) -> &Object {
        match self {
            Waiter::Handle(handle, _) => handle.as_object(),
            Waiter::Operation(object, _) => object,
        }
    }
}

/// On whose behalf a descriptor is watched.
pub enum Watch {
    Waiters {
        reader: Option<Waiter>,
        writer: Option<Waiter>,
        /// Events in a row that nobody waited for. The kernel is still asked for what was waited for last, because
        /// whoever works with a socket mostly waits again.
        idle: u8,
    },
    /// A transport, which has the descriptor to itself.
    Transport(TransportRef, OnReady),
}

/// How a transport is kept: one with nothing to wait for, because it is paused, lives only as long as somebody else
/// wants it, as in asyncio.
pub enum TransportRef {
    Strong(Object),
    /// A weak reference.
    Weak(Py<PyWeakrefReference>),
}

impl TransportRef {
    /// The transport, unless it is being destroyed.
    fn get(&self, py: Python<'_>) -> Option<Object> {
        match self {
            TransportRef::Strong(object) => Some(object.clone()),
            TransportRef::Weak(reference) => reference.bind(py).upgrade().map(Object::from),
        }
    }
}

impl Watch {
    /// Who waits for one direction, if the descriptor is not a transport's.
    fn waiter(&mut self, direction: Direction) -> Option<&mut Option<Waiter>> {
        match (self, direction) {
            (Watch::Waiters { reader, .. }, Direction::Read) => Some(reader),
            (Watch::Waiters { writer, .. }, Direction::Write) => Some(writer),
            (Watch::Transport(..), _) => None,
        }
    }

    /// What is waited for. A transport asks for itself.
    fn wanted(&self) -> Interest {
        match self {
            Watch::Waiters { reader, writer, .. } => {
                Interest { readable: reader.is_some(), writable: writer.is_some() }
            }
            Watch::Transport(..) => Interest::NONE,
        }
    }

    /// Takes away who waits with a handle that was cancelled.
    fn take_cancelled(&mut self, taken: &mut Vec<Waiter>) {
        let Watch::Waiters { reader, writer, .. } = self else { return };
        for place in [reader, writer] {
            if place.as_ref().is_some_and(Waiter::is_cancelled) {
                taken.extend(place.take());
            }
        }
    }

    /// Whether nobody waits.
    fn is_idle(&self) -> bool {
        matches!(self, Watch::Waiters { reader: None, writer: None, .. })
    }

    pub(super) fn traverse(&self, visitor: &mut Visitor) {
        match self {
            Watch::Transport(TransportRef::Strong(object), _) => visitor.object(object),
            Watch::Transport(TransportRef::Weak(_), _) => {}
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

/// How many events in a row nobody need wait for: there is one look at the descriptors between the event that wakes a
/// task and the task.
const IDLE_EVENTS: u8 = 2;

fn event_loop_is_closed(py: Python<'_>) -> PyErr {
    new_error::<PyRuntimeError>(py, "Event loop is closed")
}

/// Answers an event that nobody waits for: sooner or later the kernel is not asked for it any more.
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
        // It holds nothing that could run code when it is dropped.
        registry.remove(token);
    } else {
        // If the descriptor is not what it was, there is nothing to be told of it any more.
        let _ = registry.set_interest(token, wanted);
    }
}

/// What a transport does with events that come before it has begun.
fn ignore(_py: Python<'_>, _transport: &Object, _readiness: Readiness) -> PyResult<()> {
    Ok(())
}

impl Core {
    /// The objects on whose behalf descriptors are watched.
    pub fn watched_objects(&self, py: Python<'_>) -> Vec<Object> {
        let registry = self.registry.borrow();
        let mut objects = Vec::new();
        for watch in registry.iter().flat_map(Registry::watches) {
            match watch {
                Watch::Transport(hold, _) => objects.extend(hold.get(py)),
                Watch::Waiters { reader, writer, .. } => {
                    let [reader, writer] = [reader, writer].map(|waiter| waiter.as_ref().map(Waiter::object));
                    let both = reader.zip(writer).is_some_and(|(reader, writer)| reader.is(writer));
                    objects.extend(reader.cloned());
                    objects.extend(writer.filter(|_| !both).cloned());
                }
            }
        }
        objects
    }

    /// Queues what has become ready.
    /// Returns whether the kernel told of nothing but files that are not watched, and will again: a new poller is needed,
    /// and cannot be had.
    pub(super) fn dispatch_events(&self, py: Python<'_>, events: &poller::Events) -> bool {
        if events.is_empty() {
            return false;
        }
        let mut borrowed = self.registry.borrow_mut();
        let Some(registry) = &mut *borrowed else { return false };
        let mut ready = self.ready.borrow_mut();
        if ready.try_reserve(2 * events.events().count()).is_err() {
            // The kernel tells of them again.
            return true;
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
            match watch {
                Watch::Transport(hold, on_ready) => {
                    if let Some(object) = hold.get(py) {
                        ready.push_back(ReadyEntry::Event(object, *on_ready, readiness));
                    }
                }
                Watch::Waiters { reader, writer, .. } => {
                    let waits = |waiter: &Option<Waiter>| {
                        waiter.as_ref().is_some_and(|waiter| !waiter.is_cancelled())
                    };
                    let waited =
                        (readiness.readable && waits(reader)) || (readiness.writable && waits(writer));
                    if !waited {
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
        for token in unwaited {
            if let Some(watch) = registry.get_mut(token) {
                watch.take_cancelled(&mut cancelled);
            }
            unregister_if_idle(registry, token);
        }
        if stale {
            registry.suspect_stale();
        }
        let in_vain = stale && registry.keeps_stale() && nothing;
        // What it refers to may run Python code when it is dropped.
        drop(borrowed);
        drop(cancelled);
        in_vain
    }

    fn with_registry<R>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&mut Registry<Watch>) -> io::Result<R>,
    ) -> PyResult<R> {
        // The error is made when nothing is borrowed any more: making it can run Python code.
        let result = self.registry.borrow_mut().as_mut().map(f);
        match result {
            Some(result) => result.or_os_error(py),
            None => Err(event_loop_is_closed(py)),
        }
    }

    /// The transport that a descriptor belongs to.
    pub fn transport_of(&self, py: Python<'_>, fd: RawFd) -> Option<Object> {
        let token = self.registry.borrow().as_ref()?.find(fd)?;
        self.transport_at(py, token)
    }

    pub fn transport_at(&self, py: Python<'_>, token: Token) -> Option<Object> {
        match self.registry.borrow().as_ref()?.get(token)? {
            Watch::Transport(hold, _) => hold.get(py),
            Watch::Waiters { .. } => None,
        }
    }

    /// Gives a descriptor to a transport, which hears of events after [`Core::begin`]; waiters that were left from an earlier
    /// file of that number are dropped. If the kernel is still asked for something that was waited for, it is asked for what
    /// the transport will want first.
    pub fn attach(&self, py: Python<'_>, fd: RawFd, transport: &Object) -> PyResult<Token> {
        let watch = Watch::Transport(TransportRef::Strong(transport.clone()), ignore);
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
        } else {
            let stale = registry.find(fd).and_then(|token| registry.remove(token));
            (registry.insert(fd, watch), stale)
        };
        // What it refers to may run Python code when it is dropped.
        drop(borrowed);
        drop(stale);
        Ok(token)
    }

    /// Has a transport hear of the events of polls from now on. An event that is in the ready queue by now would come before
    /// the tasks that connection_made(), and whoever waits for it, have woken; the kernel tells of it again.
    pub fn begin(&self, token: Token, on_ready: OnReady) {
        if let Some(Watch::Transport(_, place)) =
            self.registry.borrow_mut().as_mut().and_then(|registry| registry.get_mut(token))
        {
            *place = on_ready;
        }
    }

    /// Keeps a transport alive from now on, or no longer.
    pub fn hold(&self, py: Python<'_>, token: Token, transport: &Object, strongly: bool) -> PyResult<()> {
        let hold = if strongly {
            TransportRef::Strong(transport.clone())
        } else {
            TransportRef::Weak(PyWeakrefReference::new(&transport.bind(py))?.unbind())
        };
        let former = match self.registry.borrow_mut().as_mut().and_then(|registry| registry.get_mut(token)) {
            Some(Watch::Transport(place, _)) => Some(std::mem::replace(place, hold)),
            _ => None,
        };
        drop(former);
        Ok(())
    }

    /// Ends a transport's hold of its descriptor. To be called before the descriptor is closed.
    pub fn detach(&self, token: Token) {
        let watch = match &mut *self.registry.borrow_mut() {
            Some(registry) => registry.remove(token),
            None => None,
        };
        drop(watch);
    }

    /// Asks for events of a transport's descriptor.
    pub fn set_interest(&self, py: Python<'_>, token: Token, interest: Interest) -> PyResult<()> {
        self.request_poll();
        self.with_registry(py, |registry| registry.set_interest(token, interest))
    }

    /// What the kernel has been asked for on behalf of a transport.
    pub fn interest(&self, token: Token) -> Interest {
        self.registry.borrow().as_ref().map_or(Interest::NONE, |registry| registry.registered(token))
    }

    /// Watches one direction of a descriptor and returns who waited for it before.
    pub fn add_waiter(
        &self,
        py: Python<'_>,
        fd: RawFd,
        direction: Direction,
        waiter: Waiter,
    ) -> PyResult<Option<Waiter>> {
        self.request_poll();
        // Whatever becomes of it, it is dropped when nothing is borrowed.
        let mut waiter = Some(waiter);
        self.with_registry(py, |registry| {
            let token = match registry.find(fd) {
                Some(token) => token,
                None => registry.insert(fd, Watch::Waiters { reader: None, writer: None, idle: 0 }),
            };
            let mut interest = registry.registered(token);
            // Who waits for the other direction need not be registered: the last attempt may have failed.
            let wanted = registry.get(token).map_or(Interest::NONE, Watch::wanted);
            interest.readable |= wanted.readable;
            interest.writable |= wanted.writable;
            match direction {
                Direction::Read => interest.readable = true,
                Direction::Write => interest.writable = true,
            }
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
        })
    }

    /// The descriptor that is watched on behalf of an object which may have none any more.
    pub fn descriptor_of(&self, file: &Object) -> Option<RawFd> {
        self.registry.borrow().as_ref()?.find_by(|watch| match watch {
            Watch::Waiters { reader, writer, .. } => [reader, writer]
                .into_iter()
                .flatten()
                .any(|waiter| matches!(waiter, Waiter::Handle(_, watched) if watched.is(file))),
            Watch::Transport(..) => false,
        })
    }

    /// Takes a waiter away that is ready, and leaves the kernel asked, for the next one.
    pub fn take_waiter(&self, fd: RawFd, direction: Direction, only: &Object) -> Option<Waiter> {
        let mut registry = self.registry.borrow_mut();
        let registry = registry.as_mut()?;
        let token = registry.find(fd)?;
        let place = registry.get_mut(token)?.waiter(direction)?;
        if place.as_ref().is_some_and(|waiter| waiter.object().is(only)) { place.take() } else { None }
    }

    /// Stops watching one direction of a descriptor and returns who waited for it. With `only`, nothing happens
    /// unless it is that one.
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
            // If the descriptor is not what it was, there is nothing to be told of it any more.
            let _ = registry.set_interest(token, interest);
        }
        waiter
    }
}
