//! The process's Python objects, but for interned names ([`super::names`]) and imported objects (`crate::imports`).
//!
//! They are statics, not the module's state, because reaching that from a class takes 32 instructions instead of one load
//! (PyType_GetModuleByDef and PyModule_GetState, counted by valgrind on CPython 3.11), and a callback would do it several times.
//! One interpreter has the extension: see [`super::interpreter`].
//!
//! Each is set once, by the first import or when the object is first seen, and never released.
//!
//! Process-wide state that is no Python object stays where it is used: which functions are patched (`event_loop/overrides.rs`,
//! `transports/mod.rs`, [`super::namespace`]), whether debug mode was ever on (`handle/mod.rs`), the watchdog (`core/watchdog.rs`), the depth in
//! [`super::trashcan`], the claim in [`super::interpreter`].

use std::ptr::null_mut;
use std::sync::atomic::AtomicPtr;

use pyo3::ffi;

use super::class::Class;

// The classes, with the number of dead instances whose memory is kept.

pub static LOOP: Class = Class::new(0);
pub static HANDLE: Class = Class::new(16384);
pub static TIMER_HANDLE: Class = Class::new(1024);
pub static THREAD_SAFE_HANDLE: Class = Class::new(16384);
pub static ENTRY: Class = Class::new(0);
pub static SOCKET_OPERATION: Class = Class::new(64);
pub static CONNECTION: Class = Class::new(0);
pub static LISTENER: Class = Class::new(0);
pub static LIMIT: Class = Class::new(0);
pub static ADMITTED_SERVER: Class = Class::new(0);
pub static STREAM: Class = Class::new(0);
pub static DATAGRAM: Class = Class::new(0);
pub static READ_PIPE: Class = Class::new(0);
pub static WRITE_PIPE: Class = Class::new(0);
pub static SSL_PROTOCOL: Class = Class::new(0);
pub static SSL_TRANSPORT: Class = Class::new(0);
pub static COROUTINE_METHOD: Class = Class::new(0);

/// The tuple of names `("context",)` that asyncio's C code passes to call_soon(). Its string is not interned, so that a
/// comparison of pointers misses it.
pub static CALL_SOON_KWNAMES: AtomicPtr<ffi::PyObject> = AtomicPtr::new(null_mut());

/// The definition of the method that asyncio's C task gives call_soon() as its wake-up.
pub static TASK_WAKEUP: AtomicPtr<ffi::PyMethodDef> = AtomicPtr::new(null_mut());
