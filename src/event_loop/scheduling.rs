//! Scheduling callbacks, now and later: call_soon, call_soon_threadsafe, call_later, call_at, time.

use pyo3::Borrowed;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt};

use super::overrides::replaced_clock;
use super::{Loop, ThisLoop};
use crate::core::ReadyEntry;
use crate::cpython::args::Args;
use crate::cpython::arguments::Arguments;
use crate::cpython::class::{Native, Obj};
use crate::cpython::errors::new_error;
use crate::cpython::object::{Object, copy_context, thread_ident, tuple, tuple_of};
use crate::handle::{Call, Handle, Reusable, TaskStep, ThreadSafeHandle, TimerHandle, When, is_of_task};
use crate::intern;
use crate::reactor::clock;
use crate::{method, method0, method1};

/// Makes a handle of a callback and the arguments from `first` on.
#[inline(always)]
fn make_handle<'py>(
    this: ThisLoop<'_, 'py>,
    method: &str,
    callback: Object,
    args: Args<'_, 'py>,
    first: usize,
    context: Option<Object>,
) -> PyResult<Handle> {
    let source_traceback =
        if this.core.schedule.is_careful() { check_in_debug(this, method, &callback)? } else { None };
    Ok(Handle::with_traceback(call(this, callback, args, first, context)?, source_traceback))
}

#[inline(always)]
fn call<'py>(
    this: ThisLoop<'_, 'py>,
    callback: Object,
    args: Args<'_, 'py>,
    first: usize,
    context: Option<Object>,
) -> PyResult<Call> {
    let py = this.py();
    Ok(Call {
        callback,
        arguments: Arguments::of_call(py, args, first)?,
        context: match context {
            Some(context) => context,
            None => copy_context(py)?,
        },
        event_loop: this.obj(),
    })
}

/// In debug mode, checks the thread and the callback as asyncio does, and returns the caller's stack.
#[cold]
fn check_in_debug(this: ThisLoop<'_, '_>, method: &str, callback: &Object) -> PyResult<Option<Object>> {
    let py = this.py();
    if !this.debug() {
        return Ok(None);
    }
    if method != "call_soon_threadsafe" {
        this.object().call_method(py, intern!(py, "_check_thread"), &[])?;
    }
    let method = Object::from_str(py, method)?;
    this.object().call_method(py, intern!(py, "_check_callback"), &[callback, &method])?;
    this.core.schedule.source_traceback(py)
}

fn call_soon<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    this.check_closed(this.py())?;
    let ([callback], context) = args.leading()?;
    let careful = this.core.schedule.is_careful();
    if careful && this.core.schedule.is_queued_by_method() {
        return call_soon_by_method(this, callback, args, context);
    }
    if let Some(context) = &context
        && !careful
        && !this.overrides.call_soon.get()
        && args.len() <= 2
    {
        let future = args.object(1);
        if is_of_task(py, &callback, future.as_ref())? {
            let step = TaskStep { callback, future, context: context.clone() };
            enqueue(this, || ReadyEntry::Task(step))?;
            return Ok(Object::none(py));
        }
    }
    let handle = Obj::new(py, make_handle(this, args.method(), callback, args, 1, context)?)?;
    enqueue(this, || ReadyEntry::Handle(handle.clone()))?;
    Ok(handle.into_object())
}

/// Queues from the loop's thread, or from one that asyncio's deque would take a callback from, too.
#[inline(always)]
fn enqueue(this: ThisLoop<'_, '_>, entry: impl FnOnce() -> ReadyEntry) -> PyResult<()> {
    match this.core.owner.try_enter() {
        Some(_entered) => this.core.push_new(this.py(), entry),
        None => this.core.push_threadsafe(this.py(), entry),
    }
}

/// Whether a thread runs the loop, and whether it is this one.
fn runs_here(this: ThisLoop<'_, '_>) -> Option<bool> {
    this.thread.get().map(|thread| thread.get() == thread_ident())
}

