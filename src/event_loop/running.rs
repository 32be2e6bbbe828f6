//! Running and stopping, debug mode, closing.

use std::num::NonZeroU64;

use pyo3::exceptions::PyAttributeError;
use pyo3::ffi::{PyGetSetDef, PyMethodDef};
use pyo3::prelude::*;
use pyo3::{Borrowed, Python};

use super::{Loop, ThisLoop, given, overrides};
use crate::cpython::errors::new_error;
use crate::cpython::free_list::Keeping;
use crate::cpython::object::{Object, boolean};
use crate::cpython::ownership::elsewhere;
use crate::intern;
use crate::{attribute, method0, method1};

/// Runs `f` as an attachment that PyO3 counts, so that references which it drops meanwhile are released at once, not later.
fn counted<R>(f: impl FnOnce(Python<'_>) -> R) -> R {
    // SAFETY: the thread is attached, since it calls a method. `attach` would fail while the interpreter is ending, when
    // destructors may still run loops.
    unsafe { Python::attach_unchecked(f) }
}

fn run(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let _keeping = Keeping::begin();
    let _owned = this.core.owner.run().ok_or_else(|| elsewhere(this.py()))?;
    counted(|py| this.core.run(py, &this.object()))?;
    Ok(Object::none(this.py()))
}

fn run_once(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let _owned = this.core.owner.run().ok_or_else(|| elsewhere(this.py()))?;
    counted(|py| {
        // A caller within an iteration may wait for the answer to what it has written.
        this.core.send_scheduled(py, &this.object())?;
        this.core.iterate(py, &this.object())
    })?;
    Ok(Object::none(this.py()))
}

/// Has the loop wait by a function of the program's, or by the system's calls for None.
fn wait_by(this: ThisLoop<'_, '_>, function: Borrowed<'_, '_, PyAny>) -> PyResult<Object> {
    this.core.set_overridden_wait(this.py(), given(Some(Object::from(function))));
    Ok(Object::none(this.py()))
}

fn close_core(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    this.core.close(this.py(), &this.object())?;
    Ok(Object::none(this.py()))
}

fn flush(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    this.core.send_scheduled(this.py(), &this.object())?;
    Ok(Object::none(this.py()))
}

fn stop(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    this.core.stopping.set(true);
    Ok(Object::none(this.py()))
}

fn is_running(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    Ok(boolean(this.py(), this.thread.get().is_some()))
}

fn is_closed(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    Ok(boolean(this.py(), this.closed.get()))
}

fn get_debug(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    Ok(boolean(this.py(), this.debug()))
}

fn check_closed(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    this.check_closed(this.py())?;
    Ok(Object::none(this.py()))
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method0!(Loop, "_run", run, "Run iterations until stop() is called: the inside of run_forever()."),
        method0!(
            Loop,
            "_note_overrides",
            overrides::note,
            "Find out what the program has put in place of the loop's methods."
        ),
        method0!(Loop, "_run_once", run_once, "Run one iteration."),
        method1!(
            Loop,
            "_wait_by",
            "function",
            wait_by,
            "Wait by a function that is called as select.select(), or as usual for None."
        ),
        method0!(
            Loop,
            "_close",
            close_core,
            "Send what can be sent, and drop all handles, timers and watched descriptors."
        ),
        method0!(
            Loop,
            "_flush",
            flush,
            "Send what was written in this iteration, as far as the sockets take it."
        ),
        method0!(any_thread Loop, "stop",
            stop,
            "End run_forever() when the iteration that is under way, or the next one, is done."
        ),
        method0!(any_thread Loop, "is_running", is_running, "Return True if the event loop is running."),
        method0!(any_thread Loop, "is_closed", is_closed, "Return True if the event loop was closed."),
        method0!(any_thread Loop, "get_debug", get_debug, "Return True if debug mode is on."),
        method0!(any_thread Loop, "_check_closed", check_closed, "Raise RuntimeError if the event loop was closed."),
    ]
}

fn set_closed(this: ThisLoop<'_, '_>, value: Borrowed<'_, '_, PyAny>) -> PyResult<()> {
    this.closed.set(value.is_truthy()?);
    Ok(())
}

fn set_stopping(this: ThisLoop<'_, '_>, value: Borrowed<'_, '_, PyAny>) -> PyResult<()> {
    this.core.stopping.set(value.is_truthy()?);
    Ok(())
}

fn get_thread(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    match this.thread.get() {
        Some(thread) => Object::from_size(this.py(), thread.get() as usize),
        None => Ok(Object::none(this.py())),
    }
}

fn set_thread(this: ThisLoop<'_, '_>, value: Borrowed<'_, '_, PyAny>) -> PyResult<()> {
    let thread: Option<NonZeroU64> = value.extract()?;
    this.thread.set(thread);
    Ok(())
}

fn set_debug(this: ThisLoop<'_, '_>, value: Borrowed<'_, '_, PyAny>) -> PyResult<()> {
    this.core.schedule.set_debug(value.is_truthy()?);
    Ok(())
}

fn get_task_factory(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    match this.as_any().getattr(intern!(py, "__dict__"))?.get_item(intern!(py, "_task_factory")) {
        Ok(factory) => Ok(factory.into()),
        Err(_) => Err(new_error::<PyAttributeError>(py, "_task_factory")),
    }
}

fn set_task_factory(this: ThisLoop<'_, '_>, value: Borrowed<'_, '_, PyAny>) -> PyResult<()> {
    let py = this.py();
    this.as_any().getattr(intern!(py, "__dict__"))?.set_item(intern!(py, "_task_factory"), value)?;
    this.has_task_factory.set(!value.is_none());
    Ok(())
}

/// Attributes of asyncio.BaseEventLoop's instances of which the values are kept here.
pub fn attributes() -> Vec<PyGetSetDef> {
    vec![
        attribute!(any_thread Loop, "_closed", is_closed, set_closed),
        attribute!(any_thread Loop, "_stopping", |this| Ok(boolean(this.py(), this.core.stopping.get())), set_stopping),
        attribute!(any_thread Loop, "_thread_id", get_thread, set_thread),
        attribute!(any_thread Loop, "_debug", get_debug, set_debug),
        attribute!(
            Loop,
            "_replaces_connecting",
            |this| Ok(boolean(this.py(), this.replaces_connecting.get())),
            |this, value| {
                this.replaces_connecting.set(value.is_truthy()?);
                Ok(())
            }
        ),
        attribute!(any_thread Loop, "_sockets_are_patched", |this| Ok(boolean(
            this.py(),
            crate::transports::sockets_are_patched()
        ))),
        attribute!(any_thread Loop, "_task_factory", get_task_factory, set_task_factory),
        attribute!(Loop, "_poller", |this| {
            Object::from_str(this.py(), this.core.backend().unwrap_or_default().name())
        }),
    ]
}
