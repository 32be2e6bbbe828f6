//! The queues as asyncio has them, `_ready` and `_scheduled`, for programs that look into them or run iterations of their own.

use pyo3::Borrowed;
use pyo3::ffi::PyMethodDef;
use pyo3::prelude::*;

use super::{Loop, ThisLoop};
use crate::core::ReadyEntry;
use crate::cpython::arguments::Arguments;
use crate::cpython::class::{self, Class, Definition, Native, Obj, This, Visitor};
use crate::cpython::errors::no_memory;
use crate::cpython::module::add;
use crate::cpython::object::{Object, copy_context, tuple_of};
use crate::cpython::ownership::Owner;
use crate::cpython::statics;
use crate::handle::{Call, Handle, TimerHandle};
use crate::intern;
use crate::{method0, method1};

/// An entry that has no handle, as the callback of the handle that is made for it.
struct Entry {
    event_loop: Obj<Loop>,
    ready: ReadyEntry,
}

impl Native for Entry {
    fn class() -> &'static Class {
        &statics::ENTRY
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(self.event_loop.as_object());
        visitor.object(self.ready.object());
    }

    /// Nothing: what it refers to breaks the cycles.
    fn clear(&self) {}

    fn owner(&self) -> Option<&Owner> {
        Some(&self.event_loop.core.owner)
    }
}

fn run(this: This<'_, '_, Entry>) -> PyResult<Object> {
    this.ready.run_outlined(this.py(), this.event_loop.as_object())?;
    Ok(Object::none(this.py()))
}

/// The handle of an entry, or a new one that runs it.
fn to_handle(this: ThisLoop<'_, '_>, entry: ReadyEntry) -> PyResult<Object> {
    let py = this.py();
    match entry {
        ReadyEntry::Task(step) => Ok(step.handle(py, this.as_any())?.into_object()),
        ReadyEntry::Step(..) | ReadyEntry::Event(..) | ReadyEntry::Finalize(..) => {
            let entry = Obj::new(py, Entry { event_loop: this.obj(), ready: entry })?;
            let call = Call {
                callback: entry.as_object().bind(py).getattr(intern!(py, "run"))?.into(),
                arguments: Arguments::None,
                context: copy_context(py)?,
                event_loop: this.obj(),
            };
            Ok(Obj::new(py, Handle::with_traceback(call, None))?.into_object())
        }
        entry => Ok(entry.object().clone()),
    }
}

fn ready_handles(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let entries = this.core.ready_entries(this.py(), &this.object())?;
    let handles: PyResult<Vec<_>> = entries.into_iter().map(|entry| to_handle(this, entry)).collect();
    tuple_of(this.py(), handles?.iter())
}

fn pop_ready(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    match this.core.pop_ready(this.py(), &this.object())? {
        Some(entry) => to_handle(this, entry),
        None => Ok(Object::none(this.py())),
    }
}

fn timer_handles(this: ThisLoop<'_, '_>) -> PyResult<Object> {
    let mut timers = Vec::new();
    let scheduled = this.core.schedule.timers.borrow();
    if timers.try_reserve(scheduled.len()).is_err() {
        drop(scheduled);
        return Err(no_memory(this.py()));
    }
    timers.extend(scheduled.iter().cloned());
    drop(scheduled);
    timers.sort_by(|one, other| one.when().total_cmp(&other.when()));
    tuple_of(this.py(), timers.iter().map(Obj::as_object))
}

fn make_ready<'py>(this: ThisLoop<'_, 'py>, timer: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let py = this.py();
    if let Some(timer) = Obj::<TimerHandle>::downcast(&Object::from(timer))
        && timer.is_scheduled()
    {
        this.core.push_new(py, || ReadyEntry::Timer(timer.clone()))?;
        timer.take_out();
    }
    Ok(Object::none(py))
}

pub fn methods() -> Vec<PyMethodDef> {
    vec![
        method0!(Loop, "_ready_handles", ready_handles, "Return the handles of what is ready to be run."),
        method0!(
            Loop,
            "_pop_ready",
            pop_ready,
            "Take out the first of them, and return it; None if there is none."
        ),
        method0!(Loop, "_timer_handles", timer_handles, "Return the timers, the next one first."),
        method1!(
            Loop,
            "_make_ready",
            "timer",
            make_ready,
            "Have a timer run with what is ready, unless it has been taken out of the timers."
        ),
    ]
}

/// Makes the class of what stands for entries.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let definition = Definition {
        name: c"hotloop._core.Entry",
        doc: c"What is ready to be run and has no handle.",
        base: module.py().get_type::<PyAny>(),
        methods: vec![method0!(Entry, "run", run, "Run it.")],
        attributes: Vec::new(),
        slots: Vec::new(),
        open: false,
    };
    add(module, "Entry", class::make::<Entry>(definition)?)
}
