//! Iterations: running callbacks, sending what they wrote, and where their errors go.
//!
//! Called by the methods of the Loop class. A step's or event's error ends in [`report_error`], a handle's in [`crate::handle`];
//! only SystemExit and KeyboardInterrupt leave the run.

use std::ops::Range;

use pyo3::prelude::*;

use super::recorder::{Beginning, Kind};
use super::{Core, ReadyEntry};
use crate::cpython::frames;
use crate::cpython::object::{Object, thread_ident};
use crate::handle::reraise_fatal;
use crate::imports::imports;
use crate::reactor::clock::{self, Instant};

/// In a long iteration, what was written is sent after this many callbacks,
const FLUSH_CALLBACKS: u64 = 128;
/// and after this many seconds.
pub(super) const FLUSH_INTERVAL: f64 = 1e-3;
/// The clock is read for that after this many callbacks.
const FLUSH_CLOCK_CALLBACKS: u64 = 8;

impl Core {
    /// Runs iterations until `stopping` is set.
    pub fn run(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        // Code that ran before the loop may have made descriptors ready.
        self.poll_policy.request_poll();
        let now = Instant::now();
        self.metrics.begin_run(now, !self.overridden_clock.get());
        self.recorder.note_run(Kind::RunBegan, thread_ident());
        self.recorder.accounts.begin_run(self.metrics.idle(), thread_ident());
        if let Some(run_monitor) = &*self.run_monitor.borrow() {
            run_monitor.set_thread(frames::thread_state(py));
        }
        let result = loop {
            let result = self.iterate(py, event_loop);
            if result.is_err() || self.stopping.get() {
                break result;
            }
        };
        self.metrics.end_run(&self.poll_policy.tick);
        self.recorder.note_run(Kind::RunEnded, 0);
        self.recorder.accounts.end_run();
        result
    }

    /// Runs one iteration, in asyncio's order: wait, queue what is ready and then the timers that are due, run the callbacks
    /// that are in the queue by then, send what they wrote.
    pub fn iterate(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        self.iteration.set(self.iteration.get() + 1);
        self.take_injected();
        let callbacks_wait = !self.ready.borrow().is_empty() || self.stopping.get();
        let started = match if callbacks_wait { self.try_skip_poll() } else { None } {
            Some(ticks) => Instant { seconds: self.poll_policy.polled(), ticks },
            None => self.poll_and_collect_due(py, event_loop, callbacks_wait)?,
        };
        let outer =
            if self.schedule.observes_iterations() { self.begin_accounts(started.ticks) } else { None };
        let result = self.run_ready(py, event_loop, started);
        if self.schedule.observes_iterations() {
            return self.end_observed(py, event_loop, outer, result);
        }
        self.sending.end_iteration();
        let flushed = self.send_scheduled(py, event_loop);
        result.and(flushed)
    }

    /// Returns the account of the callback that has called for the iteration, if it is one within another.
    fn begin_accounts(&self, started: u64) -> Option<u32> {
        let accounts = &self.recorder.accounts;
        if accounts.is_on() { accounts.begin_iteration(started, self.metrics.idle()) } else { None }
    }

    /// Ends an iteration while the loop is watched or has accounts.
    #[inline(never)]
    fn end_observed(
        &self,
        py: Python<'_>,
        event_loop: &Object,
        outer: Option<u32>,
        result: PyResult<()>,
    ) -> PyResult<()> {
        let accounts = &self.recorder.accounts;
        if accounts.is_on() {
            accounts.end_iteration(clock::ticks(), self.metrics.idle(), outer);
        }
        self.sending.end_iteration();
        let flushed = self.send_scheduled(py, event_loop);
        let reported =
            if self.schedule.is_watched() { self.end_watched_iteration(py, event_loop) } else { Ok(()) };
        result.and(flushed).and(reported)
    }

    /// Runs the callbacks that are in the queue now, not those that they add.
    fn run_ready(&self, py: Python<'_>, event_loop: &Object, started: Instant) -> PyResult<()> {
        let positions = self.ready.borrow().positions();
        self.sending.begin_iteration(positions.end - positions.start);
        let tick = &self.poll_policy.tick;
        let mut next_reading = self.metrics.begin_iteration(started.ticks, &positions, tick);
        let mut flushed = started.seconds;
        for position in positions.clone() {
            if position == next_reading {
                let queue_end = self.ready.borrow().end();
                next_reading = self.metrics.delays.before_callback(position, &positions, queue_end, tick);
            }
            // A callback may have taken entries out.
            let Some(mut entry) = self.ready.borrow_mut().pop_front() else { break };
            let result = if self.schedule.is_plain()
                || self.note_known(py, &entry, position, &positions, started.ticks)
            {
                entry.run(py, event_loop)
            } else {
                // Reports name the handle.
                entry = entry.held_or_not(py, event_loop);
                let beginning = self.beginning(position, &positions, started.ticks);
                self.run_observed(py, event_loop, &entry, beginning, started.ticks)
            };
            if let Err(error) = result {
                entry = entry.held_or_not(py, event_loop);
                report_error(py, event_loop, entry.object(), error)?;
            }
            drop(entry);
            let done = position - positions.start + 1;
            if done.is_multiple_of(FLUSH_CLOCK_CALLBACKS) && !self.unsent.borrow().is_empty() {
                let now = clock::now();
                if done.is_multiple_of(FLUSH_CALLBACKS) || now - flushed > FLUSH_INTERVAL {
                    self.send_scheduled(py, event_loop)?;
                    flushed = now;
                }
            }
        }
        Ok(())
    }

