//! What the event loop counts of itself, for loop.metrics().

use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use std::sync::Arc;

use super::{Loop, ThisLoop};
use crate::core::watchdog;
use crate::cpython::args::{Args, all};
use crate::cpython::object::Object;
use crate::reactor::histogram::{Counted, Histogram};
use crate::transports;
use crate::{method, method0};

/// The buckets and the maximum, as hotloop.metrics.Histogram takes them.
fn counted<'py>(py: Python<'py>, histogram: &Histogram) -> PyResult<Bound<'py, PyTuple>> {
    let Counted { buckets, longest } = histogram.counted();
    (PyTuple::new(py, buckets)?, longest).into_pyobject(py)
}

/// GIL: the loop may run in another thread, which counts only while it holds the GIL.
fn metrics(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let core = &this.core;
    let metrics = &core.metrics;
    let all = PyDict::new(py);
    for (name, count) in metrics.counts.all() {
        all.set_item(name, count)?;
    }
    let (idle, busy) = metrics.idle_and_busy(core.pace.polled());
    all.set_item("timers_cancelled", core.schedule.timers_cancelled.get())?;
    all.set_item("idle", idle)?;
    all.set_item("busy", busy)?;
    all.set_item("iteration_duration", counted(py, &metrics.iterations)?)?;
    all.set_item("delay", counted(py, &metrics.delays)?)?;
    all.set_item("ready", core.ready_length())?;
    all.set_item("ready_highest", metrics.ready_highest())?;
    all.set_item("transports", metrics.transports())?;
    all.set_item(
        "bytes_waiting",
        core.watched_objects(py).iter().map(transports::queued_size).sum::<usize>(),
    )?;
    Ok(all.into())
}

fn reset_metrics(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    this.core.metrics.reset();
    this.core.schedule.timers_cancelled.set(0);
    Ok(Object::none(this.py()))
}

/// Has the loop watched for callbacks that take `threshold` seconds, or longer; None for no more.
fn watch<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    const METHOD: &str = "_watch";
    const NAMES: [&str; 2] = ["id", "threshold"];
    let py = this.py();
    let [id, threshold] = all(METHOD, &NAMES, args.parse(METHOD, NAMES, 2, 2)?)?;
    let id: usize = id.bind(py).extract()?;
    let threshold: Option<f64> = threshold.bind(py).extract()?;
    let Some(threshold) = threshold else {
        watchdog::unwatch(id);
        this.core.set_turns(None);
        return Ok(Object::none(py));
    };
    let turns = this.core.turns().unwrap_or_default();
    turns.set_threshold(threshold);
    this.core.set_turns(Some(Arc::clone(&turns)));
    watchdog::watch(&turns, id);
    Ok(Object::none(py))
}

/// Ends the thread that watches.
pub fn stop_watching(py: Python<'_>) {
    watchdog::stop(py);
}

/// Called before and after forks.
pub use watchdog::{begin_fork, end_fork};

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(
            Loop,
            "_watch",
            watch,
            "_watch($self, id, threshold)\n--\n\nHave hotloop._observing told of callbacks that take so many seconds, or no more."
        ),
        method0!(
            Loop,
            "_metrics",
            metrics,
            "_metrics($self, /)\n--\n\nReturn what hotloop.metrics.Metrics is made of."
        ),
        method0!(
            Loop,
            "reset_metrics",
            reset_metrics,
            "reset_metrics($self, /)\n--\n\nBegin to count anew what metrics() tells."
        ),
    ]
}
