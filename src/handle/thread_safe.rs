//! Handles that other threads may cancel, as asyncio has them from 3.14 on.

use pyo3::prelude::*;

use super::Handle;
use super::class::AsHandle;
use super::unheld::Reusable;
use crate::core::ReadyEntry;
use crate::cpython::class::{Class, Native, Obj, This, Visitor};
use crate::cpython::object::{Object, thread_ident};
use crate::cpython::statics;
use crate::reactor::run_lock::{Run, RunLock};

/// Another thread that asks for its state or cancels it waits while the callback runs.
pub struct ThreadSafeHandle {
    handle: Handle,
    running: RunLock,
}

/// Keeps other threads from the callback, waiting until it does not run in another one. The error is what a signal's handler raised
/// meanwhile.
fn hold<'lock>(running: &'lock RunLock, py: Python<'_>) -> PyResult<Run<'lock>> {
    let thread = thread_ident();
    loop {
        if let Some(run) = running.try_begin(thread) {
            return Ok(run);
        }
        py.detach(|| running.wait(thread));
        py.check_signals()?;
    }
}

impl ThreadSafeHandle {
    pub fn new(handle: Handle) -> ThreadSafeHandle {
        ThreadSafeHandle { handle, running: RunLock::default() }
    }

    pub fn is_cancelled(&self) -> bool {
        self.handle.is_cancelled()
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub fn run(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        let (running, thread) = (&self.running, thread_ident());
        let _run = loop {
            match running.try_begin(thread) {
                Some(run) => break run,
                None => py.detach(|| running.wait(thread)),
            }
        };
        self.handle.run(py, this)
    }
}

impl Native for ThreadSafeHandle {
    fn class() -> &'static Class {
        &statics::THREAD_SAFE_HANDLE
    }

    fn traverse(&self, visitor: &mut Visitor) {
        self.handle.traverse(visitor);
    }

    fn clear(&self) {
        self.handle.clear();
    }
}

impl Reusable for ThreadSafeHandle {
    fn of(handle: Handle) -> ThreadSafeHandle {
        ThreadSafeHandle::new(handle)
    }

    fn handle_mut(&mut self) -> &mut Handle {
        &mut self.handle
    }

    fn entry(this: Obj<ThreadSafeHandle>) -> ReadyEntry {
        ReadyEntry::ThreadSafe(this)
    }

    fn in_entry(entry: &mut ReadyEntry) -> Option<&mut Obj<ThreadSafeHandle>> {
        if let ReadyEntry::ThreadSafe(handle) = entry { Some(handle) } else { None }
    }
}

impl AsHandle for ThreadSafeHandle {
    fn as_handle(&self) -> &Handle {
        &self.handle
    }

    fn copy(this: This<'_, '_, Self>) -> ThreadSafeHandle {
        ThreadSafeHandle::new(this.handle.copy(this))
    }

    fn cancel(this: This<'_, '_, Self>) -> PyResult<()> {
        let _run = hold(&this.get().running, this.py())?;
        this.handle.cancel_as(this, true)
    }

    fn is_cancelled(this: This<'_, '_, Self>) -> PyResult<bool> {
        drop(hold(&this.running, this.py())?);
        Ok(this.handle.is_cancelled())
    }

    fn run(this: This<'_, '_, Self>) -> PyResult<()> {
        this.get().run(this.py(), &this.object())
    }
}
