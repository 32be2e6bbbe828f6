//! Methods and attributes of classes made by [`super::class`]: the macros make C functions that call Rust's, and their
//! definitions. An error or a panic of a Rust function becomes the current exception. A method that begins with `any_thread` may be called
//! by threads that do not own the event loop, too: see [`super::ownership`].

use std::ffi::{CStr, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::{Borrowed, ffi};

use super::args::{Args, Signature};
use super::class::{Native, This};
use super::errors::{made, new_error};
use super::object::Object;
use super::ownership::{Entered, elsewhere};

/// Runs `f` at the boundary to C: an error or a panic becomes the current Python exception.
///
/// # Safety
/// The GIL is held.
#[inline(always)]
pub unsafe fn guard<R>(failure: R, f: impl FnOnce(Python<'_>) -> PyResult<R>) -> R {
    // SAFETY: the caller holds the GIL.
    let py = unsafe { Python::assume_attached() };
    match catch_unwind(AssertUnwindSafe(|| f(py))) {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => {
            restore(py, error);
            failure
        }
        Err(panic) => {
            restore_panic(py, panic);
            failure
        }
    }
}

/// Makes an error the current Python exception.
#[cold]
fn restore(py: Python<'_>, error: PyErr) {
    made(py, error).restore(py);
}

#[cold]
fn restore_panic(py: Python<'_>, panic: Box<dyn std::any::Any + Send>) {
    let message = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(message), _) => (*message).to_owned(),
        (_, Some(message)) => message.clone(),
        _ => "panic".to_owned(),
    };
    restore(py, PanicException::new_err(message));
}

/// Makes the calling thread the owner of the instance's event loop, unless the method is for any thread. RuntimeError if another thread
/// is the owner.
#[inline(always)]
pub fn claim<'a, T: Native, const ANY_THREAD: bool>(this: This<'a, '_, T>) -> PyResult<Option<Entered<'a>>> {
    let owner = if ANY_THREAD { None } else { this.get().owner() };
    match owner {
        None => Ok(None),
        Some(owner) => owner.enter().map(Some).ok_or_else(|| elsewhere(this.py())),
    }
}

/// A method that takes any arguments.
pub type Method<T> = for<'a, 'py> fn(This<'a, 'py, T>, Args<'a, 'py>) -> PyResult<Object>;
/// A method without arguments, or a getter.
pub type BareMethod<T> = for<'a, 'py> fn(This<'a, 'py, T>) -> PyResult<Object>;
/// A method with one argument.
pub type Method1<T> = for<'a, 'py> fn(This<'a, 'py, T>, Borrowed<'a, 'py, PyAny>) -> PyResult<Object>;
pub type Setter<T> = for<'a, 'py> fn(This<'a, 'py, T>, Borrowed<'a, 'py, PyAny>) -> PyResult<()>;

/// # Safety
/// Called with the arguments of a METH_FASTCALL | METH_KEYWORDS method of T's class.
#[inline(always)]
pub unsafe fn call_fast<T: Native, const ANY_THREAD: bool>(
    instance: *mut ffi::PyObject,
    values: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
    signature: &'static Signature,
    method: Method<T>,
) -> *mut ffi::PyObject {
    // SAFETY: the method's descriptor has checked the class of the instance; the arguments live through the call.
    unsafe {
        guard(std::ptr::null_mut(), |py| {
            let this = This::new(Borrowed::from_ptr(py, instance));
            let _entered = claim::<T, ANY_THREAD>(this)?;
            let args = Args::new(py, values, count as usize, names, signature);
            method(this, args).map(Object::into_ptr)
        })
    }
}

/// # Safety
/// Called with the instance of a METH_NOARGS method or a getter of T's class.
#[inline(always)]
pub unsafe fn call_bare<T: Native, const ANY_THREAD: bool>(
    instance: *mut ffi::PyObject,
    method: BareMethod<T>,
) -> *mut ffi::PyObject {
    // SAFETY: the descriptor has checked the class of the instance.
    unsafe {
        guard(std::ptr::null_mut(), |py| {
            let this = This::new(Borrowed::from_ptr(py, instance));
            let _entered = claim::<T, ANY_THREAD>(this)?;
            method(this).map(Object::into_ptr)
        })
    }
}

/// # Safety
/// As for [`call_fast`].
#[inline(always)]
pub unsafe fn call_one<T: Native, const ANY_THREAD: bool>(
    instance: *mut ffi::PyObject,
    values: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
    signature: &'static Signature,
    method: Method1<T>,
) -> *mut ffi::PyObject {
    // SAFETY: as in `call_fast`.
    unsafe {
        guard(std::ptr::null_mut(), |py| {
            let this = This::new(Borrowed::from_ptr(py, instance));
            let _entered = claim::<T, ANY_THREAD>(this)?;
            let argument = Args::new(py, values, count as usize, names, signature).only()?;
            method(this, argument).map(Object::into_ptr)
        })
    }
}

