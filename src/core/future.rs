//! What the event loop does to asyncio's futures.

use pyo3::prelude::*;

use crate::cpython::object::Object;
use crate::imports::imports;
use crate::intern;

/// Resolves a future with None, unless it was done before: it may have been cancelled meanwhile. Other errors are returned,
/// though the future is done then, too: a callback of it could not be scheduled, out of memory, and whoever waits goes on
/// waiting.
pub fn resolve(py: Python<'_>, future: &Object) -> PyResult<()> {
    let Err(error) = future.call_method(py, intern!(py, "set_result"), &[&Object::none(py)]) else {
        return Ok(());
    };
    let was_done = error.value(py).is_instance(&imports(py)?.invalid_state_error.bind(py))?;
    if was_done { Ok(()) } else { Err(error) }
}
