//! Flow control: when a protocol is told to pause and to resume writing. asyncio's _FlowControlMixin.

use std::cell::Cell;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::cpython::object::Object;

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

    /// Whether the protocol is to be told to pause, with `queued` bytes to be sent. Notes that it was told.
    pub fn must_pause(&self, queued: usize) -> bool {
        queued > self.high.get() && !self.paused.replace(true)
    }

    /// Whether the protocol is to be told to go on, with `queued` bytes to be sent. Notes that it was told.
    pub fn must_resume(&self, queued: usize) -> bool {
        queued <= self.low.get() && self.paused.replace(false)
    }
}
