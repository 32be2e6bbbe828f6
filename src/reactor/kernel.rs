//! The contract of a backend.
//!
//! [`Poller`](super::poller::Poller) keeps it, with one of its [`Backend`](super::poller::Backend)s; in tests, so do a simulated kernel
//! (`simulator/set.rs`) and one that can only be woken (`interleavings.rs`). The registry, the spin and `src/core` rely on it.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::poller::{Events, Interest};

/// What a thread waits on, and any thread can wake.
pub trait Wait {
    /// Waits until a descriptor is ready, the time is up (None: never), a signal arrives or [`Wait::wake`] is called.
    /// Replaces what is in `events`, which is empty after an error. May return early, without an event.
    fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()>;

    /// Ends the wait under way, or the next one. Callable from any thread.
    fn wake(&self) -> io::Result<()>;

    /// Offers the processor to other threads.
    fn yield_now(&self) {
        std::thread::yield_now();
    }
}

/// A set of watched descriptors.
///
/// Registrations are level-triggered: an event is reported by each wait as long as the descriptor is ready. Hang-ups and errors
/// are reported as both readable and writable, whatever the interest. Keys with the top bit set are the backend's own.
/// A request that fails changes nothing.
pub trait Kernel: Wait + Sized {
    /// Makes an empty set with the same backend.
    fn renew(&self) -> io::Result<Self>;

    /// Whether this process inherited the set in a fork. The set is then the parent's, too, and must not be changed.
    fn is_inherited(&self) -> bool;

    /// Whether the set's descriptors still stand for what it opened, as far as can be told.
    fn is_intact(&self) -> bool;

    /// Whether the set itself uses this descriptor, which therefore can't be watched.
    fn is_own(&self, fd: RawFd) -> bool;

    /// Declares that the program has closed the set's descriptors. Their numbers may stand for other files by now, so dropping
    /// the set does not close them. This is a no-op if the set can tell that they are open.
    fn abandon(&self);

    /// Registers a descriptor; `interest` is not empty. EEXIST if its file is registered under this number.
    fn add(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()>;

    /// Changes the key and the interest, which is not empty. ENOENT if the descriptor's file is not registered. EINVAL if the interest
    /// is or was exclusive.
    fn modify(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()>;

    fn delete(&self, fd: RawFd) -> io::Result<()>;

    /// Stops asking for out-of-band data: the answer to an event that is `only_priority`.
    fn mask_priority(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()>;
}
