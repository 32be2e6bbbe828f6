//! The Python class of the coroutines.

use std::ffi::c_void;

use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::prelude::*;
use pyo3::{Borrowed, ffi};

use super::{Operation, SocketOperation, State, ThisOperation};
use crate::core::ReadyEntry;
use crate::cpython::args::Args;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{self, Class, Definition, Native, This, Visitor};
use crate::cpython::errors::{error_of, new_error};
use crate::cpython::methods::{self, guard};
use crate::cpython::module::add;
use crate::cpython::object::{Object, Resumed, boolean, tuple};
use crate::cpython::ownership::Owner;
use crate::cpython::statics;
use crate::imports::imports;
use crate::intern;
use crate::{attribute, method, method0, method1};

impl Native for SocketOperation {
    fn class() -> &'static Class {
        &statics::SOCKET_OPERATION
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(self.event_loop.as_object());
        visitor.object(&self.socket);
        match &self.operation {
            Operation::Recv(object) | Operation::RecvInto(object) | Operation::RecvFrom(object) => {
                visitor.object(object)
            }
            Operation::RecvFromInto(first, second) | Operation::SendTo(first, second) => {
                visitor.object(first);
                visitor.object(second);
            }
            Operation::SendAll { data, view, .. } => {
                visitor.object(data);
                // SAFETY: nothing replaces it during this expression, which runs no Python code.
                if let Some(view) = unsafe { &*view.as_ptr() } {
                    view.traverse(visitor);
                }
            }
            Operation::Connect { address, .. } => visitor.object(address),
            Operation::Accept => {}
        }
        visitor.cell(&self.future);
        visitor.cell(&self.awaiting);
    }

    fn clear(&self) {
        self.state.set(State::Done);
        self.awaiting.set(None);
        self.future.set(None);
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }

    const FINALIZES: bool = true;

    /// One that is done needs none, so that its memory can be used again.
    fn needs_finalizer(&self) -> bool {
        self.state.get() != State::Done
    }

    fn finalize(this: This<'_, '_, Self>) {
        let py = this.py();
        match this.state.get() {
            State::Fresh => {
                let warned = imports(py).and_then(|imports| {
                    let name = Object::from_str(py, this.operation.name())?;
                    imports.warn_unawaited.call(py, &[&name])
                });
                if let Err(error) = warned {
                    error.write_unraisable(py, Some(&this.as_any()));
                }
            }
            _ => this.finish(&this.object()),
        }
    }

    fn finalize_elsewhere(this: This<'_, '_, Self>) {
        this.core.finalize_later(this);
    }
}

fn send<'py>(this: ThisOperation<'_, 'py>, value: pyo3::Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    match SocketOperation::resume(this, &Object::from(value))? {
        Resumed::Yielded(future) => Ok(future),
        Resumed::Returned(result) => Err(stop_iteration(this.py(), result)),
    }
}

fn throw<'py>(this: ThisOperation<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([thrown], [value, traceback]) = args.parse()?;
    let thrown = thrown.into_bound(py);
    let value = value.filter(|value| !value.is_none());
    let error = match value {
        Some(value) if value.bind(py).is_instance(&thrown)? => PyErr::from_value(value.into_bound(py)),
        Some(value) => PyErr::from_value(Object::from(thrown).call(py, &[&value])?.into_bound(py)),
        None => PyErr::from_value(thrown),
    };
    if let Some(traceback) = traceback.filter(|traceback| !traceback.is_none()) {
        error.value(py).setattr(intern!(py, "__traceback__"), traceback.bind(py))?;
    }
    if this.state.get() == State::Done {
        return Err(new_error::<PyRuntimeError>(py, "cannot reuse already awaited coroutine"));
    }
    this.finish(&this.object());
    Err(error)
}

/// The collector of any thread calls it, through coroutines that wait for this one. The loop of another thread does it.
fn close(this: ThisOperation<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    match this.core.owner.enter() {
        Some(_entered) => this.finish(&this.object()),
        None if this.state.get() == State::Done => {}
        None => {
            let finish = |this: ThisOperation<'_, '_>| {
                this.finish(&this.object());
                Ok(())
            };
            this.core.push_threadsafe(py, || ReadyEntry::Finalize(BoundMethod::new(this, finish)))?;
        }
    }
    Ok(Object::none(py))
}

unsafe extern "C" fn am_await(instance: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the instance lives, and its class is that of SocketOperation.
    unsafe { methods::call_bare::<SocketOperation, true>(instance, |this| Ok(this.object())) }
}

