//! Which object an address stands for, for records that do not keep the object alive.
//!
//! An address alone is not enough: when its object is gone, another can get it. A [`Guard`] tells the two apart.

use std::ffi::{CStr, CString, c_char};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use pyo3::ffi;
use pyo3::prelude::*;

use super::call::PyMethod_Type;
use super::object::Object;

/// A weakref.ref, whose object is compared without a reference to it.
pub struct Guard(Object);

/// The beginning of CPython's struct _PyWeakReference.
#[repr(C)]
struct WeakReference {
    head: ffi::PyObject,
    /// None once the object is gone.
    object: *mut ffi::PyObject,
    #[cfg(not(Py_3_14))]
    callback: *mut ffi::PyObject,
}

impl Guard {
    /// TypeError if there can be no weak references to the object.
    pub fn new(py: Python<'_>, object: &Object) -> PyResult<Guard> {
        // SAFETY: returns a new reference, or null with an exception. Without a callback, it is exactly a weakref.ref.
        let reference =
            unsafe { Object::from_owned(py, ffi::PyWeakref_NewRef(object.as_ptr(), std::ptr::null_mut()))? };
        Ok(Guard(reference))
    }

    /// Whether the object lives, and is the one at this address.
    #[inline(always)]
    pub fn is_of(&self, address: usize) -> bool {
        // SAFETY: the guard lives.
        unsafe { self.reference().is_of(address) }
    }

    /// Whether the object is gone.
    pub fn is_dead(&self) -> bool {
        // SAFETY: None is a static object.
        self.is_of(unsafe { ffi::Py_None() } as usize)
    }

    /// As [`Guard::new`], for a task: until 3.13, asyncio's set of all tasks has a weakref.ref to each, with this callback.
    pub fn of_task(py: Python<'_>, task: &Object, _callback: &Object) -> PyResult<Guard> {
        #[cfg(not(Py_3_14))]
        if let Some(reference) = existing_reference(task, _callback) {
            return Ok(Guard(reference));
        }
        Guard::new(py, task)
    }

    /// For [`Reference::is_of`], as long as the guard lives.
    pub fn reference(&self) -> Reference {
        Reference(self.0.as_ptr().cast())
    }
}

/// The newest weakref.ref of an object, if it has this callback. Keeping one has its callback called when the object is gone, also if
/// who has made it has dropped it: it must be one that does no harm then.
#[cfg(not(Py_3_14))]
fn existing_reference(object: &Object, callback: &Object) -> Option<Object> {
    // SAFETY: the object lives. If its class has weak references, the head of its list is there; those in the list live.
    unsafe {
        let offset = (*ffi::Py_TYPE(object.as_ptr())).tp_weaklistoffset;
        if offset == 0 {
            return None;
        }
        let head = *object.as_ptr().byte_offset(offset).cast::<*mut ffi::PyObject>();
        let head = std::ptr::NonNull::new(head)?;
        let is_wanted = ffi::Py_TYPE(head.as_ptr()) == &raw mut ffi::_PyWeakref_RefType
            && (*head.as_ptr().cast::<WeakReference>()).callback == callback.as_ptr();
        is_wanted.then(|| Object::from_borrowed(head))
    }
}

/// A guard's, which does not keep it.
#[derive(Clone, Copy)]
pub struct Reference(*mut WeakReference);

impl Reference {
    /// Of no guard.
    pub const NONE: Reference = Reference(std::ptr::null_mut());

    /// As [`Guard::is_of`]; false for [`Reference::NONE`].
    ///
    /// # Safety
    /// The guard lives, if there is one.
    #[inline(always)]
    pub unsafe fn is_of(self, address: usize) -> bool {
        if self.0.is_null() {
            return false;
        }
        // SAFETY: a weakref.ref begins like that. Another thread can clear the place meanwhile, as one word.
        let object = unsafe { AtomicPtr::from_ptr(&raw mut (*self.0).object) };
        object.load(Relaxed) as usize == address
    }
}

/// What callables are known by that do the same: an address.
#[derive(Clone, Copy)]
pub enum Identity {
    /// Of the code of a function, or of a method's.
    Code(usize),
    /// Of the definition of a function written in C.
    Definition(usize),
    /// Of the class of anything else.
    Class(usize),
}

impl Identity {
    /// For a callable that lives. Another thread may replace a function's code meanwhile.
    #[inline(always)]
    pub fn of(callable: &Object) -> Identity {
        let mut callable = callable.as_ptr();
        // SAFETY: the callable lives, and a method keeps its function alive. What is read fits the class that was looked at.
        unsafe {
            let mut class = ffi::Py_TYPE(callable);
            if class == &raw mut PyMethod_Type {
                callable = PyMethod_Function(callable);
                class = ffi::Py_TYPE(callable);
            }
            if class == &raw mut ffi::PyFunction_Type {
                Identity::Code((*callable.cast::<ffi::PyFunctionObject>()).func_code as usize)
            } else if class == &raw mut ffi::PyCFunction_Type {
                Identity::Definition((*callable.cast::<ffi::PyCFunctionObject>()).m_ml as usize)
            } else {
                Identity::Class(class as usize)
            }
        }
    }

    pub fn of_class(object: &Object) -> Identity {
        // SAFETY: the object lives.
        Identity::Class(unsafe { ffi::Py_TYPE(object.as_ptr()) } as usize)
    }

    pub fn address(self) -> usize {
        match self {
            Identity::Code(address) | Identity::Definition(address) | Identity::Class(address) => address,
        }
    }
}

/// The class of an object.
pub fn class_of(object: &Object) -> Object {
    // SAFETY: an object has a class, and keeps it alive.
    unsafe {
        let class = ffi::Py_TYPE(object.as_ptr()).cast::<ffi::PyObject>();
        Object::from_borrowed(std::ptr::NonNull::new_unchecked(class))
    }
}

/// Tells whether an address still stands for what it did.
pub enum Check {
    Guarded(Guard),
    /// The name of a function written in C. Extensions that make definitions at run time may free them.
    Named(CString),
}

impl Check {
    /// For the definition of a function that lives. None without memory.
    pub fn of_definition(function: &Object) -> Option<Check> {
        let Identity::Definition(address) = Identity::of(function) else { return None };
        // SAFETY: the definition of a function that lives.
        let name = unsafe { CStr::from_ptr(name_of_definition(address)) }.to_bytes();
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(name.len() + 1).ok()?;
        bytes.extend(name);
        CString::new(bytes).ok().map(Check::Named)
    }

    /// Whether a callable that is known by this is what the check was made for.
    #[inline(always)]
    pub fn holds(&self, identity: Identity) -> bool {
        match (self, identity) {
            (Check::Guarded(guard), Identity::Code(address) | Identity::Class(address)) => {
                guard.is_of(address)
            }
            // SAFETY: a callable that is at hand has this definition.
            (Check::Named(name), Identity::Definition(address)) => unsafe {
                libc::strcmp(name_of_definition(address), name.as_ptr()) == 0
            },
            _ => false,
        }
    }
}

/// # Safety
/// The address is that of the definition of a function that lives.
unsafe fn name_of_definition(address: usize) -> *const c_char {
    // SAFETY: definitions have names.
    unsafe { (*(address as *const ffi::PyMethodDef)).ml_name }
}

unsafe extern "C" {
    /// Returns a borrowed reference.
    fn PyMethod_Function(method: *mut ffi::PyObject) -> *mut ffi::PyObject;
}
