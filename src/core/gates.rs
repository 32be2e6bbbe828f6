//! Gates of servers that are limited: whether a server may accept now, by how many connections it has and by how late the loop is.
//!
//! A gate is open or paused, for either reason or both:
//!
//! ```text
//! FULL   from the limit's number of connections on, until there are `resume_at` or fewer
//! LATE   when more than a tenth of the callbacks of the last second were later than the limit, until no more than a tenth of those
//!        since the look before, usually a tenth of a second ago, were later than half of it
//! ```
//!
//! `transports/limit.rs` has what belongs to a gate of Python's side: the listeners, which ask the gate before they accept, and are
//! told when it opens. A gate is engaged while its server is limited and has listeners.
//!
//! Connections may end in any thread, and all else is for the loop's. Both sides of the count write first and then read what the other
//! writes, so that a connection which ends while the gate becomes full is seen by one of them.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use pyo3::prelude::*;

use super::due::Due;
use super::{Core, ReadyEntry};
use crate::cpython::borrowing::StateCell;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::Visitor;
use crate::cpython::object::Object;
use crate::cpython::ownership::Shared;
use crate::reactor::clock;
use crate::reactor::histogram::Histogram;
use crate::reactor::limits::{Look, Window, resume_at};
use crate::reactor::published::Published;

/// How often the loop's delay is compared with limits, in seconds.
const INTERVAL: f64 = 0.1;

const FULL: u8 = 1;
const LATE: u8 = 2;
/// No reason to pause: how late the loop is can only be seen when what was accepted has been worked on, so that few at a time are.
const SLOWLY: u8 = 4;

/// What may be accepted for a server.
pub struct Gate {
    core: Shared<Core>,
    /// Connections of the server, from accept() until they are closed.
    connections: AtomicUsize,
    /// [`FULL`] and [`LATE`], why it is paused, and [`SLOWLY`].
    state: AtomicU8,
    /// usize::MAX for no limit.
    most: Published<usize>,
    /// Infinite for no limit.
    latest: Published<f64>,
    window: StateCell<Window>,
}

impl Gate {
    pub fn new(core: Shared<Core>) -> Gate {
        Gate {
            core,
            connections: AtomicUsize::new(0),
            state: AtomicU8::new(0),
            most: Published::new(usize::MAX),
            latest: Published::new(f64::INFINITY),
            window: StateCell::default(),
        }
    }

    fn is_full(&self) -> bool {
        self.state.load(Ordering::SeqCst) & FULL != 0
    }

    fn is_late(&self) -> bool {
        self.state.load(Ordering::Relaxed) & LATE != 0
    }

    pub fn is_paused(&self) -> bool {
        self.state.load(Ordering::Relaxed) & (FULL | LATE) != 0
    }

