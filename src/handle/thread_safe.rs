//! Handles that other threads may cancel.

use std::sync::{Condvar, Mutex, MutexGuard};

use pyo3::prelude::*;

use super::Handle;
use super::class::AsHandle;
use crate::cpython::class::{Class, Native, This, Visitor};
use crate::cpython::object::{Object, thread_ident};

/// A callback that other threads may cancel, as asyncio has them from 3.14 on: while it runs, its state cannot be
/// asked or changed from another thread, which waits until it is done.
pub struct ThreadSafeHandle {
    handle: Handle,
    running: RunLock,
}

#[derive(Default)]
struct RunLock {
    state: Mutex<RunState>,
    done: Condvar,
}

#[derive(Default)]
struct RunState {
    /// The thread in which the callback runs.
    thread: Option<u64>,
    waiters: u32,
}

impl RunLock {
    fn state(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until the callback does not run in another thread.
    fn wait(&self, py: Python<'_>) {
        let is_elsewhere = |state: &RunState| state.thread.is_some_and(|thread| thread != thread_ident());
        if !is_elsewhere(&self.state()) {
            return;
        }
        py.detach(|| {
            let mut state = self.state();
            state.waiters += 1;
            while is_elsewhere(&state) {
                state = self.done.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            state.waiters -= 1;
        });
    }
}

impl ThreadSafeHandle {
    pub fn new(handle: Handle) -> ThreadSafeHandle {
        ThreadSafeHandle { handle, running: RunLock::default() }
    }

    pub fn run(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        self.running.wait(py);
        self.running.state().thread = Some(thread_ident());
        let result = self.handle.run(py, this);
        let mut state = self.running.state();
        state.thread = None;
        if state.waiters > 0 {
            self.running.done.notify_all();
        }
        result
    }
}

impl Native for ThreadSafeHandle {
    fn class() -> &'static Class {
        static CLASS: Class = Class::new(256);
        &CLASS
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
        this.running.wait(this.py());
        this.get().handle.cancel_as(this.py(), &this.object())
    }

    fn is_cancelled(this: This<'_, '_, Self>) -> bool {
        this.running.wait(this.py());
        this.handle.is_cancelled()
    }

    fn run(this: This<'_, '_, Self>) -> PyResult<()> {
        this.get().run(this.py(), &this.object())
    }
}
