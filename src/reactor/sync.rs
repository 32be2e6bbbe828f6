//! Atomics and locks: the standard library's, or loom's, which runs a test once for each interleaving of its threads and each
//! value that the memory model lets a reader of an atomic see.

#[cfg(not(all(loom, test)))]
pub use std::sync::{Condvar, Mutex, MutexGuard, atomic};

#[cfg(all(loom, test))]
pub use loom::sync::{Condvar, Mutex, MutexGuard, atomic};
