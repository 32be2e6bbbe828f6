//! Flow control: when pause_writing() and resume_writing() are due. asyncio's _FlowControlMixin.

use std::cell::Cell;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::cpython::class::Visitor;
use crate::cpython::errors::new_error;
use crate::cpython::object::{Object, ObjectCell, tuple};
use crate::intern;
use crate::reactor::published::Published;

/// asyncio's default high-water mark, in bytes.
pub const HIGH_WATER: usize = 64 * 1024;

pub struct FlowControl {
    high: Published<usize>,
    low: Published<usize>,
    paused: Cell<bool>,
    /// The limits as they were given, if they are not sizes: floats, or larger numbers.
    given: ObjectCell,
}

impl Default for FlowControl {
    fn default() -> Self {
        FlowControl::with_high_water(HIGH_WATER)
    }
}

impl FlowControl {
    pub fn with_high_water(high: usize) -> FlowControl {
        FlowControl {
            high: Published::new(high),
            low: Published::new(high / 4),
            paused: Cell::new(false),
            given: ObjectCell::default(),
        }
    }

    pub fn high(&self) -> usize {
        self.high.get()
    }

    pub fn low(&self) -> usize {
        self.low.get()
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        visitor.cell(&self.given);
    }

    /// The low limit and the high one, for get_write_buffer_limits().
    pub fn limits(&self, py: Python<'_>) -> PyResult<Object> {
        match self.given.get() {
            Some(given) => Ok(given),
            None => self.limits_in_bytes(py),
        }
    }

    /// As [`FlowControl::limits`], for any thread. They are rounded down to sizes.
    pub fn limits_in_bytes(&self, py: Python<'_>) -> PyResult<Object> {
        tuple(py, &[&Object::from_size(py, self.low())?, &Object::from_size(py, self.high())?])
    }

    pub fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Sets the limits: any objects that can be compared with an integer, as in asyncio. `standard` is the high one if none is given.
    pub fn set_limits(
        &self,
        py: Python<'_>,
        high: Option<Object>,
        low: Option<Object>,
        standard: usize,
    ) -> PyResult<()> {
        let given = |limit: Option<Object>| limit.filter(|limit| !limit.is_none());
        let number = |number: i64| Object::from_int(py, number);
        let (high, low) = (given(high), given(low));
        let high = match (high, &low) {
            (Some(high), _) => high,
            (None, Some(low)) => number(4)?.bind(py).mul(low.bind(py))?.into(),
            (None, None) => number(standard as i64)?,
        };
        let low = match low {
            Some(low) => low,
            None => high.bind(py).floor_div(number(4)?.bind(py))?.into(),
        };
        let (most, least) = (high.bind(py), low.bind(py));
        if !(most.ge(least)? && least.ge(number(0)?.bind(py))?) {
            let message = format!("high ({}) must be >= low ({}) must be >= 0", most.repr()?, least.repr()?);
            return Err(new_error::<PyValueError>(py, message));
        }
        let are_sizes = [&high, &low].iter().all(|limit| limit.bind(py).extract::<usize>().is_ok());
        let given = if are_sizes { None } else { Some(tuple(py, &[&low, &high])?) };
        let (high, low) = (to_size(py, &high)?, to_size(py, &low)?);
        self.high.set(high);
        self.low.set(low);
        self.given.set(given);
        Ok(())
    }

    /// Whether pause_writing() is due with `queued` bytes to be sent. The caller has to call it.
    pub fn must_pause(&self, queued: usize) -> bool {
        queued > self.high.get() && !self.paused.replace(true)
    }

    /// Whether resume_writing() is due with `queued` bytes to be sent. The caller has to call it.
    pub fn must_resume(&self, queued: usize) -> bool {
        queued <= self.low.get() && self.paused.replace(false)
    }
}

/// The largest size that is not above a number, which is not negative.
fn to_size(py: Python<'_>, number: &Object) -> PyResult<usize> {
    let number = number.bind(py);
    if number.ge(Object::from_size(py, usize::MAX)?.bind(py))? {
        return Ok(usize::MAX);
    }
    // A float has a part that sizes cannot reach.
    number.floor_div(Object::from_int(py, 1)?.bind(py))?.call_method0(intern!(py, "__int__"))?.extract()
}
