//! Callbacks of call_soon_threadsafe() of which nobody has the handle.
//!
//! A thread that schedules callbacks by the thousand before the loop runs one drops their handles. When it schedules the next, the handle
//! of the last one is taken apart if the queue alone has it. What is left takes a fraction of the memory, which the collector does not
//! look at, and the next handle is made of the memory of that one. A handle is made anew where the program or a report needs one.

use pyo3::Borrowed;
use pyo3::prelude::*;

use super::{Call, Handle, ThreadSafeHandle, reraise_fatal};
use crate::core::ReadyEntry;
use crate::cpython::arguments::Arguments;
use crate::cpython::class::{Native, Obj, Visitor};
use crate::cpython::object::{Object, run_in_context};
use crate::imports::imports;

#[derive(Clone)]
pub struct Unheld {
    pub callback: Object,
    argument: Option<Object>,
    pub context: Object,
}

impl Unheld {
    /// What is left of a callback that was queued by call_soon_threadsafe(); None if its handle is needed. The thread has the GIL.
    pub fn of(entry: &ReadyEntry) -> Option<Unheld> {
        match entry {
            ReadyEntry::ThreadSafe(handle) if handle.is_ours_alone() => Unheld::of_handle(handle.handle()),
            ReadyEntry::Handle(handle) if !ThreadSafeHandle::class().exists() && handle.is_ours_alone() => {
                Unheld::of_handle(handle)
            }
            _ => None,
        }
    }

    fn of_handle(handle: &Handle) -> Option<Unheld> {
        if handle.is_cancelled() || handle.source_traceback.is_some() {
            return None;
        }
        let argument = handle.arguments.single()?;
        Some(Unheld { callback: handle.callback.get()?, argument, context: handle.context.clone() })
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
