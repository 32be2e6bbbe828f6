//! Names of attributes and methods, interned once.

use std::sync::atomic::{AtomicPtr, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::object::Object;

/// A thread that finds a string finds its content. With the GIL, its owner sees to that.
const PUBLISH: Ordering = if cfg!(Py_GIL_DISABLED) { Ordering::Release } else { Ordering::Relaxed };
const PUBLISHED: Ordering = if cfg!(Py_GIL_DISABLED) { Ordering::Acquire } else { Ordering::Relaxed };

/// An interned string, made when it is first needed and never released.
pub struct Name {
    text: &'static str,
    string: AtomicPtr<ffi::PyObject>,
}

impl Name {
    pub const fn new(text: &'static str) -> Name {
        Name { text, string: AtomicPtr::new(std::ptr::null_mut()) }
    }

    pub fn get<'py>(&'static self, py: Python<'py>) -> PyResult<&'py Bound<'py, PyString>> {
        if self.string.load(PUBLISHED).is_null() {
            self.make(py)?;
        }
        // SAFETY: a Bound is a pointer; the place holds a string, which is never released and never replaced.
        Ok(unsafe { &*self.string.as_ptr().cast::<Bound<'py, PyString>>() })
    }

    #[cold]
    fn make(&self, py: Python<'_>) -> PyResult<()> {
        let mut string = Object::from_str(py, self.text)?.into_ptr();
        // SAFETY: the string is ours alone; it is replaced by the interned one, if there is one already.
        unsafe { ffi::PyUnicode_InternInPlace(&mut string) };
        // Another thread that stores meanwhile stores the same: interned strings are one.
        self.string.store(string, PUBLISH);
        Ok(())
    }
}

/// The interned string of a literal, as PyO3's `intern!`. Out of memory, the enclosing function returns the error.
#[macro_export]
macro_rules! intern {
    ($py:expr, $text:expr) => {{
        static NAME: $crate::cpython::names::Name = $crate::cpython::names::Name::new($text);
        NAME.get($py)?
    }};
}
