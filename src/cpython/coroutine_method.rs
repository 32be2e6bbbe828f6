//! Methods that return coroutines of ours and pass for coroutine functions.
//!
//! `inspect` and `unittest.mock` tell those by a function's code, which methods written in C do not have. A descriptor
//! of this class shows the code of the function of asyncio's that it stands for, and calls the method.

use std::mem::offset_of;

use pyo3::prelude::*;
use pyo3::{Borrowed, ffi};

use super::class::{self, Definition, Native, Obj, This, Visitor};
use super::module;
use super::object::Object;
use crate::attribute;

unsafe extern "C" {
    fn PyMethod_New(function: *mut ffi::PyObject, instance: *mut ffi::PyObject) -> *mut ffi::PyObject;
}

#[repr(C)]
pub struct CoroutineMethod {
    vectorcall: ffi::vectorcallfunc,
    /// A method that the interpreter made of a PyMethodDef.
    method: Object,
    /// What asyncio has under its name.
    function: Object,
}

impl CoroutineMethod {
    /// A descriptor to put in the place of `method`, which is written in C.
    pub fn create(py: Python<'_>, method: Object, function: Object) -> PyResult<Object> {
        Ok(Obj::new(py, CoroutineMethod { vectorcall, method, function })?.into_object())
    }
}

impl Native for CoroutineMethod {
    crate::class_static!(0);

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.method);
        visitor.object(&self.function);
    }

    // The class that it is a method of lives for good.
    fn clear(&self) {}
}

unsafe extern "C" fn vectorcall(
    callable: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: usize,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called for a descriptor, whose method is the interpreter's, which checks the arguments and has a vectorcall.
    unsafe {
        let descriptor =
            This::<CoroutineMethod>::new(Borrowed::from_ptr(Python::assume_attached(), callable));
        let method = descriptor.get().method.as_ptr();
        let call = (*method.cast::<ffi::PyMethodDescrObject>()).vectorcall.unwrap_unchecked();
        call(method, arguments, count, names)
    }
}

/// What a function's `__get__` does.
unsafe extern "C" fn get(
    descriptor: *mut ffi::PyObject,
    instance: *mut ffi::PyObject,
    _class: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the interpreter calls this with objects that live; the GIL is held.
    unsafe {
        if instance.is_null() || instance == ffi::Py_None() {
            ffi::Py_NewRef(descriptor)
        } else {
            PyMethod_New(descriptor, instance)
        }
    }
}

/// Makes the class of the descriptors.
pub fn make_class(py: Python<'_>) -> PyResult<()> {
    macro_rules! shown {
        ($of:ident, $name:literal) => {{
            fn shown(this: This<'_, '_, CoroutineMethod>) -> PyResult<Object> {
                module::attribute(&this.$of.bind(this.py()), $name)
            }
            attribute!(CoroutineMethod, $name, shown)
        }};
    }
    let slot = |slot, pfunc| ffi::PyType_Slot { slot, pfunc };
    let definition = Definition {
        name: c"hotloop._core.CoroutineMethod",
        doc: c"",
        base: py.get_type::<PyAny>(),
        methods: Vec::new(),
        attributes: vec![
            shown!(method, "__name__"),
            shown!(method, "__qualname__"),
            shown!(method, "__doc__"),
            shown!(function, "__code__"),
            shown!(function, "__defaults__"),
            shown!(function, "__kwdefaults__"),
            shown!(function, "__annotations__"),
        ],
        slots: vec![
            slot(ffi::Py_tp_call, ffi::PyVectorcall_Call as *mut std::ffi::c_void),
            slot(ffi::Py_tp_descr_get, get as *mut std::ffi::c_void),
        ],
        open: false,
    };
    class::make_method::<CoroutineMethod>(definition, offset_of!(CoroutineMethod, vectorcall))?;
    Ok(())
}
