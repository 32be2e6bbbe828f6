//! Iterations: the callbacks that are run, what is sent after them, and where their errors go.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::{Core, ReadyEntry, Step};
use crate::cpython::module::import;
use crate::cpython::object::Object;
use crate::handle::reraise_fatal;
use crate::imports::imports;
use crate::intern;
use crate::reactor::clock::{self, Instant};

/// Callbacks run between two looks at what waits to be sent.
const FLUSH_CALLBACKS: usize = 128;
/// Callbacks run between two looks at the clock, for the sake of what waits to be sent...
const FLUSH_CLOCK_CALLBACKS: usize = 8;
/// ...which is sent after this long, in seconds, even if the iteration goes on.
const FLUSH_INTERVAL: f64 = 1e-3;

/// When what is written is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// No iteration is under way that would have an end.
    AtOnce,
    /// The iteration has one callback. The peer, who may be waiting for it, gets the first write while the callback goes on;
    /// what is written after that goes together.
    FirstAtOnce,
    /// With the other writes to the same transport, at the end of the iteration.
    AtEnd,
}

impl Core {
    /// Runs iterations until [`Core::set_stopping`]; the one under way then is finished.
    pub fn run(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        // What happened before may have made descriptors ready.
        self.poll_policy.request_poll();
        let now = Instant::now();
        self.metrics.begin_run(now);
        if let Some(run_monitor) = &*self.run_monitor.borrow() {
            run_monitor.set_thread();
        }
        if !self.has_overridden_clock() {
            self.metrics.look_at_timers(now.seconds, now.ticks);
        }
        let result = self.run_iterations(py, event_loop);
        self.metrics.end_run(&self.poll_policy.tick);
        result
    }

    fn run_iterations(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
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
        self.iteration.set(self.iteration.get() + 1);
        if self.injected.has_entries() {
            self.take_injected();
        }
        let callbacks_wait = !self.ready.borrow().is_empty() || self.stopping.get();
        let started = match if callbacks_wait { self.try_skip_poll() } else { None } {
            Some(ticks) => Instant { seconds: self.poll_policy.polled(), ticks },
            None => self.poll_and_collect_due(py, event_loop, callbacks_wait)?,
        };
        let result = self.run_ready(py, event_loop, started);
        self.sending.set(Sending::AtOnce);
        let flushed = self.send_scheduled(py, event_loop);
        result.and(flushed)
    }

    /// Runs the callbacks that are in the queue now, not those that they add.
    fn run_ready(&self, py: Python<'_>, event_loop: &Object, started: Instant) -> PyResult<()> {
        let count = self.ready.borrow().len();
        self.sending.set(if count > 1 { Sending::AtEnd } else { Sending::FirstAtOnce });
        let mut mark = self.metrics.begin_iteration(started.ticks, count, &self.poll_policy.tick);
        let mut flushed = started.seconds;
        for done in 1..=count {
            if done > mark {
                mark = self.metrics.mark(done - 1, count, self.ready_length(), &self.poll_policy.tick);
            }
            let Some(entry) = self.ready.borrow_mut().pop_front() else { break };
            self.metrics.set_left(count - done);
            let result = if self.schedule.is_plain() {
                entry.run(py, event_loop)
            } else {
                let began = if done == 1 { started.ticks } else { clock::ticks() };
                self.run_observed(py, event_loop, &entry, began)
            };
            if let Err(error) = result {
                report_error(py, event_loop, entry.object(), error)?;
            }
            drop(entry);
            if done % FLUSH_CLOCK_CALLBACKS == 0 && !self.unsent.borrow().is_empty() {
                let now = clock::now();
                if done % FLUSH_CALLBACKS == 0 || now - flushed > FLUSH_INTERVAL {
                    self.send_scheduled(py, event_loop)?;
                    flushed = now;
                }
            }
        }
        Ok(())
    }

    /// Runs a callback in debug mode, while somebody watches, or by a method of the program's. It `began` now, in ticks.
    #[inline(never)]
    fn run_observed(
        &self,
        py: Python<'_>,
        event_loop: &Object,
        entry: &ReadyEntry,
        began: u64,
    ) -> PyResult<()> {
        let by_method = self.schedule.is_by_method();
        let run = || match self.schedule.debug() {
            true => entry.run_watched(py, event_loop, by_method),
            false if by_method => entry.run_by_method(py, event_loop),
            false => entry.run(py, event_loop),
        };
        let run_monitor = self.run_monitor.borrow().clone();
        let Some(run_monitor) = run_monitor else { return run() };
        run_monitor.begin(began);
        let result = run();
        let Some(turn) = run_monitor.end() else { return result };
        let seconds = self.poll_policy.tick.seconds(clock::ticks().wrapping_sub(turn.began));
        let told = tell_end(py, event_loop, turn.number, entry.object(), seconds).or_else(|error| {
            // What fails to be told is no failure of the program; Ctrl-C, which any Python code can meet, is for it.
            if error.is_instance_of::<PyException>(py) {
                error.write_unraisable(py, None);
                return Ok(());
            }
            Err(error)
        });
        result.and(told)
    }

    /// Asks for `step` to be called at the end of the iteration. False if it is to be called now.
    #[must_use]
    pub fn schedule_send(&self, object: Object, step: Step) -> bool {
        match self.sending.get() {
            Sending::AtEnd => {
                let mut unsent = self.unsent.borrow_mut();
                if unsent.try_reserve(1).is_err() {
                    return false;
                }
                unsent.push((object, step));
                true
            }
            Sending::FirstAtOnce => {
                self.sending.set(Sending::AtEnd);
                false
            }
            Sending::AtOnce => false,
        }
    }

    /// Lets all transports send that asked for it.
    pub fn send_scheduled(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        if self.unsent.borrow().is_empty() { Ok(()) } else { self.send_unsent(py, event_loop) }
    }

    fn send_unsent(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        let mut unsent = self.unsent.take();
        let mut result = Ok(());
        for (object, step) in unsent.drain(..) {
            if let Err(error) = step(py, &object)
                && let Err(error) = report_error(py, event_loop, &object, error)
            {
                result = Err(error);
            }
        }
        let mut place = self.unsent.borrow_mut();
        if place.is_empty() {
            *place = unsent;
        }
        result
    }
}

/// Tells the watchdog's Python half that a callback which it has noticed is over.
#[cold]
fn tell_end(py: Python<'_>, event_loop: &Object, turn: u64, subject: &Object, seconds: f64) -> PyResult<()> {
    let (turn, seconds) = (Object::from_size(py, turn as usize)?, Object::from_float(py, seconds)?);
    let module = Object::from(import(py, "hotloop._observing.watching")?);
    module.call_method(py, intern!(py, "end"), &[event_loop, &turn, subject, &seconds]).map(drop)
}

/// Hands an error that a callback of the event loop's own raised to the exception handler, with what the callback was for.
/// Only SystemExit and KeyboardInterrupt are returned: nothing else may end the run of the event loop.
#[cold]
pub fn report_error(py: Python<'_>, event_loop: &Object, subject: &Object, error: PyErr) -> PyResult<()> {
    let exception = reraise_fatal(py, error)?;
    let reported =
        imports(py).and_then(|imports| imports.report_entry.call(py, &[event_loop, subject, &exception]));
    let Err(error) = reported else { return Ok(()) };
    // The report itself can fail, out of memory for one.
    let exception = reraise_fatal(py, error)?;
    PyErr::from_value(exception.into_bound(py)).write_unraisable(py, Some(&event_loop.bind(py)));
    Ok(())
}