    fn beginning(&self, position: u64, positions: &Range<u64>, started: u64) -> Beginning {
        if self.recorder.accounts.is_on() {
            self.accounted_beginning(position, positions)
        } else {
            self.recorded_beginning(position, positions, started)
        }
    }

    #[inline(always)]
    fn recorded_beginning(&self, position: u64, positions: &Range<u64>, started: u64) -> Beginning {
        let is_first = position == positions.start;
        let ticks = if is_first { started } else { clock::ticks() };
        Beginning { ticks, delay: 0, position, queue_end: self.ready.borrow().end(), is_first }
    }

    #[inline(always)]
    fn accounted_beginning(&self, position: u64, positions: &Range<u64>) -> Beginning {
        let (ticks, delay) = self.metrics.delays.latest();
        let queue_end = self.ready.borrow().end();
        Beginning { ticks, delay, position, queue_end, is_first: position == positions.start }
    }

    /// Records a callback, if that is all that is to be done for it, and its name is at hand.
    #[inline(always)]
    fn note_known(
        &self,
        py: Python<'_>,
        entry: &ReadyEntry,
        position: u64,
        positions: &Range<u64>,
        started: u64,
    ) -> bool {
        if self.schedule.is_only_recorded() {
            let beginning = self.recorded_beginning(position, positions, started);
            return self.recorder.note_known::<false>(py, entry, beginning);
        }
        self.schedule.is_plainly_recorded() && self.note_accounted(py, entry, position, positions)
    }

    /// The same while there are accounts.
    #[inline(never)]
    fn note_accounted(
        &self,
        py: Python<'_>,
        entry: &ReadyEntry,
        position: u64,
        positions: &Range<u64>,
    ) -> bool {
        self.recorder.note_known::<true>(py, entry, self.accounted_beginning(position, positions))
    }

    /// Runs a callback in debug mode, while the loop is watched or recorded, or by the program's `Handle._run()`.
    #[inline(never)]
    fn run_observed(
        &self,
        py: Python<'_>,
        event_loop: &Object,
        entry: &ReadyEntry,
        beginning: Beginning,
        started: u64,
    ) -> PyResult<()> {
        if self.schedule.is_plainly_recorded() {
            // Its name is not at hand.
            let recorded = self.recorder.note_named(py, entry, beginning);
            let result = entry.run_outlined(py, event_loop);
            return result.and(recorded);
        }
        let is_recorded = self.schedule.is_recorded();
        let recorded = if is_recorded { self.recorder.note_callback(py, entry, beginning) } else { Ok(()) };
        let by_method = self.schedule.is_by_method();
        let run = || {
            let result = match self.schedule.debug() {
                true => entry.run_watched(py, event_loop, by_method),
                false if by_method => entry.run_by_method(py, event_loop),
                false => entry.run_outlined(py, event_loop),
            };
            result.and(recorded)
        };
        if !self.schedule.is_watched() {
            return run();
        }
        let Some(run_monitor) = self.run_monitor() else { return run() };
        if beginning.is_first {
            run_monitor.begin_iteration(started);
        }
        run_monitor.callbacks.begin(beginning.ticks);
        let result = run();
        let Some(run) = run_monitor.callbacks.end() else { return result };
        result.and(self.end_noticed_callback(py, event_loop, &run_monitor, run, entry, started))
    }
}

/// Hands an error of a step or event to the exception handler, with the object that it was for. Returns SystemExit and
/// KeyboardInterrupt only: no other error may end the run of the event loop.
#[cold]
pub fn report_error(py: Python<'_>, event_loop: &Object, subject: &Object, error: PyErr) -> PyResult<()> {
    let exception = reraise_fatal(py, error)?;
    let reported =
        imports(py).and_then(|imports| imports.report_entry.call(py, &[event_loop, subject, &exception]));
    let Err(error) = reported else { return Ok(()) };
    // The report itself can fail, for example out of memory.
    let exception = reraise_fatal(py, error)?;
    PyErr::from_value(exception.into_bound(py)).write_unraisable(py, Some(&event_loop.bind(py)));
    Ok(())
}
