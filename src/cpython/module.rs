//! The extension module itself, and what is asked of other modules.
//!
//! PyO3's `#[pymodule]` panics where there is no memory for a name, so the module is made from the C API's own parts, as
//! classes are.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int, c_void};

use pyo3::ffi;
use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::type_object::PyTypeInfo;

use super::errors::fetch;
use super::methods::guard;
use super::object::Object;

/// Imports a module.
pub fn import<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    let name = Object::from_str(py, name)?;
    // SAFETY: the name lives; returns a new reference or null with an exception.
    let module = unsafe { Object::from_owned(py, ffi::PyImport_Import(name.as_ptr()))? };
    Ok(module.into_bound(py))
}

/// An attribute of an object, under a name that is asked for once.
pub fn attribute(object: &Bound<'_, PyAny>, name: &str) -> PyResult<Object> {
    let py = object.py();
    let name = Object::from_str(py, name)?;
    // SAFETY: both live; returns a new reference or null with an exception.
    unsafe { Object::from_owned(py, ffi::PyObject_GetAttr(object.as_ptr(), name.as_ptr())) }
}

/// Sets an attribute of an object, under a name that is set once.
pub fn set_attribute(object: &Bound<'_, PyAny>, name: &str, value: &Object) -> PyResult<()> {
    let py = object.py();
    let name = Object::from_str(py, name)?;
    // SAFETY: all three live.
    match unsafe { ffi::PyObject_SetAttr(object.as_ptr(), name.as_ptr(), value.as_ptr()) } {
        0 => Ok(()),
        _ => Err(fetch(py)),
    }
}

/// Adds something to a module.
pub fn add(module: &Bound<'_, PyModule>, name: &str, value: impl Into<Object>) -> PyResult<()> {
    set_attribute(module, name, &value.into())
}

/// What a module is made of.
pub struct Definition {
    definition: UnsafeCell<ffi::PyModuleDef>,
    slots: UnsafeCell<[ffi::PyModuleDef_Slot; SLOTS]>,
    methods: UnsafeCell<[ffi::PyMethodDef; FUNCTIONS + 1]>,
}

const SLOTS: usize = 4;
const FUNCTIONS: usize = 5;

// SAFETY: the interpreter alone changes it, in the first import.
unsafe impl Sync for Definition {}

/// Fills in a module: called for each that is imported.
pub type Exec = unsafe extern "C" fn(*mut ffi::PyObject) -> c_int;

impl Definition {
    pub const fn new(
        name: &'static CStr,
        doc: &'static CStr,
        functions: [ffi::PyMethodDef; FUNCTIONS],
        exec: Exec,
    ) -> Definition {
        let [first, second, third, fourth, fifth] = functions;
        let end = ffi::PyModuleDef_Slot { slot: 0, value: std::ptr::null_mut() };
        Definition {
            definition: UnsafeCell::new(ffi::PyModuleDef {
                m_base: ffi::PyModuleDef_HEAD_INIT,
                m_name: name.as_ptr(),
                m_doc: doc.as_ptr(),
                m_size: 0,
                m_methods: std::ptr::null_mut(),
                m_slots: std::ptr::null_mut(),
                m_traverse: None,
                m_clear: None,
                m_free: None,
            }),
            slots: UnsafeCell::new([
                ffi::PyModuleDef_Slot { slot: ffi::Py_mod_exec, value: exec as *mut c_void },
                // Interpreters with a GIL of their own cannot import it: see `super::interpreter`.
                #[cfg(Py_3_12)]
                ffi::PyModuleDef_Slot {
                    slot: ffi::Py_mod_multiple_interpreters,
                    value: ffi::Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED,
                },
                #[cfg(not(Py_3_12))]
                end,
                #[cfg(Py_GIL_DISABLED)]
                ffi::PyModuleDef_Slot { slot: ffi::Py_mod_gil, value: ffi::Py_MOD_GIL_NOT_USED },
                #[cfg(not(Py_GIL_DISABLED))]
                end,
                end,
            ]),
            methods: UnsafeCell::new([first, second, third, fourth, fifth, ffi::PyMethodDef::zeroed()]),
        }
    }

    /// What the function `PyInit_...` returns.
    ///
    /// # Safety
    /// Called by the interpreter, as that function.
    pub unsafe fn init(&'static self) -> *mut ffi::PyObject {
        // SAFETY: the interpreter, which alone reads them, does so from here on; all that they refer to is static.
        unsafe {
            let definition = self.definition.get();
            (*definition).m_methods = self.methods.get().cast();
            (*definition).m_slots = self.slots.get().cast();
            ffi::PyModuleDef_Init(definition)
        }
    }
}

/// Calls `fill` with a module that is being made.
///
/// # Safety
/// Called by the interpreter, with that module, as [`Exec`].
pub unsafe fn exec(
    module: *mut ffi::PyObject,
    fill: impl FnOnce(&Bound<'_, PyModule>) -> PyResult<()>,
) -> c_int {
    // SAFETY: the module lives through the call, and the GIL is held.
    unsafe {
        if !make_panic_class(Python::assume_attached()) {
            return -1;
        }
        guard(-1, |py| {
            let module = Bound::from_borrowed_ptr(py, module).cast_into_unchecked::<PyModule>();
            fill(&module)?;
            Ok(0)
        })
    }
}

/// Makes PyO3's class of panics. PyO3 makes it when it first fetches an exception; if that fails, out of memory, it fetches
/// the exception of that, and waits for itself for good. False, with an exception, if there is no memory for a class.
#[cold]
fn make_panic_class(py: Python<'_>) -> bool {
    // SAFETY: the GIL is held; the class is dropped at once. It shows that there is memory for another.
    unsafe {
        let class = ffi::PyErr_NewExceptionWithDoc(
            c"hotloop._core.Attempt".as_ptr(),
            std::ptr::null(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
        if class.is_null() {
            return false;
        }
        ffi::Py_DECREF(class);
    }
    PanicException::type_object_raw(py);
    true
}
