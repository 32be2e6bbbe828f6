//! What the event loop counts of itself, for loop.metrics().

use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::{Loop, ThisLoop};
use crate::cpython::object::Object;
use crate::method0;
use crate::reactor::clock::Tick;
use crate::reactor::histogram::{Counted, Histogram};
use crate::transports;

/// The buckets and the maximum, as hotloop.metrics.Histogram takes them.
fn counted<'py>(py: Python<'py>, histogram: &Histogram, tick: &Tick) -> PyResult<Bound<'py, PyTuple>> {
    let Counted { buckets, longest } = histogram.counted(tick);
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
    all.set_item("iteration_duration", counted(py, &metrics.iterations, &core.pace.tick)?)?;
    all.set_item("delay", counted(py, &metrics.delays, &core.pace.tick)?)?;
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

pub fn methods() -> Vec<PyMethodDef> {
    vec![
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
