//! Which methods of the event loop are overridden, and which functions that asyncio's loop calls the program has patched.
//!
//! They are found out when a loop is made, when one of its attributes is set and when it begins to run, and kept as flags. Since
//! CPython 3.12, patches are also noticed while a loop runs.
//!
//! Any thread may set a flag: each is an atomic of its own.

use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{Borrowed, ffi};

use super::{CONNECTING, Loop, ThisLoop};
use crate::cpython::class;
use crate::cpython::methods::guard;
use crate::cpython::namespace::{self, Name};
use crate::cpython::object::{Object, dict_item};
use crate::imports::imports;
#[cfg(Py_3_12)]
use crate::imports::{FUTURE_IS_ORIGINAL, TASK_IS_ORIGINAL};
use crate::intern;
use crate::reactor::published::Published;
use crate::transports::SOCKETS_ARE_PATCHED;

/// Whether these methods of a loop are overridden.
#[derive(Default)]
pub struct Overrides {
    time: Published<bool>,
    pub call_at: Published<bool>,
    /// Then the program may use what it returns for a task's steps.
    pub call_soon: Published<bool>,
    /// `_write_to_self()`, which call_soon_threadsafe() calls then.
    pub wake: Published<bool>,
}

/// Their names, and those of the methods whose overriding is noted in [`crate::handle::Schedule`].
const NAMES: [&str; 6] =
    ["time", "call_at", "call_soon", "_call_soon", "_write_to_self", "_timer_handle_cancelled"];

/// Whether the program has replaced time.monotonic(), the clock of asyncio's loop.
static CLOCK_IS_REPLACED: AtomicBool = AtomicBool::new(false);

/// Methods of sockets that asyncio's transports call, and socket.socket inherits from a class in C.
const OF_SOCKETS: [&CStr; 6] = [c"recv", c"recv_into", c"send", c"sendmsg", c"recvfrom", c"sendto"];

/// The time by the program's time.monotonic(); None if it is not replaced.
pub fn replaced_clock(py: Python<'_>) -> PyResult<Option<Object>> {
    if CLOCK_IS_REPLACED.load(Relaxed) { ask_replaced_clock(py).map(Some) } else { Ok(None) }
}

#[cold]
fn ask_replaced_clock(py: Python<'_>) -> PyResult<Object> {
    dict_item(py, &imports(py)?.time, intern!(py, "monotonic"))?.call(py, &[])
}

impl Loop {
    /// Notes which methods are overridden, by a class or by the attributes of an instance.
    pub(super) fn note_overrides(
        &self,
        class: &Bound<'_, PyAny>,
        attributes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let ours = class::class_of::<Loop>(class.py());
        let is_overridden = |name: &str| -> PyResult<bool> {
            let name = Object::from_str(class.py(), name)?;
            let name = name.bind(class.py());
            if let Some(attributes) = attributes
                && attributes.contains(name)?
            {
                return Ok(true);
            }
            let name = name.cast::<PyString>()?;
            Ok(!class.getattr(name)?.is(&ours.getattr(name)?))
        };
        let [time, call_at, call_soon, queue, wake, timer_cancelled] = NAMES;
        let overrides = &self.overrides;
        overrides.time.set(is_overridden(time)?);
        overrides.call_at.set(is_overridden(call_at)?);
        overrides.call_soon.set(is_overridden(call_soon)?);
        self.core.schedule.set_queued_by_method(is_overridden(queue)?);
        overrides.wake.set(is_overridden(wake)?);
        self.core.schedule.tell_cancelled.set(is_overridden(timer_cancelled)?);
        self.note_clock();
        Ok(())
    }