/// `tp_iternext`, by which a coroutine written in Python resumes what it awaits. The end is null, with a StopIteration unless the
/// result is None.
unsafe extern "C" fn iter_next(instance: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the interpreter passes an instance of the class.
    unsafe {
        guard(std::ptr::null_mut(), |py| {
            let this = This::<SocketOperation>::new(Borrowed::from_ptr(py, instance));
            let _entered = methods::claim::<SocketOperation, false>(this)?;
            match SocketOperation::resume(this, &Object::none(py))? {
                Resumed::Yielded(future) => Ok(future.into_ptr()),
                Resumed::Returned(result) if result.is_none() => Ok(std::ptr::null_mut()),
                Resumed::Returned(result) if result.is_tuple() => Err(stop_iteration(py, result)),
                Resumed::Returned(result) => {
                    ffi::PyErr_SetObject(ffi::PyExc_StopIteration, result.as_ptr());
                    Ok(std::ptr::null_mut())
                }
            }
        })
    }
}

/// The StopIteration that ends a coroutine. It is made of a tuple of arguments, because a result that is a tuple would be taken for one.
fn stop_iteration(py: Python<'_>, result: Object) -> PyErr {
    match tuple(py, &[&result]) {
        Ok(arguments) => error_of::<PyStopIteration>(py, &arguments),
        Err(error) => error,
    }
}

unsafe extern "C" fn am_send(
    instance: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: the interpreter passes an instance of the class, a live value, and a place for the result.
    unsafe {
        *result = std::ptr::null_mut();
        guard(ffi::PySendResult::PYGEN_ERROR, |py| {
            let this = This::<SocketOperation>::new(Borrowed::from_ptr(py, instance));
            let _entered = methods::claim::<SocketOperation, false>(this)?;
            let value = Object::from_borrowed(std::ptr::NonNull::new_unchecked(value));
            Ok(match SocketOperation::resume(this, &value)? {
                Resumed::Yielded(future) => {
                    *result = future.into_ptr();
                    ffi::PySendResult::PYGEN_NEXT
                }
                Resumed::Returned(value) => {
                    *result = value.into_ptr();
                    ffi::PySendResult::PYGEN_RETURN
                }
            })
        })
    }
}

/// The state as the inspect module names it.
fn state_name(state: State) -> &'static str {
    match state {
        State::Fresh => "CORO_CREATED",
        State::Running => "CORO_RUNNING",
        State::Waiting(_) | State::Woken => "CORO_SUSPENDED",
        State::Done => "CORO_CLOSED",
    }
}

fn name(this: ThisOperation<'_, '_>) -> PyResult<Object> {
    Object::from_str(this.py(), this.operation.name())
}

/// Makes the class.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let slot = |slot, pfunc| ffi::PyType_Slot { slot, pfunc };
    let definition = Definition {
        name: c"hotloop._core.SocketOperation",
        doc: c"A coroutine that does one operation on a socket.",
        base: module.py().get_type::<PyAny>(),
        methods: vec![
            method1!(SocketOperation, "send", "value", send, "Resume the coroutine."),
            method!(
                SocketOperation,
                "throw",
                "typ, val=None, tb=None, /",
                throw,
                "End the coroutine with an exception."
            ),
            method0!(any_thread SocketOperation, "close", close, "End the coroutine."),
        ],
        attributes: vec![
            attribute!(any_thread SocketOperation, "__name__", name),
            attribute!(any_thread SocketOperation, "__qualname__", name),
            attribute!(any_thread SocketOperation, "cr_running", |this| Ok(boolean(
                this.py(),
                this.state.get() == State::Running
            ))),
            attribute!(any_thread SocketOperation, "cr_suspended", |this| Ok(boolean(
                this.py(),
                matches!(this.state.get(), State::Waiting(_) | State::Woken)
            ))),
            attribute!(any_thread SocketOperation, "cr_state", |this| Object::from_str(
                this.py(),
                state_name(this.state.get())
            )),
            attribute!(any_thread SocketOperation, "cr_origin", |this| Ok(Object::none(this.py()))),
            // Another thread that looks at a task's stack is shown none.
            attribute!(any_thread SocketOperation, "cr_await", |this| {
                let future = this.core.owner.try_enter().and_then(|_entered| this.future.get());
                Ok(future.unwrap_or_else(|| Object::none(this.py())))
            }),
            attribute!(any_thread SocketOperation, "cr_frame", |this| Ok(Object::none(this.py()))),
            attribute!(any_thread SocketOperation, "cr_code", |this| Ok(Object::none(this.py()))),
        ],
        slots: vec![
            slot(ffi::Py_am_await, am_await as *mut c_void),
            slot(ffi::Py_am_send, am_send as *mut c_void),
            slot(ffi::Py_tp_iter, ffi::PyObject_SelfIter as *mut c_void),
            slot(ffi::Py_tp_iternext, iter_next as *mut c_void),
        ],
        open: true,
    };
    add(module, "SocketOperation", class::make::<SocketOperation>(definition)?)
}
