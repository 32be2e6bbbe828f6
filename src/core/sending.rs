//! When transports send what is written to them: within write(), or at the end of the iteration.
//!
//! Invariant: data of two transports leave in the order of the first writes to them, unless a queue grew above its high-water mark.

use std::cell::Cell;

use pyo3::prelude::*;

use super::iterations::FLUSH_INTERVAL;
use super::{Core, report_error};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::object::Object;
use crate::reactor::clock;

/// Seconds within which a second write makes one message with the first, such as the head and the body of an HTTP response: the
/// first part may be delayed by as much, as by other callbacks.
const MESSAGE_INTERVAL: f64 = FLUSH_INTERVAL;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum When {
    /// Within write(): the loop is not in an iteration.
    #[default]
    AtOnce,
    /// The first write within write(), so that the peer can begin with it; later ones at the end.
    FirstAtOnce,
    /// [`When::AtEnd`] after the first write was sent, by [`Sending::first`].
    AfterFirst,
    /// At the end of the iteration, all writes to a transport together.
    AtEnd,
}

/// Whether a transport writes its messages in parts. One that does loses by sending the first part alone: a system call more, and a
/// peer that wakes for what it can't use yet.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Parts {
    #[default]
    One,
    /// Two, of which the first was sent alone.
    Split,
    /// Several, which are to be sent together.
    Several,
}

impl Parts {
    /// What is known when the transport has been sent what it wrote in an iteration, in one part or in several.
    pub fn after(self, was_single: bool) -> Parts {
        if self == Parts::Split || !was_single { Parts::Several } else { Parts::One }
    }
}

#[derive(Default)]
pub struct Sending {
    when: Cell<When>,
    /// How many events the last poll had that had any.
    events: Cell<usize>,
    /// The address of the transport that has sent its first write within it, only for comparing.
    first: Cell<usize>,
    /// When that was, in ticks.
    first_sent: Cell<u64>,
    /// When a transport was last written so much that it had to send, in ticks.
    sent_much: Cell<u64>,
}

impl Sending {
    pub fn note_events(&self, count: usize) {
        if count > 0 {
            self.events.set(count);
        }
    }

    /// If the program, or its peer, does one thing at a time, the first write is sent within write(). One event can have two callbacks:
    /// a future often has a done callback besides the task that awaits it.
    #[inline(always)]
    pub fn begin_iteration(&self, callbacks: u64) {
        let is_one_thing = callbacks <= 1 || (callbacks == 2 && self.events.get() <= 1);
        self.when.set(if is_one_thing { When::FirstAtOnce } else { When::AtEnd });
    }

    #[inline(always)]
    pub fn end_iteration(&self) {
        self.when.set(When::AtOnce);
    }
}

impl Core {
    /// Asks for `step` to be called at the end of the iteration. Returns false if the transport is to send now.
    #[must_use]
    pub fn schedule_send(&self, step: BoundMethod, parts: &Cell<Parts>) -> bool {
        let sending = &self.sending;
        match sending.when.get() {
            When::AtEnd => {}
            When::FirstAtOnce if parts.get() == Parts::Several => sending.when.set(When::AtEnd),
            When::FirstAtOnce => {
                sending.when.set(When::AfterFirst);
                sending.first.set(step.instance().as_ptr().addr());
                sending.first_sent.set(clock::ticks());
                return false;
            }
            When::AfterFirst => {
                sending.when.set(When::AtEnd);
                let passed = clock::ticks().wrapping_sub(sending.first_sent.get());
                if self.is_near(passed) && sending.first.get() == step.instance().as_ptr().addr() {
                    parts.set(Parts::Split);
                }
            }
            When::AtOnce => return false,
        }
        let mut unsent = self.unsent.borrow_mut();
        if unsent.try_reserve(1).is_err() {
            return false;
        }
        unsent.push(step);
        true
    }

    /// Notes that a transport has so much to send that it does now. Returns whether one did lately.
    pub fn sends_much(&self) -> bool {
        let now = clock::ticks();
        self.is_near(now.wrapping_sub(self.sending.sent_much.replace(now)))
    }

    fn is_near(&self, passed: u64) -> bool {
        passed < self.poll_policy.tick.ticks(MESSAGE_INTERVAL)
    }

    /// Calls all steps that [`Core::schedule_send`] has noted.
    #[inline(always)]
    pub fn send_scheduled(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        if self.unsent.borrow().is_empty() { Ok(()) } else { self.send_unsent(py, event_loop) }
    }

    #[inline(never)]
    fn send_unsent(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        let mut unsent = self.unsent.take();
        self.recorder.note_sending(unsent.len());
        let mut result = Ok(());
        for step in unsent.drain(..) {
            if let Err(error) = step.call(py, ())
                && let Err(error) = report_error(py, event_loop, step.instance(), error)
            {
                result = Err(error);
            }
        }
        // The vector is used again, unless steps have noted others.
        let mut place = self.unsent.borrow_mut();
        if place.is_empty() {
            *place = unsent;
        }
        result
    }
}
