//! The one place that turns an error of the operating system into Python's.
//!
//! PyO3 converts an io::Error with `?`, too, but into an OSError without errno. Whatever returns io::Result is
//! therefore converted here, by name.

use std::io;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

/// An OSError with errno and the C library's message, of the subclass that belongs to the number.
pub fn os_error(error: io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, message(number))),
        None => PyOSError::new_err(error.to_string()),
    }
}

fn message(number: i32) -> String {
    let text = io::Error::from_raw_os_error(number).to_string();
    let suffix = format!(" (os error {number})");
    text.strip_suffix(&suffix).unwrap_or(&text).to_owned()
}

/// Makes Python's result of the operating system's.
pub trait OrOsError<T> {
    fn or_os_error(self) -> PyResult<T>;
}

impl<T> OrOsError<T> for io::Result<T> {
    fn or_os_error(self) -> PyResult<T> {
        self.map_err(os_error)
    }
}
