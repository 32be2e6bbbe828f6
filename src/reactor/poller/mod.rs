//! Waiting for descriptors to become ready.
//!
//! Not which descriptors are watched for whom: that is [`super::registry`], which makes all requests here.
//!
//! [`Poller`] keeps the contract of [`Kernel`]. The `polling` crate owns the set and its registrations on every platform. How the
//! set is waited on and woken is the [`Backend`]'s: `epoll.rs` or `polling.rs`, both behind [`SetWait`]. To add a backend: a variant
//! of [`Backend`] and of [`AnyWait`], and a file with its [`SetWait`].
//!
//! Some facts about epoll, and what is therefore done here:
//! - A registration belongs to an open file, not to a descriptor. It outlives close() while a duplicate is open, and
//!   can then not be removed. Keys tell such stale registrations, and [`super::registry`] makes a new poller when
//!   one shows up.
//! - After fork(), parent and child share one epoll instance: removing a registration in the child removes it in the
//!   parent. A poller knows the process that made it, and never touches the kernel's set in another one.
//! - EPOLLHUP and EPOLLERR are reported whether asked for or not. A descriptor without an interest must leave the set;
//!   registered with an empty interest, it would end each wait at once.
//! - `polling` asks for EPOLLPRI along with EPOLLIN. Out-of-band data on a socket keeps EPOLLPRI up until it is read
//!   with MSG_OOB, which no stream reader does, so a peer could end each wait at once with one byte. An event that is
//!   nothing but EPOLLPRI takes EPOLLPRI out of the registration: asyncio does not ask for it.

#[cfg(target_os = "linux")]
mod epoll;
mod polling;
#[cfg(target_os = "linux")]
mod waker;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ::polling::{PollMode, Poller as Set};

#[cfg(target_os = "linux")]
use epoll::{add_exclusive, mask_priority, replace_inherited};
#[cfg(not(target_os = "linux"))]
use polling::{mask_priority, replace_inherited};

use super::faults::{self, Call};
use super::kernel::{Kernel, Wait};

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    pub readable: bool,
    pub writable: bool,
    /// Of the processes that wait for the file like this, an event wakes one. Not for writing, and on Linux only.
    pub exclusive: bool,
}

impl Interest {
    pub const NONE: Interest = Interest { readable: false, writable: false, exclusive: false };
    pub const READABLE: Interest = Interest { readable: true, ..Interest::NONE };
    pub const WRITABLE: Interest = Interest { writable: true, ..Interest::NONE };
    pub const ACCEPTING: Interest = Interest { exclusive: true, ..Interest::READABLE };

    pub fn is_none(self) -> bool {
        self == Interest::NONE
    }
}

/// A descriptor that became ready: the key that it was registered with, and for what it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: usize,
    pub readable: bool,
    pub writable: bool,
    /// Only out-of-band data: see [`Kernel::mask_priority`].
    pub only_priority: bool,
}

/// What a wait found. Reused from wait to wait, by pollers of one backend.
#[derive(Default)]
pub struct Events {
    /// Whether a signal cut the wait short.
    pub interrupted: bool,
    #[cfg(target_os = "linux")]
    epoll: epoll::Buffer,
    polling: polling::Buffer,
}

impl Events {
    /// The descriptors that are ready.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        let events = self.polling.events();
        #[cfg(target_os = "linux")]
        let events = self.epoll.events().chain(events);
        events
    }

    pub fn is_empty(&self) -> bool {
        self.events().next().is_none()
    }

    /// How many there are, the waker's own among them.
    pub fn len(&self) -> usize {
        let count = self.polling.len();
        #[cfg(target_os = "linux")]
        let count = count + self.epoll.len();
        count
    }

    /// Drops all but the first `count`. The next wait returns them again.
    #[cold]
    pub fn truncate(&mut self, count: usize) {
        self.polling.truncate(count);
        #[cfg(target_os = "linux")]
        self.epoll.truncate(count);
    }

    pub fn clear(&mut self) {
        self.interrupted = false;
        self.polling.clear();
        #[cfg(target_os = "linux")]
        self.epoll.clear();
    }

    /// Leaves in here what a simulated kernel reports.
    #[cfg(all(test, target_os = "linux"))]
    pub fn fill(&mut self, interrupted: bool, events: &[libc::epoll_event]) {
        self.clear();
        self.interrupted = interrupted;
        self.epoll.fill(events);
    }
}

/// How a poller waits and is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// epoll's own wait, and an eventfd.
    #[cfg(target_os = "linux")]
    Epoll,
    /// The wait and the notifier of the `polling` crate, on every platform.
    Polling,
}

impl Backend {
    /// Those of this platform, the fastest first.
    pub const ALL: &[Backend] = &[
        #[cfg(target_os = "linux")]
        Backend::Epoll,
        Backend::Polling,
    ];

    /// The fastest, unless `HOTLOOP_POLLER=portable` asks for that of every platform, so that Linux can test it.
    pub fn from_environment() -> Backend {
        let portable = std::env::var_os("HOTLOOP_POLLER").is_some_and(|value| value == "portable");
        if portable { Backend::Polling } else { Backend::default() }
    }

    pub fn name(self) -> &'static str {
        if self == Backend::Polling { "portable" } else { "epoll" }
    }
}

impl Default for Backend {
    fn default() -> Backend {
        Backend::ALL[0]
    }
}

