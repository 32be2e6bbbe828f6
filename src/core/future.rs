//! What the event loop does to asyncio's futures.

use pyo3::prelude::*;

use crate::cpython::object::Object;
use crate::intern;

/// Resolves a future with None, unless it is done: it may have been cancelled meanwhile.
pub fn resolve(py: Python<'_>, future: &Object) -> PyResult<()> {
    let Err(error) = future.call_method1(py, intern!(py, "set_result"), &Object::none(py)) else {
        return Ok(());
    };
    if future.call_method0(py, intern!(py, "done"))?.bind(py).is_truthy()? { Ok(()) } else { Err(error) }
}
