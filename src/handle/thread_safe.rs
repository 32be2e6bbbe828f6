//! Handles that other threads may cancel, as asyncio has them from 3.14 on.

use pyo3::prelude::*;

use super::Handle;
use super::class::AsHandle;
use crate::cpython::class::{Class, Native, This, Visitor};
use crate::cpython::object::{Object, thread_ident};
use crate::cpython::statics;
use crate::reactor::run_lock::RunLock;

/// Another thread that asks for its state or cancels it waits while the callback runs.
pub struct ThreadSafeHandle {
    handle: Handle,
    running: RunLock,
}

/// Waits until the callback does not run in another thread. The error is what a signal's handler raised meanwhile.
///
/// GIL: no thread can begin to run the callback before the caller releases it.
fn wait(running: &RunLock, py: Python<'_>) -> PyResult<()> {
    let thread = thread_ident();
    while running.is_elsewhere(thread) {
        py.detach(|| running.wait(thread));
        py.check_signals()?;
    }
    Ok(())
}

impl ThreadSafeHandle {
    pub fn new(handle: Handle) -> ThreadSafeHandle {
        ThreadSafeHandle { handle, running: RunLock::default() }
    }

    pub fn is_cancelled(&self) -> bool {
        self.handle.is_cancelled()
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
        self.handle.discard();
    }
}

impl AsHandle for ThreadSafeHandle {
    fn as_handle(&self) -> &Handle {
        &self.handle
    }

    fn copy(&self) -> ThreadSafeHandle {
        ThreadSafeHandle::new(self.handle.copy())
    }

    fn cancel(this: This<'_, '_, Self>) -> PyResult<()> {
        wait(&this.running, this.py())?;
        this.get().handle.cancel_as(this.py(), &this.object())
    }

    fn is_cancelled(this: This<'_, '_, Self>) -> PyResult<bool> {
        wait(&this.running, this.py())?;
        Ok(this.handle.is_cancelled())
    }

    fn run(this: This<'_, '_, Self>) -> PyResult<()> {
        this.get().run(this.py(), &this.object())
    }
}
