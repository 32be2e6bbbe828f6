//! Watching namespaces for changes, which costs nothing while there are none. CPython can since 3.12.

use pyo3::prelude::*;

use super::object::Object;

/// Called with a name of a watched namespace before it is given another value, or none.
pub type Changing = fn(Python<'_>, Name<'_>, Option<&Object>);

/// Has `changing` called for changes to a dict, and returns true. It is one function for all dicts. False before 3.12.
#[cfg(not(Py_3_12))]
pub fn watch(_namespace: &Object, _changing: Changing) -> bool {
    false
}

/// Has `changing` called for changes to the attributes of a class.
#[cfg(not(Py_3_12))]
pub fn watch_class(_py: Python<'_>, _class: &Object, _changing: Changing) {}

#[cfg(Py_3_12)]
pub use watching::{watch, watch_class};

/// A name in a namespace.
pub struct Name<'a>(#[allow(dead_code, reason = "nothing is told before 3.12")] &'a Object);

#[cfg(Py_3_12)]
mod watching {
    use std::ffi::{c_char, c_int};
    use std::ptr::NonNull;
    use std::sync::OnceLock;

    use pyo3::ffi;
    use pyo3::prelude::*;

    use super::{Changing, Name};
    use crate::cpython::methods::guard;
    use crate::cpython::object::Object;

    type Callback = unsafe extern "C" fn(
        event: c_int,
        namespace: *mut ffi::PyObject,
        name: *mut ffi::PyObject,
        value: *mut ffi::PyObject,
    ) -> c_int;

    unsafe extern "C" {
        fn PyDict_AddWatcher(callback: Callback) -> c_int;
        fn PyDict_Watch(watcher: c_int, namespace: *mut ffi::PyObject) -> c_int;
        fn PyType_GetDict(class: *mut ffi::PyTypeObject) -> *mut ffi::PyObject;
        fn PyUnicode_CompareWithASCIIString(text: *mut ffi::PyObject, ascii: *const c_char) -> c_int;
    }

    /// The events that are of one name: it gets its first value, gets another, or loses it.
    const OF_A_NAME: std::ops::RangeInclusive<c_int> = 0..=2;

    static CHANGING: OnceLock<Changing> = OnceLock::new();

    impl Name<'_> {
        pub fn is(&self, text: &std::ffi::CStr) -> bool {
            // SAFETY: the name was found to be a str; the text ends with a null byte. It cannot fail.
            unsafe { PyUnicode_CompareWithASCIIString(self.0.as_ptr(), text.as_ptr()) == 0 }
        }
    }

    /// False if the interpreter has no watcher left.
    pub fn watch(namespace: &Object, changing: Changing) -> bool {
        static WATCHER: OnceLock<c_int> = OnceLock::new();

        // SAFETY: the callback is what the interpreter expects, and lives for ever; what is no dict is refused.
        unsafe {
            let watcher = *WATCHER.get_or_init(|| PyDict_AddWatcher(tell));
            if watcher < 0 || PyDict_Watch(watcher, namespace.as_ptr()) < 0 {
                ffi::PyErr_Clear();
                return false;
            }
        }
        let _ = CHANGING.set(changing);
        true
    }

    pub fn watch_class(py: Python<'_>, class: &Object, changing: Changing) {
        // SAFETY: a class has a dict, of which this returns a new reference.
        let namespace = unsafe {
            if ffi::PyType_Check(class.as_ptr()) == 0 {
                return;
            }
            Object::from_owned(py, PyType_GetDict(class.as_ptr().cast()))
        };
        if let Ok(namespace) = namespace {
            watch(&namespace, changing);
        }
    }

    unsafe extern "C" fn tell(
        event: c_int,
        _namespace: *mut ffi::PyObject,
        name: *mut ffi::PyObject,
        value: *mut ffi::PyObject,
    ) -> c_int {
        // SAFETY: the interpreter passes borrowed references, the value null if there is to be none. While an exception is
        // set, nothing else may be called.
        unsafe {
            if !OF_A_NAME.contains(&event)
                || ffi::PyUnicode_Check(name) == 0
                || !ffi::PyErr_Occurred().is_null()
            {
                return 0;
            }
            guard(0, |py| {
                if let (Some(name), Some(changing)) = (NonNull::new(name), CHANGING.get()) {
                    let name = Object::from_borrowed(name);
                    let value = NonNull::new(value).map(|value| Object::from_borrowed(value));
                    changing(py, Name(&name), value.as_ref());
                }
                Ok(0)
            })
        }
    }
}