/// How a backend waits on a set and wakes the wait: the methods keep the contract of [`Wait`].
trait SetWait {
    fn wait(&self, set: &Set, events: &mut Events, timeout: Option<Duration>) -> io::Result<()>;

    fn wake(&self, set: &Set) -> io::Result<()>;

    /// Whether the descriptors still stand for what was opened; None if that can't be told.
    fn is_intact(&self, _: &Set) -> Option<bool> {
        None
    }

    /// Whether the wait uses this descriptor, besides the set's own.
    fn is_own(&self, _: RawFd) -> bool {
        false
    }
}

enum AnyWait {
    #[cfg(target_os = "linux")]
    Epoll(epoll::EpollWait),
    Polling(polling::PollingWait),
}

/// Calls a method of the poller's [`SetWait`]. An enum and no trait object, so that a poll is inlined.
macro_rules! dispatch {
    ($poller:ident.$method:ident($($argument:expr),*)) => {
        match &*$poller.wait {
            #[cfg(target_os = "linux")]
            AnyWait::Epoll(wait) => wait.$method($($argument),*),
            AnyWait::Polling(wait) => wait.$method($($argument),*),
        }
    };
}

static FORKS: AtomicU32 = AtomicU32::new(0);

fn count_forks() {
    static REGISTERED: Once = Once::new();
    extern "C" fn in_child() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    REGISTERED.call_once(|| {
        // SAFETY: the handler only adds to an atomic, which is safe in the child of a multi-threaded process.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

/// How many forks led to this process since the first poller was made.
pub fn fork_count() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// The kernel's set of watched descriptors.
pub struct Poller {
    backend: Backend,
    set: ManuallyDrop<Set>,
    wait: ManuallyDrop<AnyWait>,
    /// [`fork_count`] of the process that made it.
    forks: u32,
    abandoned: AtomicBool,
}

impl Poller {
    pub fn new(backend: Backend) -> io::Result<Poller> {
        count_forks();
        let forks = fork_count();
        faults::attempt(Call::EpollCreate)?;
        let set = Set::new()?;
        let wait = match backend {
            #[cfg(target_os = "linux")]
            Backend::Epoll => AnyWait::Epoll(epoll::EpollWait::new(&set)?),
            Backend::Polling => AnyWait::Polling(polling::PollingWait),
        };
        Ok(Poller {
            backend,
            set: ManuallyDrop::new(set),
            wait: ManuallyDrop::new(wait),
            forks,
            abandoned: AtomicBool::new(false),
        })
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// A descriptor that is readable while a wait would return at once.
    pub fn fd(&self) -> RawFd {
        self.set.as_fd().as_raw_fd()
    }
}

impl Kernel for Poller {
    fn renew(&self) -> io::Result<Poller> {
        Poller::new(self.backend)
    }

    fn is_inherited(&self) -> bool {
        self.forks != fork_count()
    }

    fn is_intact(&self) -> bool {
        !self.abandoned.load(Ordering::Relaxed) && dispatch!(self.is_intact(&self.set)) != Some(false)
    }

    fn is_own(&self, fd: RawFd) -> bool {
        self.fd() == fd || dispatch!(self.is_own(fd))
    }

    fn abandon(&self) {
        if dispatch!(self.is_intact(&self.set)) != Some(true) {
            self.abandoned.store(true, Ordering::Relaxed);
        }
    }

    fn add(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        faults::attempt(Call::EpollAdd)?;
        let source = borrow(fd)?.as_raw_fd();
        #[cfg(target_os = "linux")]
        if interest.exclusive {
            return add_exclusive(&self.set, source, key);
        }
        // SAFETY: epoll and kqueue drop a registration with its file, and a stale one is harmless (see above).
        unsafe { self.set.add_with_mode(source, to_polling(key, interest), PollMode::Level) }
    }

    fn modify(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        faults::attempt(Call::EpollModify)?;
        self.set.modify_with_mode(borrow(fd)?, to_polling(key, interest), PollMode::Level)
    }

    fn delete(&self, fd: RawFd) -> io::Result<()> {
        faults::attempt(Call::EpollDelete)?;
        self.set.delete(borrow(fd)?)
    }

    fn mask_priority(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        mask_priority(&self.set, fd, key, interest)
    }
}

impl Wait for Poller {
    fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        events.interrupted = false;
        dispatch!(self.wait(&self.set, events, timeout))
    }

    fn wake(&self) -> io::Result<()> {
        dispatch!(self.wake(&self.set))
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        if !self.is_intact() {
            // The numbers may stand for other files by now: nothing is closed.
            return;
        }
        // `polling` takes its notifier out of the set when it is dropped. In a set that is shared with the parent it must not:
        // the parent could then never be woken again.
        if !self.is_inherited() || replace_inherited(self.fd()) {
            // SAFETY: it is dropped here only, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.set) };
        } else {
            // SAFETY: the set owns the descriptor, and is never dropped.
            unsafe { libc::close(self.fd()) };
        }
        // SAFETY: it is dropped here only, and not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.wait) };
    }
}

fn to_polling(key: usize, interest: Interest) -> ::polling::Event {
    ::polling::Event::new(key, interest.readable, interest.writable)
}

fn borrow<'fd>(fd: RawFd) -> io::Result<BorrowedFd<'fd>> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is only passed on to a system call, which reports EBADF if it is not open.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

#[cfg(test)]
mod tests;