    /// Whether one connection is to be accepted in an iteration, not as many as wait.
    pub fn is_slow(&self) -> bool {
        self.state.load(Ordering::Relaxed) & SLOWLY != 0
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The limit of connections.
    pub fn most(&self) -> Option<usize> {
        Some(self.most.get()).filter(|most| *most != usize::MAX)
    }

    /// The limit of the delay, in seconds.
    pub fn latest(&self) -> Option<f64> {
        Some(self.latest.get()).filter(|latest| latest.is_finite())
    }

    pub fn is_limited(&self) -> bool {
        self.most().is_some() || self.latest().is_some()
    }

    /// Sets the limits, of which [`Core::engage`] makes a beginning.
    pub fn set(&self, most: Option<usize>, latest: Option<f64>) {
        self.most.set(most.unwrap_or(usize::MAX));
        self.latest.set(latest.unwrap_or(f64::INFINITY));
        self.note(SLOWLY, latest.is_some());
        self.window.take();
    }

    /// Counts a connection that was accepted, until what this returns is dropped.
    pub fn enter(gate: &Shared<Gate>) -> Admitted {
        let connections = gate.connections.fetch_add(1, Ordering::SeqCst) + 1;
        if connections >= gate.most.get() {
            gate.note_full();
        }
        Admitted(Shared::clone(gate))
    }

    fn leave(&self) {
        let connections = self.connections.fetch_sub(1, Ordering::SeqCst) - 1;
        if self.is_full() && connections <= self.resume_at() {
            self.core.gates.request();
            self.core.wake();
        }
    }

    fn resume_at(&self) -> usize {
        match self.most.get() {
            usize::MAX => usize::MAX,
            most => resume_at(most),
        }
    }

    fn note_full(&self) {
        self.note(FULL, true);
        if self.connections.load(Ordering::SeqCst) <= self.resume_at() {
            // One has ended meanwhile, in another thread.
            self.core.gates.request();
        }
    }

    fn note(&self, reason: u8, holds: bool) {
        let before = self.state.load(Ordering::Relaxed);
        let after = if holds { before | reason } else { before & !reason };
        self.state.store(after, Ordering::SeqCst);
        let pauses = &self.core.metrics.accept_paused;
        match (before & (FULL | LATE), after & (FULL | LATE)) {
            (0, 1..) => {
                self.core.metrics.counts.accept_pauses.add(1);
                pauses.begin(clock::now());
            }
            (1.., 0) => pauses.end(clock::now()),
            _ => {}
        }
    }

    /// Opens it: nothing is limited any more.
    fn open(&self) {
        self.note(FULL | LATE, false);
        self.window.take();
    }

    /// Compares the number of connections with the limit.
    fn compare_connections(&self) {
        let connections = self.connections.load(Ordering::SeqCst);
        if !self.is_full() && connections >= self.most.get() {
            self.note_full();
        } else if self.is_full() && connections <= self.resume_at() {
            self.note(FULL, false);
        }
    }

    /// Compares the delays with the limit. Returns whether there were any callbacks in the window.
    fn compare_delays(&self, now: f64, delays: &Histogram) -> bool {
        let Some(latest) = self.latest() else {
            self.note(LATE, false);
            return false;
        };
        let mut window = self.window.borrow_mut();
        let recent = window.add(Look::new(now, delays, latest));
        let was_late = self.is_late();
        if recent.is_late(was_late) != was_late {
            self.note(LATE, !was_late);
            window.restart();
        }
        !recent.is_idle()
    }
}

/// A connection, which counts until this is dropped, by any thread. Runs no Python code.
pub struct Admitted(Shared<Gate>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A gate, and the step that has the server's listeners accept again.
pub struct Engaged {
    gate: Shared<Gate>,
    resume: BoundMethod,
}

/// The gates of a loop that are engaged.
pub struct Gates {
    engaged: StateCell<Vec<Engaged>>,
    /// When the delay is compared next.
    due: Due,
    /// Whether a wait ends by then. A loop that has had no callbacks for a second, and is not late, sleeps on.
    awake: Cell<bool>,
    /// Whether a gate may be opened because connections have ended.
    requested: AtomicBool,
}

impl Default for Gates {
    fn default() -> Self {
        Gates {
            engaged: StateCell::default(),
            due: Due::default(),
            awake: Cell::new(false),
            requested: AtomicBool::new(false),
        }
    }
}

impl Gates {
    fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// The objects of the steps.
    pub fn traverse(&self, visitor: &mut Visitor) {
        if let Ok(engaged) = self.engaged.try_borrow() {
            engaged.iter().for_each(|engaged| visitor.object(engaged.resume.instance()));
        }
    }

    /// Visits the objects of the steps until one is found.
    pub fn find<T>(&self, find: impl FnMut(&Object) -> Option<T>) -> Option<T> {
        self.engaged.borrow().iter().map(|engaged| engaged.resume.instance()).find_map(find)
    }

    /// Takes all gates out and opens them: the loop is closed. What is returned can run Python code when it is dropped.
    pub fn take_all(&self) -> Vec<Engaged> {
        let engaged = self.engaged.try_borrow_mut().map(|mut engaged| std::mem::take(&mut *engaged));
        let engaged = engaged.unwrap_or_default();
        engaged.iter().for_each(|engaged| engaged.gate.open());
        self.due.clear();
        engaged
    }
}

impl Core {
    /// Begins to compare with a gate's limits, which are new. False if there is no memory for it.
    pub fn engage(&self, gate: &Shared<Gate>, resume: BoundMethod) -> bool {
        let mut engaged = self.gates.engaged.borrow_mut();
        let known = engaged.iter().any(|known| Shared::ptr_eq(&known.gate, gate));
        if !known {
            if engaged.try_reserve(1).is_err() {
                // What is dropped may be the last reference to an object of Python's.
                drop(engaged);
                drop(resume);
                return false;
            }
            engaged.push(Engaged { gate: Shared::clone(gate), resume });
        }
        drop(engaged);
        gate.compare_connections();
        gate.compare_delays(clock::now(), &self.metrics.delays.histogram);
        if gate.latest().is_some() {
            self.gates.due.set_by(clock::now() + INTERVAL);
        }
        self.gates.awake.set(true);
        true
    }

    /// Ends what [`Core::engage`] began, and opens the gate. Does nothing if it is not engaged.
    pub fn disengage(&self, _py: Python<'_>, gate: &Shared<Gate>) {
        let mut engaged = self.gates.engaged.borrow_mut();
        let position = engaged.iter().position(|known| Shared::ptr_eq(&known.gate, gate));
        let removed = position.map(|position| engaged.swap_remove(position));
        drop(engaged);
        gate.open();
        drop(removed);
    }

    /// Limits how long a wait may take. `now`: in seconds of the clock.
    #[inline(always)]
    pub(super) fn until_gates(&self, now: f64, timeout: Option<Duration>) -> Option<Duration> {
        if self.gates.requested.load(Ordering::Relaxed) {
            return Some(Duration::ZERO);
        }
        if self.gates.awake.get() { self.gates.due.limit(now, timeout) } else { timeout }
    }

    /// Opens gates and pauses them, if it is time, or if one was requested.
    #[inline(always)]
    pub(super) fn move_gates(&self, now: f64) {
        if self.gates.due.has_come(now) || self.gates.requested.load(Ordering::Relaxed) {
            self.compare_gates(now);
        }
    }

    #[cold]
    fn compare_gates(&self, now: f64) {
        self.gates.requested.store(false, Ordering::SeqCst);
        let is_due = self.gates.due.has_come(now);
        let mut awake = self.ready_length() > 0;
        let (mut compares_delays, mut late) = (false, false);
        let engaged = self.gates.engaged.borrow();
        for Engaged { gate, resume } in engaged.iter() {
            let was_paused = gate.is_paused();
            gate.compare_connections();
            if gate.latest().is_some() {
                compares_delays = true;
                if is_due {
                    awake |= gate.compare_delays(now, &self.metrics.delays.histogram);
                }
                late |= gate.is_late();
            }
            if was_paused && !gate.is_paused() {
                self.push(ReadyEntry::Step(resume.clone()));
            }
        }
        if is_due {
            if compares_delays {
                self.gates.due.set(now + INTERVAL);
            } else {
                self.gates.due.clear();
            }
            self.gates.awake.set(awake | late);
        }
    }
}
