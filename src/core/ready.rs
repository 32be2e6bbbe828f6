//! The entries of the ready queue.

use pyo3::prelude::*;

use crate::cpython::class::{Obj, Visitor};
use crate::cpython::object::Object;
use crate::handle::{Handle, TaskStep, ThreadSafeHandle, TimerHandle};
use crate::imports::imports;
use crate::intern;
use crate::reactor::clock;

/// A step of something that belongs to the event loop, called with the object that it was queued for.
pub type Step = fn(Python<'_>, &Object) -> PyResult<()>;

/// What to do when a watched descriptor is ready.
pub type OnReady = fn(Python<'_>, &Object, Readiness) -> PyResult<()>;

#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
}

/// An entry of the ready queue.
#[derive(Clone)]
pub enum ReadyEntry {
    Handle(Obj<Handle>),
    Timer(Obj<TimerHandle>),
    ThreadSafe(Obj<ThreadSafeHandle>),
    /// An asyncio.Handle that is not of our making.
    PythonHandle(Object),
    /// A step of a task, which nobody can have a handle of.
    Task(TaskStep),
    Step(Object, Step),
    Event(Object, OnReady, Readiness),
}

impl ReadyEntry {
    pub fn run(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        match self {
            // One that is being cancelled may still have its callback, while repr() says what it was.
            ReadyEntry::Handle(handle) if handle.is_cancelled() => Ok(()),
            ReadyEntry::Handle(handle) => handle.run(py, handle.as_object()),
            ReadyEntry::Timer(timer) if timer.handle().is_cancelled() => Ok(()),
            ReadyEntry::Timer(timer) => timer.handle().run(py, timer.as_object()),
            ReadyEntry::ThreadSafe(handle) if handle.is_cancelled() => Ok(()),
            ReadyEntry::ThreadSafe(handle) => handle.run(py, handle.as_object()),
            ReadyEntry::Task(step) => step.run(py, event_loop),
            ReadyEntry::PythonHandle(handle) => run_python_handle(py, handle),
            ReadyEntry::Step(object, step) => step(py, object),
            ReadyEntry::Event(object, on_ready, readiness) => on_ready(py, object, *readiness),
        }
    }

    /// Runs in debug mode: callbacks that take long are logged.
    pub(super) fn run_watched(&self, py: Python<'_>, event_loop: &Object, by_method: bool) -> PyResult<()> {
        let handle = if self.is_handle() { self.object().clone() } else { Object::none(py) };
        event_loop.bind(py).setattr(intern!(py, "_current_handle"), handle.bind(py))?;
        let start = clock::now();
        let result = if by_method { self.run_by_method(py, event_loop) } else { self.run(py, event_loop) };
        let duration = clock::now() - start;
        let reset = event_loop.bind(py).setattr(intern!(py, "_current_handle"), py.None());
        // What the callback raised can be SystemExit or KeyboardInterrupt: nothing may come before it.
        result.and(reset)?;
        let duration = Object::from_float(py, duration)?;
        imports(py)?.report_slow.call(py, &[event_loop, self.object(), &duration]).map(drop)
    }

    /// Runs a handle by asyncio.Handle's `_run()`, in whose place the program has put its own.
    pub(super) fn run_by_method(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        match self {
            ReadyEntry::Handle(handle) if handle.is_cancelled() => Ok(()),
            ReadyEntry::Timer(timer) if timer.handle().is_cancelled() => Ok(()),
            ReadyEntry::ThreadSafe(handle) if handle.is_cancelled() => Ok(()),
            ReadyEntry::Task(step) => run_as_method(py, step.handle(py, event_loop)?.as_object()),
            ReadyEntry::Handle(_) | ReadyEntry::Timer(_) | ReadyEntry::ThreadSafe(_) => {
                run_as_method(py, self.object())
            }
            ReadyEntry::PythonHandle(_) | ReadyEntry::Step(..) | ReadyEntry::Event(..) => {
                self.run(py, event_loop)
            }
        }
    }

    /// The handle, or the object that the step or event is for.
    pub fn object(&self) -> &Object {
        match self {
            ReadyEntry::Handle(handle) => handle.as_object(),
            ReadyEntry::Timer(timer) => timer.as_object(),
            ReadyEntry::ThreadSafe(handle) => handle.as_object(),
            ReadyEntry::Task(step) => &step.callback,
            ReadyEntry::PythonHandle(object)
            | ReadyEntry::Step(object, _)
            | ReadyEntry::Event(object, ..) => object,
        }
    }

    pub(super) fn traverse(&self, visitor: &mut Visitor) {
        match self {
            ReadyEntry::Task(step) => step.traverse(visitor),
            entry => visitor.object(entry.object()),
        }
    }

    fn is_handle(&self) -> bool {
        matches!(
            self,
            ReadyEntry::Handle(_)
                | ReadyEntry::Timer(_)
                | ReadyEntry::ThreadSafe(_)
                | ReadyEntry::PythonHandle(_)
        )
    }
}

/// Runs a handle of ours by what asyncio.Handle has for that.
fn run_as_method(py: Python<'_>, handle: &Object) -> PyResult<()> {
    let run = imports(py)?.handle_class.bind(py).getattr(intern!(py, "_run"))?;
    Object::from(run).call(py, &[handle]).map(drop)
}

/// Runs an asyncio.Handle, which does not itself see to it that it is not cancelled.
fn run_python_handle(py: Python<'_>, handle: &Object) -> PyResult<()> {
    if handle.bind(py).getattr(intern!(py, "_cancelled"))?.is_truthy()? {
        return Ok(());
    }
    handle.call_method(py, intern!(py, "_run"), &[]).map(drop)
}
