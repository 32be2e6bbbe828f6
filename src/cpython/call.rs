//! Calls of Python callables, by vectorcall.
//!
//! - It is not for operators, attributes and conversions: those are PyO3's.
//! - None of these functions makes a Python object for the call; only more than [`NEAR`] arguments are put on the heap.
//! - Each may run any Python code, so nothing of the core may be borrowed (see [`super::borrowing`]).

use std::mem::MaybeUninit;
use std::ptr::null_mut;

use pyo3::exceptions::PySystemError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{Bound, ffi};

use super::args::Args;
use super::errors::{fetch, new_error};
use super::object::Object;
use super::ways_in::enter;

/// How many arguments are laid out on the stack.
const NEAR: usize = 6;

impl Object {
    /// Calls with positional arguments.
    #[inline(always)]
    pub fn call(&self, py: Python<'_>, args: &[&Object]) -> PyResult<Object> {
        // SAFETY: `lay_out` passes live arguments behind a free place.
        lay_out(args, |pointers| unsafe { Object::from_owned(py, vectorcall(self, pointers, args.len())) })
    }

    /// Calls with the arguments of a list. If there are `names`, a tuple, the last arguments are the values of those.
    pub fn call_list(&self, py: Python<'_>, args: &[Object], names: Option<&Object>) -> PyResult<Object> {
        let named = names.map_or(0, |names| {
            assert!(names.is_tuple());
            // SAFETY: it is a tuple.
            (unsafe { ffi::PyTuple_GET_SIZE(names.as_ptr()) }) as usize
        });
        assert!(named <= args.len());
        let names = names.map_or(null_mut(), Object::as_ptr);
        // SAFETY: an Object is a transparent pointer, so a slice of Objects is an array of pointers.
        unsafe {
            let values = args.as_ptr().cast();
            let result = ffi::PyObject_Vectorcall(self.as_ptr(), values, args.len() - named, names);
            Object::from_owned(py, result)
        }
    }

    /// Calls with the arguments that a method was called with.
    pub fn forward(&self, args: Args<'_, '_>) -> PyResult<Object> {
        // SAFETY: the arguments are those of a vectorcall, which outlives this one.
        unsafe {
            let result = ffi::PyObject_Vectorcall(self.as_ptr(), args.values, args.positional, args.names);
            Object::from_owned(args.py, result)
        }
    }

    /// Calls a method with positional arguments.
    #[inline(always)]
    pub fn call_method(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyString>,
        args: &[&Object],
    ) -> PyResult<Object> {
        let count = (args.len() + 1) | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET;
        lay_out(args, |pointers| {
            // SAFETY: the free place before the live arguments is for self, which the callee may replace meanwhile.
            unsafe {
                let pointers = pointers.sub(1);
                *pointers = self.as_ptr();
                let result = ffi::PyObject_VectorcallMethod(name.as_ptr(), pointers, count, null_mut());
                Object::from_owned(py, result)
            }
        })
    }
}

/// Calls `f` with an array of pointers to the arguments, which is writable and has a free place before it
/// (PY_VECTORCALL_ARGUMENTS_OFFSET).
#[inline(always)]
fn lay_out<R>(args: &[&Object], f: impl FnOnce(*mut *mut ffi::PyObject) -> R) -> R {
    if args.len() > NEAR {
        let mut far = vec![null_mut()];
        far.extend(args.iter().map(|arg| arg.as_ptr()));
        // SAFETY: the vector is not empty.
        return f(unsafe { far.as_mut_ptr().add(1) });
    }
    let mut near = [const { MaybeUninit::<*mut ffi::PyObject>::uninit() }; NEAR + 1];
    for (place, arg) in near[1..].iter_mut().zip(args) {
        place.write(arg.as_ptr());
    }
    // SAFETY: the array is not empty.
    f(unsafe { near.as_mut_ptr().cast::<*mut ffi::PyObject>().add(1) })
}

/// An ffi::vectorcallfunc through which the compiler lets a stack be unwound.
type Vectorcall = unsafe extern "C-unwind" fn(
    *mut ffi::PyObject,
    *const *mut ffi::PyObject,
    usize,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;

/// What PyObject_Vectorcall does, without its function calls and without its check of the result: see [`check_result`].
///
/// # Safety
/// `args` points to `count` live objects, behind a place that the callee may use.
unsafe fn vectorcall(callable: &Object, args: *const *mut ffi::PyObject, count: usize) -> *mut ffi::PyObject {
    let callable = callable.as_ptr();
    let count = count | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET;
    // SAFETY: a type with the flag has the function, or null, at its offset in each instance.
    unsafe {
        let kind = ffi::Py_TYPE(callable);
        if ffi::PyType_HasFeature(kind, ffi::Py_TPFLAGS_HAVE_VECTORCALL) != 0 {
            let place = callable.byte_offset((*kind).tp_vectorcall_offset);
            if let Some(function) = *place.cast::<Option<Vectorcall>>() {
                return enter(|| function(callable, args, count, null_mut()));
            }
        }
        ffi::PyObject_Vectorcall(callable, args, count, null_mut())
    }
}

unsafe extern "C" {
    /// The type of bound methods.
    pub(super) static mut PyMethod_Type: ffi::PyTypeObject;
}

/// What a callable of the program returned, or SystemError if it has also left an exception set, which a later call would
/// take for its own. Functions that are written in Python cannot.
#[inline(always)]
pub fn check_result(py: Python<'_>, callable: &Object, result: Object) -> PyResult<Object> {
    // SAFETY: the callable lives; asking whether there is an exception cannot fail.
    unsafe {
        let kind = ffi::Py_TYPE(callable.as_ptr());
        let is_python = kind == &raw mut ffi::PyFunction_Type || kind == &raw mut PyMethod_Type;
        if is_python || ffi::PyErr_Occurred().is_null() {
            return Ok(result);
        }
    }
    Err(exception_with_result(py, callable, result))
}

#[cold]
fn exception_with_result(py: Python<'_>, callable: &Object, result: Object) -> PyErr {
    // It is set aside before anything else is called.
    let raised = fetch(py);
    drop(result);
    let name = callable.bind(py).repr().and_then(|name| Ok(name.to_str()?.to_owned()));
    let name = name.unwrap_or_else(|_| "a callable".to_owned());
    let error = new_error::<PySystemError>(py, format!("{name} returned a result with an exception set"));
    error.set_cause(py, Some(raised));
    error
}
