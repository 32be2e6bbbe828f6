//! Steps of asyncio's C task, queued without a handle.
//!
//! A task ignores what call_soon() returns for its steps and wake-ups, and the program has no other way to their callables. A
//! handle is made only in debug mode, where a subclass overrides call_soon(), and for reports of errors.

use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::Borrowed;
use pyo3::ffi;
use pyo3::prelude::*;

use super::{Call, Handle, reraise_fatal};
use crate::cpython::arguments::Arguments;
use crate::cpython::class::{Obj, Visitor};
use crate::cpython::object::{Object, run_in_context};
use crate::cpython::statics::TASK_WAKEUP;
use crate::imports::imports;
use crate::intern;

/// A task's step, or its wake-up with the future that it waited for.
#[derive(Clone)]
pub struct TaskStep {
    pub callback: Object,
    pub future: Option<Object>,
    pub context: Object,
}

/// Whether a callable is a task's step (without an argument) or wake-up, which gets a future or task. Another class of futures can use
/// the handle of a wake-up.
pub fn is_of_task(py: Python<'_>, callback: &Object, argument: Option<&Object>) -> PyResult<bool> {
    // SAFETY: the object lives.
    let kind = |object: &Object| unsafe { ffi::Py_TYPE(object.as_ptr()) }.cast::<ffi::PyObject>();
    let imports = imports(py)?;
    let Some(argument) = argument else { return Ok(kind(callback) == imports.task_step.as_ptr()) };
    let of_asyncio =
        || [&imports.c_future, &imports.c_task].iter().any(|class| kind(argument) == class.as_ptr());
    if kind(callback) != (&raw mut ffi::PyCFunction_Type).cast() || !of_asyncio() {
        return Ok(false);
    }
    is_wakeup(py, callback)
}

/// Whether a callable is a task's step or wake-up: its `__self__` is the task.
pub fn is_step(py: Python<'_>, callable: &Object) -> PyResult<bool> {
    if is_wakeup_class(callable) {
        return is_wakeup(py, callable);
    }
    // SAFETY: the object lives.
    let class = unsafe { ffi::Py_TYPE(callable.as_ptr()) };
    Ok(class.cast() == imports(py)?.task_step.as_ptr())
}

/// The task that a step or wake-up is of. None if it is not known where steps of this Python keep it.
#[inline(always)]
pub fn known_task_of(_py: Python<'_>, step: &Object) -> Option<Object> {
    // SAFETY: the object lives, and keeps its task alive; a wake-up has an owner. A step is at least as large as was found.
    unsafe {
        let task = if is_wakeup_class(step) {
            ffi::PyCFunction_GetSelf(step.as_ptr())
        } else if STEP_LAYOUT.load(Relaxed) == KNOWN {
            *owner_place(step)
        } else {
            return None;
        };
        NonNull::new(task).map(|task| Object::from_borrowed(task))
    }
}

/// The task that a step or wake-up is of.
pub fn task_of(py: Python<'_>, step: &Object) -> PyResult<Object> {
    if let Some(task) = known_task_of(py, step) {
        return Ok(task);
    }
    let task = Object::from(step.bind(py).getattr(intern!(py, "__self__"))?);
    if STEP_LAYOUT.load(Relaxed) == NOT_LOOKED_AT {
        // SAFETY: the object lives, and has the place if its class says that it is as large. The word there is compared, not used.
        let is_there = unsafe {
            let size = (*ffi::Py_TYPE(step.as_ptr())).tp_basicsize as usize;
            size >= size_of::<ffi::PyObject>() + size_of::<usize>() && *owner_place(step) == task.as_ptr()
        };
        STEP_LAYOUT.store(if is_there { KNOWN } else { UNKNOWN }, Relaxed);
    }
    Ok(task)
}

/// Whether a step is a wake-up.
pub fn is_wakeup_class(step: &Object) -> bool {
    // SAFETY: the object lives.
    (unsafe { ffi::Py_TYPE(step.as_ptr()) }) == (&raw mut ffi::PyCFunction_Type)
}

/// Where asyncio's C step keeps its task: its first field.
fn owner_place(step: &Object) -> *mut *mut ffi::PyObject {
    step.as_ptr().wrapping_add(1).cast()
}

/// Whether that is so in this Python.
static STEP_LAYOUT: AtomicU8 = AtomicU8::new(NOT_LOOKED_AT);
const NOT_LOOKED_AT: u8 = 0;
const KNOWN: u8 = 1;
const UNKNOWN: u8 = 2;

#[inline(always)]
fn is_wakeup(py: Python<'_>, callback: &Object) -> PyResult<bool> {
    // SAFETY: the callable was found to be exactly a PyCFunction, whose definition outlives it.
    let definition = unsafe { (*callback.as_ptr().cast::<ffi::PyCFunctionObject>()).m_ml };
    let known = TASK_WAKEUP.load(Relaxed);
    if known.is_null() { find_wakeup(py, callback, definition) } else { Ok(definition == known) }
}

/// The first time that one is looked at.
#[cold]
fn find_wakeup(py: Python<'_>, callback: &Object, definition: *mut ffi::PyMethodDef) -> PyResult<bool> {
    // SAFETY: definitions have names; the owner of a builtin method, if any, is borrowed from it.
    let (name, owner) =
        unsafe { (CStr::from_ptr((*definition).ml_name), ffi::PyCFunction_GetSelf(callback.as_ptr())) };
    if name != c"task_wakeup" || owner.is_null() {
        return Ok(false);
    }
    // SAFETY: the callable keeps its owner alive.
    let owner = unsafe { pyo3::Borrowed::from_ptr(py, owner) };
    let found = owner.is_instance(&imports(py)?.c_task.bind(py))?;
    if found {
        TASK_WAKEUP.store(definition, Relaxed);
    }
    Ok(found)
}

impl TaskStep {
    pub fn run(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        let result = run_in_context(py, &self.context, || match &self.future {
            Some(future) => self.callback.call(py, &[future]),
            None => self.callback.call(py, &[]),
        });
        match result {
            Ok(_) => Ok(()),
            Err(error) => self.report(py, error, event_loop),
        }
    }

    #[cold]
    fn report(&self, py: Python<'_>, error: PyErr, event_loop: &Object) -> PyResult<()> {
        let exception = reraise_fatal(py, error)?;
        let handle = self.handle(py, event_loop.bind(py))?;
        imports(py)?.report_handle.call(py, &[handle.as_object(), &exception]).map(drop)
    }

    /// A handle that runs the step, too.
    #[cold]
    pub fn handle(&self, py: Python<'_>, event_loop: Borrowed<'_, '_, PyAny>) -> PyResult<Obj<Handle>> {
        let call = Call {
            callback: self.callback.clone(),
            arguments: self.future.clone().map_or(Arguments::None, Arguments::One),
            context: self.context.clone(),
            event_loop: Obj::of(event_loop)?,
        };
        Obj::new(py, Handle::with_traceback(call, None))
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.callback);
        visitor.optional(&self.future);
        visitor.object(&self.context);
    }
}