/// Queues by the `_call_soon()` of a subclass, as asyncio's call_soon() does.
#[cold]
fn call_soon_by_method<'py>(
    this: ThisLoop<'_, 'py>,
    callback: Object,
    args: Args<'_, 'py>,
    context: Option<Object>,
) -> PyResult<Object> {
    let py = this.py();
    check_in_debug(this, args.method(), &callback)?;
    let arguments: Vec<_> = args.rest(1).collect();
    let arguments = tuple_of(py, arguments.iter())?;
    let context = context.unwrap_or_else(|| Object::none(py));
    this.object().call_method(py, intern!(py, "_call_soon"), &[&callback, &arguments, &context])
}

/// `_call_soon(callback, args, context)`, for subclasses that go on with it.
fn queue<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([callback, arguments, context], []) = args.parse()?;
    let mut items = Vec::new();
    for argument in arguments.bind(py).try_iter()? {
        items.push(Object::from(argument?));
    }
    let call = Call {
        callback,
        arguments: Arguments::of_objects(py, &items.iter().collect::<Vec<_>>())?,
        context: if context.is_none() { copy_context(py)? } else { context },
        event_loop: this.obj(),
    };
    let handle = Obj::new(py, Handle::new(py, call, &this.core.schedule)?)?;
    let entry = || ReadyEntry::Handle(handle.clone());
    if runs_here(this) == Some(false) {
        this.core.push_threadsafe(py, entry)?;
    } else {
        enqueue(this, entry)?;
    }
    Ok(handle.into_object())
}

fn call_soon_threadsafe<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    this.check_closed(this.py())?;
    let ([callback], context) = args.leading()?;
    if this.core.schedule.is_queued_by_method() && !ThreadSafeHandle::class().exists() {
        // So does asyncio until 3.14.
        let handle = call_soon_by_method(this, callback, args, context)?;
        return this
            .object()
            .call_method(this.py(), intern!(this.py(), "_write_to_self"), &[])
            .map(|_| handle);
    }
    if ThreadSafeHandle::class().exists() {
        queue_threadsafe::<ThreadSafeHandle>(this, callback, args, context)
    } else {
        queue_threadsafe::<Handle>(this, callback, args, context)
    }
}

#[inline(always)]
fn queue_threadsafe<'py, T: Reusable>(
    this: ThisLoop<'_, 'py>,
    callback: Object,
    args: Args<'_, 'py>,
    context: Option<Object>,
) -> PyResult<Object> {
    let py = this.py();
    let handle = if this.core.schedule.is_careful() {
        Obj::new(py, T::of(make_handle(this, args.method(), callback, args, 1, context)?))?
    } else {
        match this.core.reuse_last(py, call(this, callback, args, 1, context)?) {
            Ok(handle) => handle,
            Err(call) => Obj::new(py, T::of(Handle::with_traceback(call, None)))?,
        }
    };
    let entry = || T::entry(handle.clone());
    match runs_here(this) {
        Some(true) => {
            enqueue(this, entry)?;
            if this.core.has_overridden_wait() {
                // The caller may be a green thread within the wait.
                this.core.wake();
            }
        }
        Some(false) => this.core.push_threadsafe(this.py(), entry)?,
        None => {
            // A subclass may run iterations without setting `_thread_id`: its wait has to be ended.
            enqueue(this, entry)?;
            this.core.wake();
        }
    }
    if this.overrides.wake.get() {
        this.object().call_method(this.py(), intern!(this.py(), "_write_to_self"), &[])?;
    }
    Ok(handle.into_object())
}

fn call_at_time<'py>(
    this: ThisLoop<'_, 'py>,
    args: Args<'_, 'py>,
    when: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<When>,
) -> PyResult<Object> {
    let py = this.py();
    let ([time, callback], context) = args.leading()?;
    let when = when(&time.bind(py))?;
    this.check_closed(this.py())?;
    // asyncio's call_later() calls call_at(), which is what debug mode's errors name.
    let handle = make_handle(this, "call_at", callback, args, 2, context)?;
    Ok(TimerHandle::schedule(py, when, handle)?.into_object())
}

