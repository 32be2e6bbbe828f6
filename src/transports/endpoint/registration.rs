//! The registration of a transport's descriptor with the event loop: which events are wanted, and what was asked of the kernel.
//!
//! ```text
//! Unregistered ── attach() ──┬── Exclusive, strong <── sync(): events are wanted, or none ──> Exclusive, weak
//!       ^                    └── Shared(watched) <──── sync() ────> Shared(watched)     (T::SHARES)
//!       └── unregister() from each, for good
//! ```
//!
//! Invariants:
//! - The event loop keeps a transport alive while it is strong, or a direction is watched. One that waits for nothing is weak.
//! - What is wanted changes first, and [`sync`] follows: at once if more is wanted. If less is, the kernel can be left alone until
//!   an unwanted event comes, which `on_ready` answers with [`sync`]: a pause between two events costs no system call.
//! - A shared descriptor is always asked for exactly what is wanted, as with asyncio's add_reader().
//!
//! Nothing is read or written here.

use std::cell::Cell;

use pyo3::exceptions::PyPermissionError;
use pyo3::prelude::*;

use super::{Transport, fatal_error, log, on_readable, on_ready, on_writable, report};
use crate::core::{Direction, Waiter};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{Obj, This};
use crate::cpython::object::copy_context;
use crate::handle::reraise_fatal;
use crate::reactor::poller::Interest;
use crate::reactor::published::Published;
#[cfg(Py_GIL_DISABLED)]
use crate::reactor::published::Word;
use crate::reactor::registry::Token;

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Unregistered,
    /// The registry's entry is the transport's own, and refers to it strongly or weakly.
    Exclusive { token: Token, strong: bool },
    /// The directions for which a waiter refers to the transport. Another transport may wait for the other one.
    Shared(Interest),
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Reading {
    /// Before connection_made(), and after the end.
    #[default]
    Off,
    On,
    /// pause_reading() is in force.
    Paused,
}

#[cfg(Py_GIL_DISABLED)]
impl Word for Reading {
    fn to_word(self) -> u64 {
        self as u64
    }

    fn from_word(word: u64) -> Reading {
        [Reading::Off, Reading::On, Reading::Paused][word as usize]
    }
}

#[derive(Default)]
pub struct Registration {
    state: Cell<State>,
    reading: Published<Reading>,
    /// Whether the descriptor took no more: the rest waits until it is writable.
    blocked: Cell<bool>,
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

    /// Returns what it was.
    pub fn set_blocked(&self, blocked: bool) -> bool {
        self.blocked.replace(blocked)
    }

    pub fn start_reading(&self) {
        self.reading.set(Reading::On);
    }

    /// A transport that is paused stays so.
    pub fn stop_reading(&self) {
        if self.wants_read() {
            self.reading.set(Reading::Off);
        }
    }

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

    /// Whether the event loop does not keep the transport alive.
    pub fn is_weak(&self) -> bool {
        matches!(self.state.get(), State::Exclusive { strong: false, .. })
    }

    fn wanted(&self) -> Interest {
        Interest { readable: self.wants_read(), writable: self.is_blocked(), ..Interest::NONE }
    }
}

/// When the kernel is told that less is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Narrowing {
    Now,
    /// When an unwanted event comes. What is wanted must be part of what the kernel has been asked for.
    AtNextEvent,
}

/// Has the event loop watch a new transport.
pub(super) fn attach<T: Transport>(py: Python<'_>, transport: &Obj<T>) -> PyResult<()> {
    let state = if T::SHARES {
        State::Shared(Interest::NONE)
    } else {
        let on_ready = BoundMethod::new(transport.this(py), on_ready::<T>);
        let token = transport.core.attach(py, transport.fd, on_ready)?;
        State::Exclusive { token, strong: true }
    };
    transport.registration.state.set(state);
    Ok(())
}

/// Brings what the kernel is asked for, and whether the event loop keeps the transport alive, in line with what is wanted.
#[inline(always)]
pub fn sync<T: Transport>(this: This<'_, '_, T>, narrowing: Narrowing) -> PyResult<()> {
    let wanted = this.registration.wanted();
    if T::SHARES {
        watch_shared(this, Direction::Read, wanted.readable)?;
        return watch_shared(this, Direction::Write, wanted.writable);
    }
    let State::Exclusive { token, strong } = this.registration.state.get() else { return Ok(()) };
    if narrowing == Narrowing::Now {
        this.core.set_interest(this.py(), token, wanted)?;
    }
    if strong != wanted.is_none() {
        return Ok(());
    }
    // First: making a weak reference can run Python code, which can close the transport.
    this.registration.state.set(State::Exclusive { token, strong: !strong });
    this.core.set_strong(token, this, on_ready::<T>, !strong)
}

/// [`sync`] out of line, for functions that seldom need it.
#[inline(never)]
pub fn sync_now<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    sync(this, Narrowing::Now)
}

/// Watches one direction of a shared descriptor, or no longer.
fn watch_shared<T: Transport>(this: This<'_, '_, T>, direction: Direction, wanted: bool) -> PyResult<()> {
    if !note_watched(&this.registration, direction, wanted) {
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
            note_watched(&this.registration, direction, false);
            Err(error)
        }
    }
}

/// Notes whether a direction is watched. False if it was noted before, or the descriptor is not registered.
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
    this.registration.want_nothing();
    if T::SHARES {
        // Nothing is wanted, and to stop watching cannot fail.
        let _ = sync_now(this);
    }
    if let State::Exclusive { token, .. } = this.registration.state.replace(State::Unregistered) {
        this.core.detach(this.py(), token);
    }
}

/// [`sync`] that ends the transport if it fails: without events it would wait for ever.
pub fn sync_or_end<T: Transport>(this: This<'_, '_, T>) -> PyResult<()> {
    sync_now(this).or_else(|error| cannot_watch(this, error))
}

/// Ends a transport that cannot be watched. A device that the kernel refuses to watch stays open, as in asyncio: it can be closed
/// and written to.
#[cold]
pub fn cannot_watch<T: Transport>(this: This<'_, '_, T>, error: PyErr) -> PyResult<()> {
    const MESSAGE: &str = "Fatal error: the descriptor cannot be watched";
    let py = this.py();
    if !this.is_device() || !error.is_instance_of::<PyPermissionError>(py) {
        return fatal_error(this, error, MESSAGE);
    }
    this.registration.stop_reading();
    report(this, MESSAGE, &reraise_fatal(py, error)?)
}

/// Notes whether the descriptor took no more, and has it watched accordingly.
#[inline(always)]
pub fn set_blocked<T: Transport>(this: This<'_, '_, T>, blocked: bool) -> PyResult<()> {
    if this.registration.set_blocked(blocked) == blocked { Ok(()) } else { blocked_changed(this, blocked) }
}

fn blocked_changed<T: Transport>(this: This<'_, '_, T>, blocked: bool) -> PyResult<()> {
    this.note_waiting(this.queued_size());
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
    if is_asked { sync(this, Narrowing::AtNextEvent) } else { sync_now(this) }?;
    T::resumed(this)?;
    if this.debug() { log(this, "debug", "%r resumes reading") } else { Ok(()) }
}
