//! What `hotloop.recording` needs of the flight recorder.

use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;

use super::{Loop, ThisLoop};
use crate::core::recorder::Transports;
use crate::cpython::args::Args;
use crate::cpython::buffer::new_bytes;
use crate::cpython::errors::no_memory;
use crate::cpython::object::{Object, tuple, tuple_of};
use crate::reactor::clock::{Instant, Tick};
use crate::reactor::ring::Ring;
use crate::transports::{protocol_of, queued_size};
use crate::{method, method0};

pub const TRANSPORTS: Transports = Transports { protocol: protocol_of, queued_size };

/// Records into a ring of so many bytes, which is empty; stops for None.
fn record<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([bytes], []) = args.parse()?;
    let bytes: Option<usize> = bytes.bind(py).extract()?;
    let ring = match bytes {
        Some(bytes) => Some(Ring::new(bytes).ok_or_else(|| no_memory(py))?),
        None => None,
    };
    this.core.recorder.set_ring(ring);
    this.core.note_recorded();
    Ok(Object::none(py))
}

/// Returns the number of the first record, the records, the names, and readings of the clock; None if nothing is recorded.
fn recorded(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let Some(ring) = this.core.recorder.shared_ring() else { return Ok(Object::none(py)) };
    let now = Instant::now();
    let copied = ring.copy().ok_or_else(|| no_memory(py))?;
    // After the records, so that it has all their names.
    let names = this.core.recorder.names.all().ok_or_else(|| no_memory(py))?;
    let tick = Tick::default();
    tick.find_out();
    let number = |number: u64| Object::from_size(py, usize::try_from(number).unwrap_or(usize::MAX));
    tuple(
        py,
        &[
            &number(copied.first)?,
            &new_bytes(py, &copied.bytes)?,
            &tuple_of(py, names.iter())?,
            &number(now.ticks)?,
            &Object::from_float(py, now.seconds)?,
            &Object::from_float(py, tick.seconds(1))?,
        ],
    )
}

fn forget_recorded(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    this.core.recorder.forget();
    Ok(Object::none(this.py()))
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(
            Loop,
            "_record",
            "memory",
            record,
            "Record into so many bytes of memory; with None, no more."
        ),
        method0!(any_thread Loop, "_recorded", recorded, "Return what hotloop.recording.Recording is made of."),
        method0!(
            Loop,
            "_forget_recorded",
            forget_recorded,
            "Leave what is recorded so far out of recordings."
        ),
    ]
}