/// Calls the time() and call_at() of a subclass, as asyncio's call_later() does.
#[cold]
fn call_later_by_methods<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([delay, callback], context) = args.leading()?;
    if delay.is_none() {
        return Err(new_error::<PyTypeError>(py, "delay must not be None"));
    }
    let event_loop = this.object();
    let when = event_loop.call_method(py, intern!(py, "time"), &[])?.bind(py).add(delay.bind(py))?;
    let mut all = vec![Object::from(when), callback];
    all.extend(args.rest(2));
    all.push(context.unwrap_or_else(|| Object::none(py)));
    let names = tuple(py, &[&Object::from(intern!(py, "context"))])?;
    let call_at = Object::from(event_loop.bind(py).getattr(intern!(py, "call_at"))?);
    call_at.call_list(py, &all, Some(&names))
}

fn call_later<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    if this.core.overridden_clock.get() || this.overrides.call_at.get() {
        return call_later_by_methods(this, args);
    }
    let py = this.py();
    call_at_time(this, args, |delay| {
        if delay.is_none() {
            return Err(new_error::<PyTypeError>(delay.py(), "delay must not be None"));
        }
        let now = clock::now();
        if let Ok(delay) = delay.cast_exact::<PyFloat>() {
            return Ok(When { seconds: now + delay.value(), given: None });
        }
        if delay.is_exact_instance_of::<PyInt>() {
            return Ok(When { seconds: now + delay.extract::<f64>()?, given: None });
        }
        // Any number that can be added to a float.
        When::of(&Object::from_float(py, now)?.bind(py).add(delay)?)
    })
}

fn call_at<'py>(this: ThisLoop<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    call_at_time(this, args, |when| {
        if when.is_none() {
            return Err(new_error::<PyTypeError>(when.py(), "when cannot be None"));
        }
        When::of(when)
    })
}

fn time(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    match replaced_clock(this.py())? {
        Some(time) => Ok(time),
        None => Object::from_float(this.py(), clock::now()),
    }
}

/// For subclasses to override. asyncio counts cancelled timers here.
fn timer_handle_cancelled<'py>(this: ThisLoop<'_, 'py>, _: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    Ok(Object::none(this.py()))
}

fn add_callback<'py>(this: ThisLoop<'_, 'py>, handle: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let py = this.py();
    if !handle.getattr(intern!(py, "_cancelled"))?.is_truthy()? {
        let handle = Object::from(handle);
        let entry = match Obj::<Handle>::downcast(&handle) {
            Some(handle) => ReadyEntry::Handle(handle),
            None => ReadyEntry::PythonHandle(handle),
        };
        enqueue(this, || entry)?;
    }
    Ok(Object::none(py))
}

fn write_to_self(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    this.core.wake();
    Ok(Object::none(this.py()))
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method!(any_thread Loop, "call_soon",
            "callback, *args, context=None",
            call_soon,
            "Call callback(*args) in the next iteration of the event loop, in context or else a copy of the \
             current one.\n\nReturn an asyncio.Handle. Not to be called from another thread: see \
             call_soon_threadsafe()."
        ),
        method!(any_thread Loop, "call_soon_threadsafe",
            "callback, *args, context=None",
            call_soon_threadsafe,
            "Like call_soon(), but from any thread."
        ),
        method!(any_thread Loop, "call_later",
            "delay, callback, *args, context=None",
            call_later,
            "Call callback(*args) after delay seconds.\n\nReturn an asyncio.TimerHandle. Callbacks that are due at \
             the same time are called in the order in which they were scheduled."
        ),
        method!(any_thread Loop, "call_at",
            "when, callback, *args, context=None",
            call_at,
            "Like call_later(), but when is a time of the event loop's clock."
        ),
        method0!(any_thread Loop, "time",
            time,
            "Return the time of the event loop's clock, in seconds: time.monotonic()."
        ),
        method1!(any_thread Loop, "_add_callback", "handle", add_callback, "Queue a handle."),
        method!(any_thread Loop, "_call_soon",
            "callback, args, context",
            queue,
            "Queue a callback, with its arguments in a tuple."
        ),
        method1!(any_thread Loop, "_timer_handle_cancelled",
            "handle",
            timer_handle_cancelled,
            "Called when a timer is cancelled."
        ),
        method0!(any_thread Loop, "_write_to_self", write_to_self, "Wake the event loop if it is asleep."),
    ]
}