/// # Safety
/// Called with the arguments of a setter of T's class.
pub unsafe fn call_setter<T: Native, const ANY_THREAD: bool>(
    instance: *mut ffi::PyObject,
    new: *mut ffi::PyObject,
    setter: Setter<T>,
) -> c_int {
    // SAFETY: the descriptor has checked the class of the instance; a null value asks for deletion.
    unsafe {
        guard(-1, |py| {
            if new.is_null() {
                return Err(new_error::<pyo3::exceptions::PyAttributeError>(
                    py,
                    "attribute cannot be deleted",
                ));
            }
            let this = This::new(Borrowed::from_ptr(py, instance));
            let _entered = claim::<T, ANY_THREAD>(this)?;
            setter(this, Borrowed::from_ptr(py, new)).map(|()| 0)
        })
    }
}

/// The definition that the interpreter makes a method of, with the text signature that `inspect` reads.
#[macro_export]
macro_rules! method_definition {
    ($name:literal, $parameters:expr, $doc:literal, $flags:expr, $kind:ident: $call:ident) => {
        pyo3::ffi::PyMethodDef {
            ml_name: $crate::cpython::methods::c_str(concat!($name, "\0")).as_ptr(),
            ml_meth: pyo3::ffi::PyMethodDefPointer { $kind: $call },
            ml_flags: $flags,
            ml_doc: $crate::cpython::methods::c_str(concat!(
                $name,
                "(",
                $parameters,
                ")\n--\n\n",
                $doc,
                "\0"
            ))
            .as_ptr(),
        }
    };
}

