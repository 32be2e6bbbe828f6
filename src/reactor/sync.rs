//! What threads share state by: the standard library's, or loom's, which tries out every interleaving of a test's threads
//! and every value that the memory model lets an atomic's reader see.

#[cfg(not(all(loom, test)))]
pub use std::sync::{Condvar, Mutex, MutexGuard, atomic};

#[cfg(all(loom, test))]
pub use loom::sync::{Condvar, Mutex, MutexGuard, atomic};
