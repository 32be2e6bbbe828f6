//! What a transport wants of its descriptor, and what the event loop has been asked for.
//!
//! It calls the kernel through [`crate::core::Core`], and reads or writes nothing itself.
//!
//! ```text
//!                     attach()                              sync(): an event is wanted, or none
//! Unregistered ──┬─ T::SHARES is false ──> Exclusive, strong <────────────────────> Exclusive, weak
//!       ^        └─ T::SHARES is true ───> Shared(directions) <──── sync() ───────> Shared(directions)
//!       └────────────────────────────────── unregister(), from each
//! ```
//!
//! Invariants:
//! - The event loop keeps a transport alive while it is strong, or while a direction is watched.
//! - What is wanted is what the kernel is asked for, but for reading that was paused or ended: the kernel is asked for it
//!   until the next event, which [`super::on_ready`] answers with [`sync`]. Pausing and resuming between two events costs no
//!   system call. A shared descriptor is always asked for what is wanted, as with asyncio's add_reader().
//! - Once unregistered, it stays so, and wants nothing.
//!
//! Called by the endpoint's steps, by [`super::ending`], and by transports whose descriptor is full or has ended.

use std::cell::Cell;

use pyo3::exceptions::PyPermissionError;
use pyo3::prelude::*;

use super::{Transport, fatal_error, in_connection_context, log, on_readable, on_writable, report};
use crate::core::{Direction, Waiter};
use crate::cpython::class::{Obj, This};
use crate::cpython::object::copy_context;
use crate::handle::reraise_fatal;
use crate::reactor::poller::Interest;
use crate::reactor::registry::Token;

#[derive(Clone, Copy)]
enum State {
    Unregistered,
    /// The registry's entry is the transport's own. It refers to the transport strongly or weakly.
    Exclusive {
        token: Token,
        strong: bool,
    },
    /// For each of these directions, a waiter refers to the transport. Others may wait for the rest.
    Shared(Interest),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Before connection_made(), and after the end.
    Off,
    On,
    /// pause_reading() is in force, also if it was called while reading was off.
    Paused,
}

pub struct Registration {
    state: Cell<State>,
    reading: Cell<Reading>,
    /// Whether the descriptor took no more: the rest waits until it is writable.
    blocked: Cell<bool>,
}

impl Default for Registration {
    fn default() -> Self {
        Registration {
            state: Cell::new(State::Unregistered),
            reading: Cell::new(Reading::Off),
            blocked: Cell::new(false),
        }
    }
}

impl Registration {
    pub fn wants_read(&self) -> bool {
        self.reading.get() == Reading::On
    }

    pub fn is_paused(&self) -> bool {
        self.reading.get() == Reading::Paused
    }

    pub fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// Returns what it was. [`sync`] has to follow.
    pub fn set_blocked(&self, blocked: bool) -> bool {
        self.blocked.replace(blocked)
    }

    /// [`sync`] has to follow.
    pub fn start_reading(&self) {
        self.reading.set(Reading::On);
    }

    /// A transport that is paused stays so. [`sync`] or [`unregister`] has to follow.
    pub fn stop_reading(&self) {
        if self.wants_read() {
            self.reading.set(Reading::Off);
        }
    }

    /// [`sync`] or [`unregister`] has to follow.
    pub fn want_nothing(&self) {
        self.stop_reading();
        self.blocked.set(false);
    }

    /// The key of the registry's entry, if it is the transport's own.
    pub fn token(&self) -> Option<Token> {
        match self.state.get() {
            State::Exclusive { token, .. } => Some(token),
            State::Shared(_) | State::Unregistered => None,
        }
    }

    fn wanted(&self) -> Interest {
        Interest { readable: self.wants_read(), writable: self.is_blocked() }
    }
}

/// When the kernel hears that less is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Narrowing {
    Now,
    /// When an event comes that is not wanted. No more may be wanted than the kernel has been asked for.
    AtNextEvent,
}

/// Has the event loop watch a new transport.
pub(super) fn attach<T: Transport>(py: Python<'_>, transport: &Obj<T>) -> PyResult<()> {
    let state = if T::SHARES {
        State::Shared(Interest::NONE)
    } else {
        let token = transport.core.attach(py, transport.fd, transport.as_object())?;
        State::Exclusive { token, strong: true }
    };
    transport.registration.state.set(state);
    Ok(())
}

/// Brings what the kernel is asked for, and whether the event loop keeps the transport alive, in line with what is wanted.
pub fn sync<T: Transport>(this: This<'_, '_, T>, narrowing: Narrowing) -> PyResult<()> {
    let registration = &this.registration;
    let wanted = registration.wanted();
    match registration.state.get() {
        State::Unregistered => Ok(()),
        State::Shared(_) => {
            watch_shared(this, Direction::Read, wanted.readable)?;
            watch_shared(this, Direction::Write, wanted.writable)
        }
        State::Exclusive { token, strong } => {
            if narrowing == Narrowing::Now {
                this.core.set_interest(this.py(), token, wanted)?;
            }
            if strong == !wanted.is_none() {
                return Ok(());
            }
            // First: making a weak reference can run Python code, which can close the transport.
            registration.state.set(State::Exclusive { token, strong: !strong });
            this.core.hold(this.py(), token, &this.object(), !strong)
        }
    }
}

