//! Attributes of classes written in C, read by what is behind them.
//!
//! A look-up by name takes some 200 instructions, which a record of a task cannot afford.

use std::ffi::c_void;

use pyo3::ffi;
#[allow(deprecated, reason = "coroutines have such a field until 3.11")]
use pyo3::ffi::structmember::T_OBJECT;
use pyo3::ffi::structmember::T_OBJECT_EX;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::object::Object;
use crate::intern;

/// An attribute of the instances of one class.
pub struct Getter {
    class: *mut ffi::PyTypeObject,
    kind: Kind,
}

/// The class of coroutines.
pub fn coroutine_class(py: Python<'_>) -> Object {
    // SAFETY: a static class.
    unsafe { Object::from(pyo3::Borrowed::from_ptr(py, (&raw mut ffi::PyCoro_Type).cast())) }
}

/// What a step of a task is known by: the coroutine's code.
pub struct StepGetters {
    pub task_coroutine: Getter,
    pub coroutine_code: Getter,
    pub coroutine_suspended: Getter,
    pub coroutine_await: Getter,
}

/// Coroutines of a chain that are looked at.
const DEEPEST: usize = 64;

impl StepGetters {
    /// The address of the code of a task's coroutine, and whether the coroutine has started, if it is asked for. None if the task or its
    /// coroutine is of another class.
    #[inline(always)]
    pub fn read(&self, _py: Python<'_>, task: &Object, asks_start: bool) -> Option<(usize, Option<bool>)> {
        // SAFETY: the task lives and keeps its coroutine alive while its step is about to run, as that does its code. True is never
        // freed.
        unsafe {
            let coroutine = self.task_coroutine.read(task.as_ptr())?;
            let code = self.coroutine_code.read(coroutine)?;
            let has_started = if asks_start {
                Some(self.coroutine_suspended.read(coroutine)? == ffi::Py_True())
            } else {
                None
            };
            Some((code as usize, has_started))
        }
    }
}

impl StepGetters {
    /// A hash of the addresses of the codes of a task's coroutines, each awaited by the one before.
    pub fn hash_chain(&self, _py: Python<'_>, task: &Object) -> u64 {
        let mut hash = 0u64;
        // SAFETY: as in `read`. A coroutine that is suspended keeps alive what it awaits.
        unsafe {
            let mut next = self.task_coroutine.read(task.as_ptr());
            for _ in 0..DEEPEST {
                let Some(coroutine) = next else { break };
                let Some(code) = self.coroutine_code.read(coroutine) else { break };
                hash = (hash ^ code as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
                next = self.coroutine_await.read(coroutine);
            }
        }
        hash
    }
}

enum Kind {
    Function(ffi::getter, *mut c_void),
    /// A field with a reference, at this offset.
    Field(isize),
}

impl Getter {
    /// None if the class has no such attribute, or not one that is written in C. The class must never be destroyed.
    pub fn new(py: Python<'_>, class: &Object, name: &Bound<'_, PyString>) -> PyResult<Option<Getter>> {
        let attributes = class.bind(py).getattr(intern!(py, "__dict__"))?;
        let Ok(descriptor) = attributes.get_item(name) else { return Ok(None) };
        let descriptor = descriptor.as_ptr();
        // SAFETY: the descriptor lives. What is read fits the class that was looked at, and lives as long as the class.
        let kind = unsafe {
            let class = ffi::Py_TYPE(descriptor);
            if class == &raw mut ffi::PyGetSetDescr_Type {
                let definition = (*descriptor.cast::<ffi::PyGetSetDescrObject>()).d_getset;
                (*definition).get.map(|get| Kind::Function(get, (*definition).closure))
            } else if class == &raw mut ffi::PyMemberDescr_Type {
                let definition = (*descriptor.cast::<ffi::PyMemberDescrObject>()).d_member;
                #[allow(deprecated, reason = "see above")]
                let is_reference = [T_OBJECT_EX, T_OBJECT].contains(&(*definition).type_code);
                is_reference.then(|| Kind::Field((*definition).offset))
            } else {
                None
            }
        };
        Ok(kind.map(|kind| Getter { class: class.as_ptr().cast(), kind }))
    }

    /// The attribute of an object, without a reference to it. None if the object is of another class, or has no such attribute now.
    ///
    /// # Safety
    /// The object lives.
    #[inline(always)]
    unsafe fn read(&self, object: *mut ffi::PyObject) -> Option<*mut ffi::PyObject> {
        // SAFETY: see `get`. What is returned has another reference, or is not used.
        unsafe {
            if ffi::Py_TYPE(object) != self.class {
                return None;
            }
            let value = match self.kind {
                Kind::Function(get, closure) => {
                    let value = get(object, closure);
                    if value.is_null() {
                        ffi::PyErr_Clear();
                        return None;
                    }
                    ffi::Py_DECREF(value);
                    value
                }
                Kind::Field(offset) => *object.byte_offset(offset).cast::<*mut ffi::PyObject>(),
            };
            (!value.is_null()).then_some(value)
        }
    }

    /// None if the object is of another class.
    #[inline(always)]
    pub fn get(&self, py: Python<'_>, object: &Object) -> Option<PyResult<Object>> {
        // SAFETY: the object lives. The function and the field are those of its class.
        unsafe {
            if ffi::Py_TYPE(object.as_ptr()) != self.class {
                return None;
            }
            Some(match self.kind {
                Kind::Function(get, closure) => Object::from_owned(py, get(object.as_ptr(), closure)),
                Kind::Field(offset) => {
                    let field = *object.as_ptr().byte_offset(offset).cast::<*mut ffi::PyObject>();
                    Ok(Object::from_borrowed(std::ptr::NonNull::new(field)?))
                }
            })
        }
    }
}
