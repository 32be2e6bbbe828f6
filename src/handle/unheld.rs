//! Callbacks of call_soon_threadsafe() of which nobody has the handle.
//!
//! A thread that schedules callbacks by the thousand before the loop runs one drops their handles. When it schedules the next, the handle
//! of the last one becomes that of the next, if the queue alone has it. What is left of the last one takes a fraction of the memory, which
//! the collector does not look at. A handle is made anew where the program or a report needs one.
//!
//! Only with the GIL: without, another thread may just be about to take a reference to a handle of which the queue has the only one.

use pyo3::Borrowed;
use pyo3::prelude::*;

use super::{Call, Handle, ThreadSafeHandle, reraise_fatal};
use crate::core::ReadyEntry;
use crate::cpython::arguments::Arguments;
use crate::cpython::class::{Native, Obj, Visitor};
use crate::cpython::object::{Object, run_in_context};
use crate::event_loop::Loop;
use crate::imports::imports;

/// A class of handles that call_soon_threadsafe() makes.
pub trait Reusable: Native {
    fn of(handle: Handle) -> Self;
    fn handle_mut(&mut self) -> &mut Handle;
    fn entry(this: Obj<Self>) -> ReadyEntry;
    fn in_entry(entry: &mut ReadyEntry) -> Option<&mut Obj<Self>>;
}

impl Reusable for Handle {
    fn of(handle: Handle) -> Handle {
        handle
    }

    fn handle_mut(&mut self) -> &mut Handle {
        self
    }

    fn entry(this: Obj<Handle>) -> ReadyEntry {
        ReadyEntry::Handle(this)
    }

    fn in_entry(entry: &mut ReadyEntry) -> Option<&mut Obj<Handle>> {
        if let ReadyEntry::Handle(handle) = entry { Some(handle) } else { None }
    }
}

#[derive(Clone)]
pub struct Unheld {
    pub callback: Object,
    argument: Option<Object>,
    pub context: Object,
}

impl Unheld {
    /// Makes the handle of a queued callback that of another one, and leaves in the queue what is left of the former. Returns the handle,
    /// and the former's event loop, to be dropped where Python code can run; or the call, if the handle is needed.
    #[inline(always)]
    pub fn reuse<T: Reusable>(entry: &mut ReadyEntry, next: Call) -> Result<(Obj<T>, Obj<Loop>), Call> {
        let Some(object) = T::in_entry(entry) else { return Err(next) };
        let Some(handle) = object.get_mut().map(T::handle_mut) else { return Err(next) };
        if handle.is_cancelled() || handle.source_traceback.is_some() || !handle.arguments.is_one_at_most() {
            return Err(next);
        }
        let Some(callback) = handle.callback.take() else { return Err(next) };
        handle.callback.set(Some(next.callback));
        let argument = match handle.arguments.replace(next.arguments) {
            Arguments::One(argument) => Some(argument),
            _ => None,
        };
        let context = std::mem::replace(&mut handle.context, next.context);
        let event_loop = std::mem::replace(&mut handle.event_loop, next.event_loop);
        let object = object.clone();
        *entry = ReadyEntry::Unheld(Unheld { callback, argument, context });
        Ok((object, event_loop))
    }

    fn arguments(&self) -> Arguments {
        self.argument.clone().map_or(Arguments::None, Arguments::One)
    }

    pub fn run(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        let arguments = self.arguments();
        match run_in_context(py, &self.context, || arguments.call(py, &self.callback)) {
            Ok(_) => Ok(()),
            Err(error) => self.report(py, error, event_loop),
        }
    }

    #[cold]
    fn report(&self, py: Python<'_>, error: PyErr, event_loop: &Object) -> PyResult<()> {
        let exception = reraise_fatal(py, error)?;
        let imports = imports(py)?;
        let reported = match self.with_handle(py, event_loop.bind(py)) {
            Ok(entry) => imports.report_handle.call(py, &[entry.object(), &exception]),
            // Without memory for a handle.
            Err(_) => imports.report_entry.call(py, &[event_loop, &self.callback, &exception]),
        };
        reported.map(drop)
    }

    /// The entry of a handle as call_soon_threadsafe() has made it.
    #[cold]
    pub fn with_handle(&self, py: Python<'_>, event_loop: Borrowed<'_, '_, PyAny>) -> PyResult<ReadyEntry> {
        let call = Call {
            callback: self.callback.clone(),
            arguments: self.arguments(),
            context: self.context.clone(),
            event_loop: Obj::of(event_loop)?,
        };
        let handle = Handle::with_traceback(call, None);
        Ok(if ThreadSafeHandle::class().exists() {
            ReadyEntry::ThreadSafe(Obj::new(py, ThreadSafeHandle::new(handle))?)
        } else {
            ReadyEntry::Handle(Obj::new(py, handle)?)
        })
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(&self.callback);
        visitor.optional(&self.argument);
        visitor.object(&self.context);
    }
}
