//! The end of a callback or an iteration that the watchdog has noticed: where its time went is reported and recorded.
//!
//! It runs on the loop's thread. Called by the iterations of a watched loop.

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::{Core, ReadyEntry, gil};
use crate::cpython::module::import;
use crate::cpython::object::{Object, tuple_of};
use crate::intern;
use crate::reactor::breakdown::{Breakdown, Observation};
use crate::reactor::clock;
use crate::reactor::run_monitor::{Run, RunMonitor};
use crate::reactor::thread_state;

impl Core {
    /// Reports a callback that has ended. The iteration had begun at `iteration_began`, in ticks.
    #[cold]
    #[inline(never)]
    pub(super) fn end_noticed_callback(
        &self,
        py: Python<'_>,
        event_loop: &Object,
        run_monitor: &RunMonitor,
        run: Run,
        entry: &ReadyEntry,
        iteration_began: u64,
    ) -> PyResult<()> {
        let now = clock::ticks();
        let observation = run_monitor.observations().callback.take();
        let (duration, breakdown) = self.break_down(py, run, observation, now);
        let before = self.poll_policy.tick.seconds(run.began.wrapping_sub(iteration_began)).max(0.0);
        self.recorder.note_blocked(before, breakdown);
        let report = || -> PyResult<()> {
            let number = Object::from_size(py, run.number as usize)?;
            let (duration, before) = (Object::from_float(py, duration)?, Object::from_float(py, before)?);
            let parts = parts(py, breakdown)?;
            let module = Object::from(import(py, "hotloop._observing.watching")?);
            let context = entry.context().cloned().unwrap_or_else(|| Object::none(py));
            let arguments = [event_loop, &number, entry.object(), &context, &duration, &before, &parts];
            module.call_method(py, intern!(py, "end"), &arguments).map(drop)
        };
        report().or_else(|error| unraisable(py, error))
    }

    /// The iteration of a watched loop is over.
    #[cold]
    #[inline(never)]
    pub(super) fn end_watched_iteration(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        let Some(run_monitor) = self.run_monitor() else { return Ok(()) };
        let Some((run, callbacks)) = run_monitor.end_iteration() else { return Ok(()) };
        let now = clock::ticks();
        let observation = run_monitor.observations().iteration.take();
        let (duration, breakdown) = self.break_down(py, run, observation, now);
        self.recorder.note_long_iteration(callbacks, breakdown);
        let report = || -> PyResult<()> {
            let number = Object::from_size(py, run.number as usize)?;
            let (duration, callbacks) =
                (Object::from_float(py, duration)?, Object::from_size(py, callbacks as usize)?);
            let parts = parts(py, breakdown)?;
            let module = Object::from(import(py, "hotloop._observing.watching")?);
            let arguments = [event_loop, &number, &duration, &callbacks, &parts];
            module.call_method(py, intern!(py, "end_iteration"), &arguments).map(drop)
        };
        report().or_else(|error| unraisable(py, error))
    }

    /// How long a run took that has ended by `now`, and where that went.
    fn break_down(
        &self,
        py: Python<'_>,
        run: Run,
        observation: Option<Observation>,
        now: u64,
    ) -> (f64, Breakdown) {
        let tick = &self.poll_policy.tick;
        let duration = tick.seconds(now.wrapping_sub(run.began));
        let thread = thread_state::current_thread();
        // In a forked child, the observation is of a thread of the parent.
        let observation = observation.filter(|seen| seen.run == run && seen.thread == thread);
        let breakdown = observation.map_or_else(Breakdown::default, |seen| {
            let observed = tick.seconds(now.wrapping_sub(seen.began));
            seen.breakdown(duration, observed, thread_state::times(thread), gil::waits(py))
        });
        (duration, breakdown)
    }
}

/// A tuple of the processor time, and the times of waiting for the GIL, of not being scheduled and of sleep.
fn parts(py: Python<'_>, breakdown: Breakdown) -> PyResult<Object> {
    let Breakdown { processor, waiting_for_gil, not_scheduled, asleep } = breakdown;
    let object = |part: Option<f64>| part.map_or(Ok(Object::none(py)), |part| Object::from_float(py, part));
    let parts = [object(processor)?, object(waiting_for_gil)?, object(not_scheduled)?, object(asleep)?];
    tuple_of(py, parts.iter())
}

/// An error of what observes the loop must not reach the program; KeyboardInterrupt and SystemExit must.
fn unraisable(py: Python<'_>, error: PyErr) -> PyResult<()> {
    if error.is_instance_of::<PyException>(py) {
        error.write_unraisable(py, None);
        return Ok(());
    }
    Err(error)
}
