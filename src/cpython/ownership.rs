//! Which thread may touch an event loop's state.
//!
//! With the GIL, the thread that holds it. Without (`Py_GIL_DISABLED`), the loop's owner: the thread that runs it, or that calls a
//! method of it while no thread runs it. Each way in from Python asks ([`super::methods`]); none of it costs an instruction with the
//! GIL.
//!
//! - Methods that touch the loop's cells are for the owner. Another thread gets asyncio's RuntimeError.
//! - Methods marked `any_thread` touch only what is [`Published`], atomic, or written once.
//! - A finalizer that the collector runs in another thread is left to the owner: see `core::ReadyEntry::Finalize`.
//! - What a thread reads of another's objects, and replaces in its own, is read and replaced in the critical section of the object.

use pyo3::PyErr;
use pyo3::prelude::*;

#[cfg(Py_GIL_DISABLED)]
use std::time::Duration;

use super::errors::new_error;
#[cfg(Py_GIL_DISABLED)]
use crate::reactor::owner;

/// A pointer that counts its references. They are made and dropped by any thread that may touch the object it is in.
#[cfg(not(Py_GIL_DISABLED))]
pub use std::rc::Rc as Shared;
#[cfg(Py_GIL_DISABLED)]
pub use std::sync::Arc as Shared;

/// The thread that may touch a loop's state, if there is one.
#[derive(Default)]
pub struct Owner {
    #[cfg(Py_GIL_DISABLED)]
    owner: owner::Owner,
}

/// The right to touch a loop's state, until it is dropped.
#[cfg(Py_GIL_DISABLED)]
pub use owner::Entered;

#[cfg(not(Py_GIL_DISABLED))]
pub struct Entered<'a>(std::marker::PhantomData<&'a Owner>);

#[cfg(not(Py_GIL_DISABLED))]
impl Owner {
    /// Makes the calling thread the owner while it calls a method. None if another thread is.
    #[inline(always)]
    pub fn enter(&self) -> Option<Entered<'_>> {
        Some(Entered(std::marker::PhantomData))
    }

    /// As [`Owner::enter`], without waiting for another thread's call, which may wait for this thread.
    #[inline(always)]
    pub fn try_enter(&self) -> Option<Entered<'_>> {
        self.enter()
    }

    /// As [`Owner::enter`], while the thread runs the loop.
    #[inline(always)]
    pub fn run(&self) -> Option<Entered<'_>> {
        self.enter()
    }
}

#[cfg(Py_GIL_DISABLED)]
impl Owner {
    #[inline(always)]
    pub fn enter(&self) -> Option<Entered<'_>> {
        self.owner.enter(current_thread(), pause)
    }

    #[inline(always)]
    pub fn try_enter(&self) -> Option<Entered<'_>> {
        self.owner.try_enter(current_thread())
    }

    pub fn run(&self) -> Option<Entered<'_>> {
        self.owner.run(current_thread(), pause)
    }
}

/// Waits a moment for a method that another thread calls.
#[cfg(Py_GIL_DISABLED)]
fn pause(waits: u32) {
    // SAFETY: the thread is attached, as it enters a loop; nothing is borrowed then. That thread may wait for this one to detach.
    let py = unsafe { Python::assume_attached() };
    py.detach(|| if waits < 100 { std::thread::yield_now() } else { std::thread::sleep(WAIT) });
}

#[cfg(Py_GIL_DISABLED)]
const WAIT: Duration = Duration::from_micros(50);

/// What a method of another thread's loop raises: the words of asyncio's debug mode.
#[cold]
pub fn elsewhere(py: Python<'_>) -> PyErr {
    new_error::<pyo3::exceptions::PyRuntimeError>(
        py,
        "Non-thread-safe operation invoked on an event loop other than the current one",
    )
}

/// The number by which the interpreter knows the calling thread as the owner of an object: `_Py_ThreadId()`.
#[cfg(Py_GIL_DISABLED)]
#[inline(always)]
pub fn current_thread() -> usize {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    // SAFETY: reads the thread's pointer to its own block, which is there while the thread is.
    unsafe {
        let thread: usize;
        std::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, preserves_flags, readonly));
        thread
    }
    #[cfg(all(target_os = "macos", target_arch = "x86_64"))]
    // SAFETY: as on Linux.
    unsafe {
        let thread: usize;
        std::arch::asm!("mov {}, gs:0", out(reg) thread, options(nostack, preserves_flags, readonly));
        thread
    }
    #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
    // SAFETY: reads a register.
    unsafe {
        let thread: usize;
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) thread, options(nostack, preserves_flags, nomem));
        thread
    }
    #[cfg(all(target_os = "macos", target_arch = "aarch64"))]
    // SAFETY: reads a register.
    unsafe {
        let thread: usize;
        std::arch::asm!("mrs {}, tpidrro_el0", out(reg) thread, options(nostack, preserves_flags, nomem));
        thread
    }
    #[cfg(not(any(
        all(any(target_os = "linux", target_os = "macos"), target_arch = "x86_64"),
        all(any(target_os = "linux", target_os = "macos"), target_arch = "aarch64"),
    )))]
    {
        unsafe extern "C" {
            fn _Py_GetThreadLocal_Addr() -> usize;
        }
        // SAFETY: a call without arguments.
        unsafe { _Py_GetThreadLocal_Addr() }
    }
}

/// Runs `f` while no other thread is in the critical section of the object. `f` must not run Python code.
#[inline(always)]
pub fn locked<R>(object: Borrowed<'_, '_, PyAny>, f: impl FnOnce() -> R) -> R {
    // Waiting for the section detaches the thread.
    super::borrowing::check();
    pyo3::sync::critical_section::with_critical_section(&object, f)
}
