//! Flow control: when a protocol is told to pause and to resume writing. asyncio's _FlowControlMixin.

use std::cell::Cell;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;

use crate::cpython::object::Object;
use crate::handle::survivable;
use crate::imports::imports;

/// asyncio's default high-water mark, in bytes.
const HIGH_WATER: usize = 64 * 1024;

pub struct FlowControl {
    high: Cell<usize>,
    low: Cell<usize>,
    paused: Cell<bool>,
}

impl Default for FlowControl {
    fn default() -> Self {
        FlowControl { high: Cell::new(HIGH_WATER), low: Cell::new(HIGH_WATER / 4), paused: Cell::new(false) }
    }
}

/// Whom to tell, and on whose behalf.
pub struct Parties<'a> {
    pub event_loop: &'a Object,
    pub transport: &'a Object,
    pub protocol: &'a Object,
}

impl FlowControl {
    pub fn high(&self) -> usize {
        self.high.get()
    }

    pub fn low(&self) -> usize {
        self.low.get()
    }

    pub fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Sets the limits from the arguments of set_write_buffer_limits().
    pub fn set_limits(&self, py: Python<'_>, high: Option<Object>, low: Option<Object>) -> PyResult<()> {
        let given = |limit: &Option<Object>| -> PyResult<Option<i128>> {
            match limit {
                Some(limit) if !limit.is_none() => limit.bind(py).extract().map(Some),
                _ => Ok(None),
            }
        };
        let (high, low) = (given(&high)?, given(&low)?);
        let high = high.unwrap_or_else(|| low.map_or(HIGH_WATER as i128, |low| 4 * low));
        let low = low.unwrap_or(high.div_euclid(4));
        if !(high >= low && low >= 0) {
            return Err(PyValueError::new_err(format!("high ({high}) must be >= low ({low}) must be >= 0")));
        }
        self.high.set(usize::try_from(high).unwrap_or(usize::MAX));
        self.low.set(usize::try_from(low).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Tells the protocol to pause if `size` bytes wait to be sent and that is more than the high-water mark.
    pub fn pause_if_above(&self, py: Python<'_>, size: usize, parties: &Parties<'_>) -> PyResult<()> {
        if size <= self.high.get() || self.paused.replace(true) {
            return Ok(());
        }
        let result = parties.protocol.call_method0(py, intern!(py, "pause_writing"));
        report(py, result, "protocol.pause_writing() failed", parties)
    }

    /// Tells the protocol to resume if it was told to pause and no more than the low-water mark waits.
    pub fn resume_if_below(&self, py: Python<'_>, size: usize, parties: &Parties<'_>) -> PyResult<()> {
        if !self.paused.get() || size > self.low.get() {
            return Ok(());
        }
        self.paused.set(false);
        let result = parties.protocol.call_method0(py, intern!(py, "resume_writing"));
        report(py, result, "protocol.resume_writing() failed", parties)
    }
}

/// Hands what a protocol's method raised to the exception handler, which does not end the connection.
pub fn report(
    py: Python<'_>,
    result: PyResult<Object>,
    message: &str,
    parties: &Parties<'_>,
) -> PyResult<()> {
    let Err(error) = result else { return Ok(()) };
    let exception = survivable(py, error)?;
    let message = message.into_pyobject(py)?.into();
    let arguments = [parties.event_loop, &message, &exception, parties.transport, parties.protocol];
    imports(py)?.report_protocol.call(py, &arguments).map(drop)
}
