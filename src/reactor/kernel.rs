//! What the registry and the doze ask of the kernel, so that tests can put a simulated one in its place.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::poller::{Events, Interest, Poller};

/// A set of watched descriptors. [`Poller`] says what each method does.
pub trait Kernel: Sized {
    /// Makes an empty set that waits in the same way.
    fn renew(&self) -> io::Result<Self>;

    fn is_inherited(&self) -> bool;

    fn is_intact(&self) -> bool;

    fn is_own(&self, fd: RawFd) -> bool;

    fn abandon(&self);

    fn add(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()>;

    fn modify(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()>;

    fn delete(&self, fd: RawFd) -> io::Result<()>;

    fn mask_priority(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()>;

    fn wait(&self, ready: &mut Events, timeout: Option<Duration>) -> io::Result<()>;

    /// Offers the processor to other threads.
    fn yield_now(&self);
}

impl Kernel for Poller {
    fn renew(&self) -> io::Result<Poller> {
        Poller::new(self.is_portable())
    }

    fn is_inherited(&self) -> bool {
        Poller::is_inherited(self)
    }

    fn is_intact(&self) -> bool {
        Poller::is_intact(self)
    }

    fn is_own(&self, fd: RawFd) -> bool {
        Poller::is_own(self, fd)
    }

    fn abandon(&self) {
        Poller::abandon(self);
    }

    fn add(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        Poller::add(self, fd, key, interest)
    }

    fn modify(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        Poller::modify(self, fd, key, interest)
    }

    fn delete(&self, fd: RawFd) -> io::Result<()> {
        Poller::delete(self, fd)
    }

    fn mask_priority(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        Poller::mask_priority(self, fd, key, interest)
    }

    fn wait(&self, ready: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        Poller::wait(self, ready, timeout)
    }

    fn yield_now(&self) {
        std::thread::yield_now();
    }
}
