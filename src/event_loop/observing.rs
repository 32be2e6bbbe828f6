//! metrics(), reset_metrics(), and having the watchdog watch the loop.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::exceptions::PyValueError;
use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;

use super::{Loop, ThisLoop};
use crate::core::watchdog;
use crate::cpython::args::Args;
use crate::cpython::class::Obj;
use crate::cpython::errors::{new_error, no_memory};
use crate::cpython::object::{Object, dict, tuple, tuple_of};
use crate::reactor::clock;
use crate::reactor::histogram::{Counted, Histogram};
use crate::transports;
use crate::transports::endpoint::NOTES_OPENED;
use crate::transports::listener::Listener;
use crate::{method, method0};

/// The arguments of hotloop.metrics.Histogram.
fn counted(py: Python<'_>, histogram: &Histogram) -> PyResult<Object> {
    let Counted { buckets, longest } = histogram.counted();
    let bucket = |(from, to, count): (f64, f64, u64)| {
        tuple(py, &[&Object::from_float(py, from)?, &Object::from_float(py, to)?, &to_int(py, count)?])
    };
    let buckets = buckets.into_iter().map(bucket).collect::<PyResult<Vec<_>>>()?;
    let buckets = tuple_of(py, buckets.iter())?;
    tuple(py, &[&buckets, &Object::from_float(py, longest)?])
}

fn to_int(py: Python<'_>, count: u64) -> PyResult<Object> {
    Object::from_size(py, usize::try_from(count).unwrap_or(usize::MAX))
}

/// What another thread is told of the queues is what their loop has published.
fn metrics(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let core = &this.core;
    let metrics = &core.metrics;
    let all = dict(py)?;
    let set = |name: &str, value: Object| all.set_item(Object::from_str(py, name)?.bind(py), value.bind(py));
    for (name, count) in metrics.counts.all() {
        set(name, to_int(py, count)?)?;
    }
    let (idle, busy) = metrics.idle_and_busy(core.poll_policy.polled());
    let (ready, waiting) = match core.owner.try_enter() {
        Some(_entered) => {
            let watched = core.watched_objects().ok_or_else(|| no_memory(py))?;
            (core.ready_length(), watched.iter().map(transports::queued_size).sum())
        }
        None => (metrics.ready.get(), metrics.bytes_waiting.get()),
    };
    let paused = metrics.accept_paused.seconds_until(clock::now());
    set("accept_paused", Object::from_float(py, paused)?)?;
    set("timers_cancelled", to_int(py, core.schedule.timers_cancelled.get())?)?;
    set("idle", Object::from_float(py, idle)?)?;
    set("busy", Object::from_float(py, busy)?)?;
    set("iteration_duration", counted(py, &metrics.iterations)?)?;
    set("delay", counted(py, &metrics.delays.histogram)?)?;
    set("ready", Object::from_size(py, ready)?)?;
    set("ready_highest", Object::from_size(py, metrics.ready_highest())?)?;
    set("transports", Object::from_size(py, metrics.transports.get())?)?;
    set("bytes_waiting", Object::from_size(py, waiting)?)?;
    Ok(all.into())
}

/// The transports that the registry lists, and the sockets that are accepted from.
fn transports_and_listeners(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let watched = this.core.watched_objects().ok_or_else(|| no_memory(py))?;
    let listeners = watched.iter().filter_map(Obj::<Listener>::downcast);
    let sockets: Vec<_> = listeners.map(|listener| listener.socket().clone()).collect();
    let open: Vec<_> = watched.iter().filter(|object| transports::is_transport(object)).collect();
    tuple(py, &[&tuple_of(py, open.into_iter())?, &tuple_of(py, sockets.iter())?])
}

/// Has `hotloop._support.note_opened()` called with each transport of any loop that is made from now on.
pub fn note_transports(_py: Python<'_>) {
    NOTES_OPENED.store(true, Relaxed);
}

pub fn ignore_transports(_py: Python<'_>) {
    NOTES_OPENED.store(false, Relaxed);
}

fn reset_metrics(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    this.core.metrics.reset();
    this.core.schedule.timers_cancelled.set(0);
    Ok(Object::none(this.py()))
}

/// Has the watchdog watch the loop for callbacks that take `threshold` seconds or longer, or no longer for None.
fn watch<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([id, threshold], []) = args.parse()?;
    let id: usize = id.bind(py).extract()?;
    let threshold: Option<f64> = threshold.bind(py).extract()?;
    let Some(threshold) = threshold else {
        watchdog::unwatch(py, id);
        this.core.set_run_monitor(py, None);
        return Ok(Object::none(py));
    };
    if !(threshold > 0.0 && threshold.is_finite()) {
        return Err(new_error::<PyValueError>(py, "the threshold must be a positive number of seconds"));
    }
    let run_monitor = this.core.run_monitor().unwrap_or_default();
    run_monitor.set_threshold(threshold);
    this.core.set_run_monitor(py, Some(Arc::clone(&run_monitor)));
    watchdog::watch(py, &run_monitor, id);
    Ok(Object::none(py))
}

/// Ends the watchdog's thread.
pub fn stop_watching(py: Python<'_>) {
    watchdog::stop(py);
}

pub use watchdog::{begin_fork, end_fork};

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(
            Loop,
            "_watch",
            "id, threshold",
            watch,
            "Call hotloop._observing about callbacks that take at least `threshold` seconds; with None, no more."
        ),
        method0!(any_thread Loop, "_metrics", metrics, "Return what hotloop.metrics.Metrics is made of."),
        method0!(
            Loop,
            "_transports_and_listeners",
            transports_and_listeners,
            "Return transports that are open, and sockets that connections are accepted from."
        ),
        method0!(any_thread Loop, "reset_metrics", reset_metrics, "Restart the counts of metrics()."),
    ]
}