/// A function of the module, without arguments: `fn(Python)`.
#[macro_export]
macro_rules! function0 {
    ($name:literal, $function:expr, $doc:literal) => {{
        const FUNCTION: fn(pyo3::Python<'_>) = $function;
        unsafe extern "C" fn call(
            _: *mut pyo3::ffi::PyObject,
            _: *mut pyo3::ffi::PyObject,
        ) -> *mut pyo3::ffi::PyObject {
            // SAFETY: the interpreter calls this, with the GIL held.
            unsafe {
                $crate::cpython::methods::guard(std::ptr::null_mut(), |py| {
                    FUNCTION(py);
                    Ok($crate::cpython::object::Object::none(py).into_ptr())
                })
            }
        }
        $crate::method_definition!($name, "", $doc, pyo3::ffi::METH_NOARGS, PyCFunction: call)
    }};
}

/// A method without arguments: `fn(This<T>) -> PyResult<Object>`.
#[macro_export]
macro_rules! method0 {
    (any_thread $native:ty, $name:literal, $function:expr, $doc:literal) => {
        $crate::method0!(@ true, $native, $name, $function, $doc)
    };
    ($native:ty, $name:literal, $function:expr, $doc:literal) => {
        $crate::method0!(@ false, $native, $name, $function, $doc)
    };
    (@ $any_thread:literal, $native:ty, $name:literal, $function:expr, $doc:literal) => {{
        const METHOD: $crate::cpython::methods::BareMethod<$native> = $function;
        unsafe extern "C" fn call(
            instance: *mut pyo3::ffi::PyObject,
            _: *mut pyo3::ffi::PyObject,
        ) -> *mut pyo3::ffi::PyObject {
            // SAFETY: the interpreter calls this as the method that the definition below says it is.
            unsafe { $crate::cpython::methods::call_bare::<$native, $any_thread>(instance, METHOD) }
        }
        $crate::method_definition!($name, "$self, /", $doc, pyo3::ffi::METH_NOARGS, PyCFunction: call)
    }};
}

/// A method with the parameters of a [`Signature`](crate::cpython::args::Signature):
/// `fn(This<T>, Args) -> PyResult<Object>`.
#[macro_export]
macro_rules! method {
    (any_thread $native:ty, $name:literal, $parameters:literal, $function:expr, $doc:literal) => {
        $crate::method!(@ true, $native, $name, $parameters, $function, $doc, Method, call_fast)
    };
    ($native:ty, $name:literal, $parameters:literal, $function:expr, $doc:literal) => {
        $crate::method!(@ false, $native, $name, $parameters, $function, $doc, Method, call_fast)
    };
    (@ $any_thread:literal, $native:ty, $name:literal, $parameters:literal, $function:expr, $doc:literal, $type:ident, $by:ident) => {{
        const METHOD: $crate::cpython::methods::$type<$native> = $function;
        static SIGNATURE: $crate::cpython::args::Signature =
            $crate::cpython::args::Signature::new($name, $parameters);
        unsafe extern "C" fn call(
            instance: *mut pyo3::ffi::PyObject,
            values: *const *mut pyo3::ffi::PyObject,
            count: pyo3::ffi::Py_ssize_t,
            names: *mut pyo3::ffi::PyObject,
        ) -> *mut pyo3::ffi::PyObject {
            // SAFETY: the interpreter calls this as the method that the definition below says it is.
            unsafe {
                $crate::cpython::methods::$by::<$native, $any_thread>(
                    instance, values, count, names, &SIGNATURE, METHOD,
                )
            }
        }
        $crate::method_definition!(
            $name,
            concat!("$self, ", $parameters),
            $doc,
            pyo3::ffi::METH_FASTCALL | pyo3::ffi::METH_KEYWORDS,
            PyCFunctionFastWithKeywords: call
        )
    }};
}

/// A method with one parameter: `fn(This<T>, Borrowed<PyAny>) -> PyResult<Object>`.
#[macro_export]
macro_rules! method1 {
    (any_thread $native:ty, $name:literal, $parameter:literal, $function:expr, $doc:literal) => {
        $crate::method!(@ true, $native, $name, $parameter, $function, $doc, Method1, call_one)
    };
    ($native:ty, $name:literal, $parameter:literal, $function:expr, $doc:literal) => {
        $crate::method!(@ false, $native, $name, $parameter, $function, $doc, Method1, call_one)
    };
}

/// An attribute: `fn(This<T>) -> PyResult<Object>`, and if it can be set `fn(This<T>, Borrowed<PyAny>) -> PyResult<()>`.
#[macro_export]
macro_rules! attribute {
    (any_thread $native:ty, $name:literal, $getter:expr) => {
        attribute!(@ true, $native, $name, $getter, None)
    };
    ($native:ty, $name:literal, $getter:expr) => {
        attribute!(@ false, $native, $name, $getter, None)
    };
    (any_thread $native:ty, $name:literal, $getter:expr, $setter:expr) => {
        attribute!(@ true, $native, $name, $getter, $setter, set)
    };
    ($native:ty, $name:literal, $getter:expr, $setter:expr) => {
        attribute!(@ false, $native, $name, $getter, $setter, set)
    };
    (@ $any_thread:literal, $native:ty, $name:literal, $getter:expr, $setter:expr, $set:ident) => {{
        const SETTER: $crate::cpython::methods::Setter<$native> = $setter;
        unsafe extern "C" fn $set(
            instance: *mut pyo3::ffi::PyObject,
            new: *mut pyo3::ffi::PyObject,
            _: *mut std::ffi::c_void,
        ) -> std::ffi::c_int {
            // SAFETY: the interpreter calls this as the setter that the definition below says it is.
            unsafe { $crate::cpython::methods::call_setter::<$native, $any_thread>(instance, new, SETTER) }
        }
        attribute!(@ $any_thread, $native, $name, $getter, Some($set))
    }};
    (@ $any_thread:literal, $native:ty, $name:literal, $getter:expr, $set:expr) => {{
        const GETTER: $crate::cpython::methods::BareMethod<$native> = $getter;
        unsafe extern "C" fn get(
            instance: *mut pyo3::ffi::PyObject,
            _: *mut std::ffi::c_void,
        ) -> *mut pyo3::ffi::PyObject {
            // SAFETY: the interpreter calls this as the getter that the definition below says it is.
            unsafe { $crate::cpython::methods::call_bare::<$native, $any_thread>(instance, GETTER) }
        }
        pyo3::ffi::PyGetSetDef {
            name: $crate::cpython::methods::c_str(concat!($name, "\0")).as_ptr(),
            get: Some(get),
            set: $set,
            doc: std::ptr::null(),
            closure: std::ptr::null_mut(),
        }
    }};
}

/// The slot of `repr()`: `fn(This<T>) -> PyResult<Object>`, which any thread may call.
#[macro_export]
macro_rules! repr_slot {
    ($native:ty, $repr:expr) => {{
        const REPR: $crate::cpython::methods::BareMethod<$native> = $repr;
        unsafe extern "C" fn tp_repr(instance: *mut pyo3::ffi::PyObject) -> *mut pyo3::ffi::PyObject {
            // SAFETY: the interpreter calls a slot of a class with its instances.
            unsafe { $crate::cpython::methods::call_bare::<$native, true>(instance, REPR) }
        }
        pyo3::ffi::PyType_Slot { slot: pyo3::ffi::Py_tp_repr, pfunc: tp_repr as *mut std::ffi::c_void }
    }};
}

pub const fn c_str(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a name ends where its only NUL is"),
    }
}
