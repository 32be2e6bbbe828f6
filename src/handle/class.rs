//! The Python classes of handles: cancel(), cancelled(), when(), and the attributes that asyncio's repr() reads.

use pyo3::prelude::*;
use pyo3::types::PyType;

use super::{Handle, ThreadSafeHandle, TimerHandle, take_out_step};
use crate::core::ReadyEntry;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{self, Definition, Native, Obj, This};
use crate::cpython::module::{add, import};
use crate::cpython::object::{Object, boolean};
use crate::intern;
use crate::reactor::published::Published;
use crate::{attribute, method0};

/// A class that has a handle's attributes and methods.
pub(super) trait AsHandle: Native {
    fn as_handle(&self) -> &Handle;

    fn cancel(this: This<'_, '_, Self>) -> PyResult<()>;

    fn is_cancelled(this: This<'_, '_, Self>) -> PyResult<bool> {
        Ok(this.as_handle().is_cancelled())
    }

    fn run(this: This<'_, '_, Self>) -> PyResult<()> {
        this.as_handle().run_anywhere(this)
    }

    fn copy(this: This<'_, '_, Self>) -> Self;
}

impl AsHandle for Handle {
    fn as_handle(&self) -> &Handle {
        self
    }

    fn copy(this: This<'_, '_, Self>) -> Handle {
        Handle::copy(&this, this)
    }

    fn cancel(this: This<'_, '_, Self>) -> PyResult<()> {
        this.cancel_as(this, false)
    }
}

impl AsHandle for TimerHandle {
    fn as_handle(&self) -> &Handle {
        &self.handle
    }

    /// The copy is not one of the event loop's timers.
    fn copy(this: This<'_, '_, Self>) -> TimerHandle {
        let (when, given) = (this.when, this.given.clone());
        TimerHandle { handle: this.handle.copy(this), when, given, key: Published::new(None) }
    }

    fn cancel(this: This<'_, '_, Self>) -> PyResult<()> {
        let py = this.py();
        let core = this.core();
        if core.schedule.tell_cancelled.get() && !this.handle.is_cancelled() {
            let event_loop = this.handle.event_loop.as_object();
            event_loop.call_method(py, intern!(py, "_timer_handle_cancelled"), &[&this.object()])?;
        }
        match core.owner.try_enter() {
            Some(_entered) => this.take_out_cancelled(),
            None if this.handle.is_cancelled() => return Ok(()),
            None => {
                // Without memory to tell the loop, the timer stays with it until it is due.
                let _ = core.push_threadsafe(py, || ReadyEntry::Step(BoundMethod::new(this, take_out_step)));
            }
        }
        this.handle.cancel_as(this, false)
    }
}

/// The definition of a class that has a handle's attributes and methods.
macro_rules! definition {
    ($native:ty, $name:literal, $doc:expr, $base:expr) => {
        Definition {
            name: $name,
            doc: $doc,
            base: $base,
            methods: vec![
                method0!(
                    $native,
                    "cancel",
                    |this| {
                        <$native as AsHandle>::cancel(this)?;
                        Ok(Object::none(this.py()))
                    },
                    "Cancel the callback: it is never called. Cancelling twice has no effect."
                ),
                method0!(
                    $native,
                    "cancelled",
                    |this| Ok(boolean(this.py(), <$native as AsHandle>::is_cancelled(this)?)),
                    "Return True if the callback was cancelled."
                ),
                method0!(
                    $native,
                    "_run",
                    |this| {
                        <$native as AsHandle>::run(this)?;
                        Ok(Object::none(this.py()))
                    },
                    "Run the callback in its context."
                ),
                method0!(
                    $native,
                    "__copy__",
                    |this| Ok(Obj::new(this.py(), AsHandle::copy(this))?.into_object()),
                    "Return a handle of its own, which the event loop does not know."
                ),
            ],
            attributes: vec![
                attribute!($native, "_callback", |this| Ok(or_none(
                    this.py(),
                    this.as_handle().callback(this)
                ))),
                attribute!($native, "_args", |this| this.as_handle().arguments_or_none(this)),
                attribute!($native, "_cancelled", |this| Ok(boolean(
                    this.py(),
                    this.as_handle().is_cancelled()
                ))),
                attribute!($native, "_loop", |this| Ok(this.as_handle().event_loop.as_object().clone())),
                attribute!($native, "_context", |this| Ok(this.as_handle().context.clone())),
                attribute!($native, "_source_traceback", |this| {
                    Ok(or_none(this.py(), this.as_handle().source_traceback.clone()))
                }),
                attribute!($native, "_repr", |this| Ok(or_none(this.py(), this.as_handle().kept_repr(this)))),
            ],
            slots: Vec::new(),
            open: false,
        }
    };
}

fn or_none(py: Python<'_>, object: Option<Object>) -> Object {
    object.unwrap_or_else(|| Object::none(py))
}

/// Makes the classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let asyncio = import(py, "asyncio")?;
    let handle = asyncio.getattr(intern!(py, "Handle"))?.cast_into::<PyType>()?;
    let handle =
        definition!(Handle, c"hotloop._core.Handle", c"A scheduled callback: asyncio.Handle.", handle);
    add(module, "Handle", class::make::<Handle>(handle)?)?;

    // Its base exists since Python 3.14.
    if let Ok(base) = import(py, "asyncio.events")?.getattr(intern!(py, "_ThreadSafeHandle")) {
        let doc = c"A callback that other threads may cancel: what call_soon_threadsafe() returns.";
        let handle = definition!(
            ThreadSafeHandle,
            c"hotloop._core._ThreadSafeHandle",
            doc,
            base.cast_into::<PyType>()?
        );
        add(module, "_ThreadSafeHandle", class::make::<ThreadSafeHandle>(handle)?)?;
    }

    let timer = asyncio.getattr(intern!(py, "TimerHandle"))?.cast_into::<PyType>()?;
    let mut timer = definition!(
        TimerHandle,
        c"hotloop._core.TimerHandle",
        c"A callback that is due at a time: asyncio.TimerHandle.",
        timer
    );
    timer.methods.push(method0!(
        TimerHandle,
        "when",
        |this| this.given(this.py()),
        "Return the time at which the callback is due, in seconds of the event loop's clock."
    ));
    timer.attributes.push(attribute!(TimerHandle, "_when", |this| this.given(this.py())));
    timer
        .attributes
        .push(attribute!(TimerHandle, "_scheduled", |this| { Ok(boolean(this.py(), this.is_scheduled())) }));
    add(module, "TimerHandle", class::make::<TimerHandle>(timer)?)
}
