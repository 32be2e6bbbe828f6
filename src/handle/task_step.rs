//! Steps of asyncio's C task, queued without a handle.
//!
//! A task ignores what call_soon() returns for its steps and wake-ups, and the program has no other way to their callables. A
//! handle is made only in debug mode, where a subclass overrides call_soon(), and for reports of errors.

use std::ffi::CStr;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::ffi;
use pyo3::prelude::*;

use super::{Arguments, Call, Handle, reraise_fatal};
use crate::cpython::class::{Obj, Visitor};
use crate::cpython::object::{Object, run_in_context};
use crate::cpython::statics::TASK_WAKEUP;
use crate::imports::imports;

/// A task's step, or its wake-up with the future that it waited for.
#[derive(Clone)]
pub struct TaskStep {
    pub callback: Object,
    pub future: Option<Object>,
    pub context: Object,
}

/// Whether a callable is a task's step (without an argument) or wake-up (with one).
pub fn is_of_task(py: Python<'_>, callback: &Object, arguments: usize) -> PyResult<bool> {
    // SAFETY: the object lives.
    let kind = unsafe { ffi::Py_TYPE(callback.as_ptr()) };
    match arguments {
        0 => Ok(kind.cast() == imports(py)?.task_step.as_ptr()),
        1 if kind == &raw mut ffi::PyCFunction_Type => is_wakeup(py, callback),
        _ => Ok(false),
    }
}

fn is_wakeup(py: Python<'_>, callback: &Object) -> PyResult<bool> {
    // SAFETY: the callable was found to be exactly a PyCFunction, whose definition outlives it.
    let definition = unsafe { (*callback.as_ptr().cast::<ffi::PyCFunctionObject>()).m_ml };
    let known = TASK_WAKEUP.load(Relaxed);
    if !known.is_null() {
        return Ok(definition == known);
    }
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
        let handle = self.handle(py, event_loop)?;
        imports(py)?.report_handle.call(py, &[handle.as_object(), &exception]).map(drop)
    }

    /// A handle that runs the step, too.
    #[cold]
    pub fn handle(&self, py: Python<'_>, event_loop: &Object) -> PyResult<Obj<Handle>> {
        let call = Call {
            callback: self.callback.clone(),
            arguments: self.future.clone().map_or(Arguments::None, Arguments::One),
            context: self.context.clone(),
            event_loop: event_loop.clone(),
        };
        Obj::new(py, Handle::with_traceback(call, None))
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.callback);
        visitor.optional(&self.future);
        visitor.object(&self.context);
    }
}
