//! Which descriptors are watched, and what happens when they are ready.

use std::io;
use std::os::fd::RawFd;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

use super::{Core, OnReady, Readiness, Ready, Step};
use crate::cpython::class::{Obj, Visitor};
use crate::cpython::errors::OrOsError;
use crate::cpython::errors::new_error;
use crate::cpython::object::Object;
use crate::handle::Handle;
use crate::intern;
use crate::reactor::poller::{self, Interest};
use crate::reactor::registry::{Registry, Slot};

/// Who waits for one direction of a descriptor.
pub enum Waiter {
    /// With what add_reader() or add_writer() was given, an object or a number, which is kept as long as it is watched.
    Handle(Obj<Handle>, Object),
    /// An operation on a socket.
    Operation(Object, Step),
}

impl Waiter {
    fn to_ready(&self) -> Ready {
        match self {
            Waiter::Handle(handle, _) => Ready::Handle(handle.clone()),
            Waiter::Operation(object, step) => Ready::Step(object.clone(), *step),
        }
    }

    /// Cancels what waited before, so that it is not called even if it is in the ready queue. False if there was
    /// nothing.
    pub fn dismiss(py: Python<'_>, waiter: Option<Waiter>) -> PyResult<bool> {
        match waiter {
            None => Ok(false),
            Some(Waiter::Handle(handle, _)) => {
                handle.as_object().call_method0(py, intern!(py, "cancel"))?;
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
    Transport(Hold, OnReady),
}

/// How a transport is kept: one with nothing to wait for, because it is paused, lives only as long as somebody else
/// wants it, as in asyncio.
pub enum Hold {
    Strong(Object),
    /// A weak reference.
    Weak(Py<PyWeakrefReference>),
}

impl Hold {
    /// The transport, unless it is being destroyed.
    fn get(&self, py: Python<'_>) -> Option<Object> {
        match self {
            Hold::Strong(object) => Some(object.clone()),
            Hold::Weak(reference) => reference.bind(py).upgrade().map(Object::from),
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
            Watch::Transport(Hold::Strong(object), _) => visitor.object(object),
            Watch::Transport(Hold::Weak(_), _) => {}
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
fn calm(registry: &mut Registry<Watch>, slot: Slot) {
    let Some(watch) = registry.get_mut(slot) else { return };
    let wanted = watch.wanted();
    let Watch::Waiters { idle, .. } = watch else { return };
    *idle += 1;
    if *idle <= IDLE_EVENTS {
        return;
    }
    *idle = 0;
    if wanted.is_none() {
        // It holds nothing that could run code when it is dropped.
        registry.remove(slot);
    } else {
        // If the descriptor is not what it was, there is nothing to be told of it any more.
        let _ = registry.set_interest(slot, wanted);
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
    pub(super) fn take_in(&self, py: Python<'_>, events: &poller::Ready) -> bool {
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
        let mut strays = false;
        let mut unwaited = Vec::new();
        for event in events.events() {
            self.metrics.counts.io_events.add(1);
            let Some((slot, watch)) = registry.resolve(event.key) else {
                strays = true;
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
                Watch::Transport(hold, on_ready) => {
                    if let Some(object) = hold.get(py) {
                        ready.push_back(Ready::Event(object, *on_ready, readiness));
                    }
                }
                Watch::Waiters { reader, writer, .. } => {
                    let waits = |waiter: &Option<Waiter>| {
                        waiter.as_ref().is_some_and(|waiter| !waiter.is_cancelled())
                    };
                    let waited =
                        (readiness.readable && waits(reader)) || (readiness.writable && waits(writer));
                    if !waited {
                        unwaited.push(slot);
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
        if !strays && unwaited.is_empty() {
            return false;
        }
        let nothing = ready.is_empty();
        drop(ready);
        let mut cancelled = Vec::new();
        for slot in unwaited {
            if let Some(watch) = registry.get_mut(slot) {
                watch.take_cancelled(&mut cancelled);
            }
            calm(registry, slot);
        }
        if strays {
            registry.suspect_strays();
        }
        let in_vain = strays && registry.keeps_strays() && nothing;
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
        let slot = self.registry.borrow().as_ref()?.find(fd)?;
        self.transport_at(py, slot)
    }

    pub fn transport_at(&self, py: Python<'_>, slot: Slot) -> Option<Object> {
        match self.registry.borrow().as_ref()?.get(slot)? {
            Watch::Transport(hold, _) => hold.get(py),
            Watch::Waiters { .. } => None,
        }
    }

    /// Gives a descriptor to a transport, which hears of events after [`Core::begin`]; waiters that were left from an earlier
    /// file of that number are dropped. If the kernel is still asked for something that was waited for, it is asked for what
    /// the transport will want first.
    pub fn attach(&self, py: Python<'_>, fd: RawFd, transport: &Object) -> PyResult<Slot> {
        let watch = Watch::Transport(Hold::Strong(transport.clone()), ignore);
        let mut borrowed = self.registry.borrow_mut();
        let Some(registry) = &mut *borrowed else {
            drop(borrowed);
            drop(watch);
            return Err(event_loop_is_closed(py));
        };
        let (slot, stale) = if let Some(slot) = registry.find(fd)
            && registry.get(slot).is_some_and(Watch::is_idle)
            && let Ok(slot) = registry.renew_or_move(slot, Interest::READABLE)
            && let Some(place) = registry.get_mut(slot)
        {
            (slot, Some(std::mem::replace(place, watch)))
        } else {
            let stale = registry.find(fd).and_then(|slot| registry.remove(slot));
            (registry.insert(fd, watch), stale)
        };
        // What it refers to may run Python code when it is dropped.
        drop(borrowed);
        drop(stale);
        Ok(slot)
    }

    /// Has a transport hear of the events of polls from now on. An event that is in the ready queue by now would come before
    /// the tasks that connection_made(), and whoever waits for it, have woken; the kernel tells of it again.
    pub fn begin(&self, slot: Slot, on_ready: OnReady) {
        if let Some(Watch::Transport(_, place)) =
            self.registry.borrow_mut().as_mut().and_then(|registry| registry.get_mut(slot))
        {
            *place = on_ready;
        }
    }

    /// Keeps a transport alive from now on, or no longer.
    pub fn hold(&self, py: Python<'_>, slot: Slot, transport: &Object, strongly: bool) -> PyResult<()> {
        let hold = if strongly {
            Hold::Strong(transport.clone())
        } else {
            Hold::Weak(PyWeakrefReference::new(&transport.bind(py))?.unbind())
        };
        let former = match self.registry.borrow_mut().as_mut().and_then(|registry| registry.get_mut(slot)) {
            Some(Watch::Transport(place, _)) => Some(std::mem::replace(place, hold)),
            _ => None,
        };
        drop(former);
        Ok(())
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
    pub fn set_interest(&self, py: Python<'_>, slot: Slot, interest: Interest) -> PyResult<()> {
        self.stir();
        self.with_registry(py, |registry| registry.set_interest(slot, interest))
    }

    /// What the kernel has been asked for on behalf of a transport.
    pub fn interest(&self, slot: Slot) -> Interest {
        self.registry.borrow().as_ref().map_or(Interest::NONE, |registry| registry.registered(slot))
    }

    /// Watches one direction of a descriptor and returns who waited for it before.
    pub fn add_waiter(
        &self,
        py: Python<'_>,
        fd: RawFd,
        direction: Direction,
        waiter: Waiter,
    ) -> PyResult<Option<Waiter>> {
        self.stir();
        // Whatever becomes of it, it is dropped when nothing is borrowed.
        let mut waiter = Some(waiter);
        self.with_registry(py, |registry| {
            let slot = match registry.find(fd) {
                Some(slot) => slot,
                None => registry.insert(fd, Watch::Waiters { reader: None, writer: None, idle: 0 }),
            };
            let mut interest = registry.registered(slot);
            // Who waits for the other direction need not be registered: the last attempt may have failed.
            let wanted = registry.get(slot).map_or(Interest::NONE, Watch::wanted);
            interest.readable |= wanted.readable;
            interest.writable |= wanted.writable;
            match direction {
                Direction::Read => interest.readable = true,
                Direction::Write => interest.writable = true,
            }
            let taken = || io::Error::other("the descriptor belongs to a transport");
            registry.get_mut(slot).and_then(|watch| watch.waiter(direction)).ok_or_else(taken)?;
            let slot = match registry.renew_or_move(slot, interest) {
                Ok(slot) => slot,
                Err(error) => {
                    let slot = registry.find(fd).unwrap_or(slot);
                    if registry.get(slot).is_some_and(Watch::is_idle) {
                        registry.remove(slot);
                    }
                    return Err(error);
                }
            };
            let watch = registry.get_mut(slot).ok_or_else(taken)?;
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
        let slot = registry.find(fd)?;
        let place = registry.get_mut(slot)?.waiter(direction)?;
        if place.as_ref().is_some_and(|waiter| waiter.object().is(only)) { place.take() } else { None }
    }

    /// Stops watching one direction of a descriptor and returns who waited for it. With `only`, nothing happens
    /// unless it is that one.
    pub fn remove_waiter(&self, fd: RawFd, direction: Direction, only: Option<&Object>) -> Option<Waiter> {
        let mut registry = self.registry.borrow_mut();
        let registry = registry.as_mut()?;
        let slot = registry.find(fd)?;
        let watch = registry.get_mut(slot)?;
        let place = watch.waiter(direction)?;
        if let (Some(only), Some(waiter)) = (only, &*place)
            && !waiter.object().is(only)
        {
            return None;
        }
        let waiter = place.take();
        let interest = watch.wanted();
        if interest.is_none() {
            registry.remove(slot);
        } else {
            // If the descriptor is not what it was, there is nothing to be told of it any more.
            let _ = registry.set_interest(slot, interest);
        }
        waiter
    }
}