/// Watches one direction of a shared descriptor, or no longer.
fn watch_shared<T: Transport>(this: This<'_, '_, T>, direction: Direction, wanted: bool) -> PyResult<()> {
    if !note_watched(&this.registration, direction, wanted) {
        return Ok(());
    }
    let object = this.object();
    if !wanted {
        drop(this.core.remove_waiter(this.fd, direction, Some(&object)));
        return Ok(());
    }
    let step = match direction {
        Direction::Read => on_readable::<T>,
        Direction::Write => on_writable::<T>,
    };
    match this.core.add_waiter(this.py(), this.fd, direction, Waiter::Operation(object, step)) {
        Ok(previous) => Waiter::dismiss(this.py(), previous).map(drop),
        Err(error) => {
            note_watched(&this.registration, direction, false);
            Err(error)
        }
    }
}

/// Notes whether a direction of a shared descriptor is watched. False if that is nothing new.
fn note_watched(registration: &Registration, direction: Direction, watched: bool) -> bool {
    let State::Shared(mut interest) = registration.state.get() else { return false };
    let before = match direction {
        Direction::Read => std::mem::replace(&mut interest.readable, watched),
        Direction::Write => std::mem::replace(&mut interest.writable, watched),
    };
    registration.state.set(State::Shared(interest));
    before != watched
}

/// Ends the registration. To be called before the descriptor is closed.
pub(super) fn unregister<T: Transport>(this: This<'_, '_, T>) {
    let registration = &this.registration;
    registration.want_nothing();
    match registration.state.replace(State::Unregistered) {
        State::Unregistered => {}
        State::Exclusive { token, .. } => this.core.detach(token),
        State::Shared(watched) => {
            let object = this.object();
            for (is_watched, direction) in
                [(watched.readable, Direction::Read), (watched.writable, Direction::Write)]
            {
                if is_watched {
                    drop(this.core.remove_waiter(this.fd, direction, Some(&object)));
                }
            }
        }
    }
}

const CANNOT_WATCH: &str = "Fatal error: the descriptor cannot be watched";

/// [`sync`] for a transport in use: one that cannot be watched would wait for ever, so it ends.
pub fn sync_or_end<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    sync(this, Narrowing::Now).or_else(|error| fatal_error(this, error, CANNOT_WATCH))
}

/// [`sync_or_end`] outside of all callbacks.
pub fn sync_or_end_in_connection_context<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    sync(this, Narrowing::Now)
        .or_else(|error| in_connection_context(this, || fatal_error(this, error, CANNOT_WATCH)))
}

/// [`sync`] for a new transport. A device that the kernel refuses to watch stays open, as in asyncio: it can be closed and
/// written to.
pub(super) fn sync_new<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    sync(this, Narrowing::Now).or_else(|error| cannot_watch(this, error))
}

#[cold]
fn cannot_watch<T: Transport>(this: This<'_, '_, T>, error: PyErr) -> PyResult<()> {
    let py = this.py();
    if !this.is_device() || !error.is_instance_of::<PyPermissionError>(py) {
        return fatal_error(this, error, CANNOT_WATCH);
    }
    this.registration.stop_reading();
    report(this, CANNOT_WATCH, &reraise_fatal(py, error)?)
}

/// Notes whether the descriptor took no more, and has it watched accordingly.
pub fn set_blocked<T: Transport>(this: This<'_, '_, T>, blocked: bool) -> PyResult<()> {
    if this.registration.set_blocked(blocked) == blocked {
        return Ok(());
    }
    if blocked {
        this.keep_write_context(this.py())?;
    }
    sync_or_end(this)
}

pub fn pause_reading<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    if !this.is_reading() {
        return Ok(());
    }
    this.registration.reading.set(Reading::Paused);
    sync(this, Narrowing::AtNextEvent)?;
    if this.debug() { log(this, "debug", "%r pauses reading") } else { Ok(()) }
}

pub fn resume_reading<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    let registration = &this.registration;
    if this.is_closing() || !registration.is_paused() {
        return Ok(());
    }
    registration.start_reading();
    if this.context.is_none() {
        this.read_context.set(Some(copy_context(this.py())?));
    }
    let is_asked = registration.token().is_some_and(|token| this.core.interest(token).readable);
    sync(this, if is_asked { Narrowing::AtNextEvent } else { Narrowing::Now })?;
    T::resumed(this)?;
    if this.debug() { log(this, "debug", "%r resumes reading") } else { Ok(()) }
}