    /// Notes which functions that asyncio's loop calls are patched.
    pub(super) fn note_patches(&self, py: Python<'_>) -> PyResult<()> {
        let imports = imports(py)?;
        let monotonic = dict_item(py, &imports.time, intern!(py, "monotonic"))?;
        CLOCK_IS_REPLACED.store(!monotonic.is(&imports.original_monotonic), Relaxed);
        self.note_clock();
        let run = imports.handle_class.bind(py).getattr(intern!(py, "_run"))?;
        self.core.schedule.set_by_method(!run.is(imports.original_run.bind(py)));
        let of_sockets = imports.socket.bind(py).getattr(intern!(py, "__dict__"))?;
        let mut patched = !dict_item(py, &imports.socket_module, intern!(py, "socket"))?.is(&imports.socket);
        for name in OF_SOCKETS {
            let name = Object::from_str(py, &name.to_string_lossy())?;
            patched |= of_sockets.contains(name.bind(py))?;
        }
        SOCKETS_ARE_PATCHED.store(patched, Relaxed);
        Ok(())
    }

    fn note_clock(&self) {
        self.core.overridden_clock.set(self.overrides.time.get() || CLOCK_IS_REPLACED.load(Relaxed));
    }
}

/// Notes everything when a run begins.
pub fn note(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    note_all_overrides(this)?;
    this.note_patches(this.py())?;
    Ok(Object::none(this.py()))
}

fn note_all_overrides(this: ThisLoop<'_, '_>) -> PyResult<()> {
    let attributes = this.as_any().getattr(intern!(this.py(), "__dict__"))?;
    this.note_overrides(this.as_any().get_type().as_any(), Some(&attributes))
}

/// `tp_setattr` of the class: notes when the program replaces a method of an instance, as test suites do.
pub unsafe extern "C" fn set_attribute(
    instance: *mut ffi::PyObject,
    name: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
) -> c_int {
    // SAFETY: this is tp_setattro, called with an instance of the class.
    unsafe {
        if ffi::PyObject_GenericSetAttr(instance, name, value) < 0 {
            return -1;
        }
        guard(-1, |py| {
            let name = Borrowed::from_ptr(py, name);
            let text = name.cast::<PyString>()?;
            let Ok(name) = text.to_str() else { return Ok(0) };
            let this = ThisLoop::new(Borrowed::from_ptr(py, instance));
            if CONNECTING.contains(&name) {
                this.replaces_connecting.set(true);
            }
            if NAMES.contains(&name) || name == "__class__" {
                note_all_overrides(this)?;
            }
            Ok(0)
        })
    }
}

/// Has the running loop of a thread notice when the thread patches something.
pub fn watch_patches(py: Python<'_>) -> PyResult<()> {
    let imports = imports(py)?;
    namespace::watch(&imports.time, changing);
    namespace::watch_class(py, &imports.handle_class, changing);
    namespace::watch_class(py, &imports.socket, changing);
    imports.watch_classes(py, changing)?;
    Ok(())
}

#[cfg(not(Py_3_12))]
fn changing(_py: Python<'_>, _name: Name<'_>, _value: Option<&Object>) {}

#[cfg(Py_3_12)]
fn changing(py: Python<'_>, name: Name<'_>, value: Option<&Object>) {
    if value.is_some() && OF_SOCKETS.iter().any(|method| name.is(method)) {
        // When a patch is removed is noticed when a loop begins to run.
        SOCKETS_ARE_PATCHED.store(true, Relaxed);
        return;
    }
    if name.is(c"Task") || name.is(c"Future") {
        // It is looked up from now on.
        TASK_IS_ORIGINAL.store(false, Relaxed);
        FUTURE_IS_ORIGINAL.store(false, Relaxed);
        return;
    }
    let is_clock = name.is(c"monotonic");
    if !is_clock && !name.is(c"_run") {
        return;
    }
    let Ok(imports) = imports(py) else { return };
    let original = if is_clock { &imports.original_monotonic } else { &imports.original_run };
    let is_replaced = value.is_none_or(|value| !value.is(original));
    if is_clock {
        CLOCK_IS_REPLACED.store(is_replaced, Relaxed);
    }
    let Ok(running) = imports.running_loop(py) else { return };
    let Some(event_loop) = class::Obj::<Loop>::downcast(&running) else { return };
    if is_clock {
        event_loop.note_clock();
    } else {
        event_loop.core.schedule.set_by_method(is_replaced);
    }
}
