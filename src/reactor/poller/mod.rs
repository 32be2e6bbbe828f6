//! Waiting for descriptors to become ready.
//!
//! The `polling` crate owns registration on every platform. On Linux the wait and the wake-up are ours: `polling`
//! spends five system calls on a wait with a timeout (it arms a timerfd, and re-arms its notifier whether that fired
//! or not), where one on the poller's own descriptor does, and seven on a wake-up and the wait that sees it, where two
//! do. The portable wait stays available everywhere and is the only one elsewhere.
//!
//! Some facts about epoll, and what is therefore done here:
//! - A registration belongs to an open file, not to a descriptor. It outlives close() while a duplicate is open, and
//!   cannot then be removed by anybody. Keys tell such ghosts from the living, and [`super::registry`] makes a new
//!   poller when one shows up.
//! - After fork(), parent and child share one epoll instance: removing a registration in the child removes it in the
//!   parent. A poller knows the process that made it, and never touches the kernel's set in another one.
//! - EPOLLHUP and EPOLLERR are reported whether asked for or not. A descriptor that nobody wants to hear of must
//!   leave the set; an empty interest would spin.
//! - `polling` asks for EPOLLPRI along with EPOLLIN. Out-of-band data on a socket keeps EPOLLPRI up until it is read
//!   with MSG_OOB, which no stream reader does, so a peer could make the loop spin with one byte. An event that is
//!   nothing but EPOLLPRI narrows the registration to what asyncio asks for.

#[cfg(target_os = "linux")]
mod waker;

use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
#[cfg(not(target_os = "linux"))]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use polling::PollMode;

#[cfg(target_os = "linux")]
use waker::{WAKER_KEY, Waker};

use super::faults::{self, Call};

/// A portable wait is over after this long, with nothing, so that whoever waits can look for signals.
const LONGEST_PORTABLE_WAIT: Duration = Duration::from_secs(1);

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    pub readable: bool,
    pub writable: bool,
}

impl Interest {
    pub const NONE: Interest = Interest { readable: false, writable: false };
    pub const READABLE: Interest = Interest { readable: true, writable: false };
    pub const WRITABLE: Interest = Interest { readable: false, writable: true };

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
    /// Only out-of-band data: see [`Poller::mask_priority`].
    pub only_priority: bool,
}

/// What a wait found. Reused from wait to wait, of one poller or several that wait in the same way.
pub struct Events {
    /// Whether a signal cut the wait short.
    pub interrupted: bool,
    portable: polling::Events,
    /// What is in `portable`.
    events: Vec<Event>,
    #[cfg(target_os = "linux")]
    native: Vec<libc::epoll_event>,
}

impl Default for Events {
    fn default() -> Self {
        Events {
            interrupted: false,
            portable: polling::Events::new(),
            events: Vec::new(),
            #[cfg(target_os = "linux")]
            native: Vec::with_capacity(EVENTS_PER_WAIT),
        }
    }
}

impl Events {
    /// The descriptors that are ready.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        let events = self.events.iter().copied();
        #[cfg(target_os = "linux")]
        let events =
            self.native.iter().filter(|event| event.u64 != WAKER_KEY as u64).map(from_epoll).chain(events);
        events
    }

    pub fn is_empty(&self) -> bool {
        self.events().next().is_none()
    }

    /// Forgets what an earlier wait found.
    pub fn clear(&mut self) {
        self.interrupted = false;
        self.portable.clear();
        self.events.clear();
        #[cfg(target_os = "linux")]
        self.native.clear();
    }

    /// Leaves in here what a simulated kernel reports.
    #[cfg(all(test, target_os = "linux"))]
    pub fn fill(&mut self, interrupted: bool, events: &[libc::epoll_event]) {
        self.clear();
        self.interrupted = interrupted;
        self.native.extend_from_slice(events);
    }
}

/// Descriptors reported by one wait at the most; the others are reported by the next.
const EVENTS_PER_WAIT: usize = 1024;

/// Counts the forks that led to this process, so that a poller can tell that it was inherited.
static FORKS: AtomicU32 = AtomicU32::new(0);

fn forks() -> u32 {
    static WATCH: Once = Once::new();
    extern "C" fn in_child() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    WATCH.call_once(|| {
        // SAFETY: the handler only adds to an atomic, which is safe in the child of a multi-threaded process.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    FORKS.load(Ordering::Relaxed)
}

/// How many forks led to this process since the first poller was made.
pub fn fork_count() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// The kernel's set of watched descriptors, with a wake-up for other threads.
pub struct Poller {
    /// None only while being dropped.
    poller: Option<polling::Poller>,
    portable: bool,
    #[cfg(target_os = "linux")]
    waker: Option<Waker>,
    forks: u32,
    /// See [`Poller::abandon`].
    abandoned: AtomicBool,
}

impl Poller {
    /// Makes a poller. `portable` forces the wait of the `polling` crate where a faster one of ours exists.
    pub fn new(portable: bool) -> io::Result<Poller> {
        let forks = forks();
        faults::attempt(Call::EpollCreate)?;
        let poller = polling::Poller::new()?;
        #[cfg(target_os = "linux")]
        let waker = if portable { None } else { Some(Waker::new(&poller)?) };
        Ok(Poller {
            poller: Some(poller),
            portable,
            #[cfg(target_os = "linux")]
            waker,
            forks,
            abandoned: AtomicBool::new(false),
        })
    }

    pub fn is_portable(&self) -> bool {
        self.portable || cfg!(not(target_os = "linux"))
    }

    /// Whether this process inherited the poller in a fork; it is then of no use here.
    pub fn is_inherited(&self) -> bool {
        self.forks != FORKS.load(Ordering::Relaxed)
    }

    /// Declares that the poller's descriptors were closed behind its back. Their numbers may be somebody else's by now, so
    /// that they are not closed when it is dropped.
    pub fn abandon(&self) {
        #[cfg(target_os = "linux")]
        if let Some(waker) = &self.waker
            && waker.is_in(self.inner().as_raw_fd())
        {
            // They are there all the same.
            return;
        }
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Whether the poller's numbers still stand for what it opened, as far as can be told.
    pub fn is_intact(&self) -> bool {
        if self.abandoned.load(Ordering::Relaxed) {
            return false;
        }
        #[cfg(target_os = "linux")]
        if let Some(waker) = &self.waker {
            return waker.is_in(self.inner().as_raw_fd());
        }
        true
    }

    /// Whether a number is one that the poller waits by: nobody else can have it watched.
    pub fn is_own(&self, fd: RawFd) -> bool {
        #[cfg(target_os = "linux")]
        if self.waker.as_ref().is_some_and(|waker| waker.as_raw_fd() == fd) {
            return true;
        }
        self.inner().as_raw_fd() == fd
    }

    /// What is readable when anything is to be told.
    pub fn fd(&self) -> RawFd {
        self.inner().as_raw_fd()
    }

    fn inner(&self) -> &polling::Poller {
        self.poller.as_ref().expect("a poller is used only before it is dropped")
    }

    pub fn add(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        faults::attempt(Call::EpollAdd)?;
        let source = borrow(fd)?.as_raw_fd();
        // SAFETY: epoll and kqueue drop a registration with its file, and a stale one is harmless (see above).
        unsafe { self.inner().add_with_mode(source, to_polling(key, interest), PollMode::Level) }
    }

    pub fn modify(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        faults::attempt(Call::EpollModify)?;
        self.inner().modify_with_mode(borrow(fd)?, to_polling(key, interest), PollMode::Level)
    }

    pub fn delete(&self, fd: RawFd) -> io::Result<()> {
        faults::attempt(Call::EpollDelete)?;
        self.inner().delete(borrow(fd)?)
    }

    /// Wakes the thread that waits, or makes the next wait return at once. Callable from any thread.
    pub fn wake(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(waker) = &self.waker {
            return waker.ring();
        }
        faults::attempt(Call::Wake)?;
        self.inner().notify()
    }

    /// Waits until a descriptor is ready, the time is up (None: never), a signal arrives or [`Poller::wake`] is
    /// called, and leaves in `ready` what became ready.
    pub fn wait(&self, ready: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        ready.interrupted = false;
        #[cfg(target_os = "linux")]
        if !self.portable {
            return self.wait_natively(ready, timeout);
        }
        self.wait_portably(ready, timeout)
    }

    #[inline(never)]
    fn wait_portably(&self, ready: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        ready.portable.clear();
        ready.events.clear();
        // `polling` waits on when a signal cuts its wait short. The event loop has signals written to a descriptor and watches
        // that; a program that takes this away waits for them a little.
        let timeout = timeout.map_or(LONGEST_PORTABLE_WAIT, |timeout| timeout.min(LONGEST_PORTABLE_WAIT));
        faults::attempt(Call::EpollWait)?;
        self.inner().wait(&mut ready.portable, Some(timeout))?;
        ready.events.extend(ready.portable.iter().map(|event| Event {
            key: event.key,
            readable: event.readable,
            writable: event.writable,
            only_priority: is_only_priority(&event),
        }));
        Ok(())
    }

    /// Stops asking for out-of-band data on a descriptor: what follows an event that is `only_priority`.
    pub fn mask_priority(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            faults::attempt(Call::EpollModify)?;
            let mut events = 0;
            if interest.readable {
                events |= libc::EPOLLIN as u32;
            }
            if interest.writable {
                events |= libc::EPOLLOUT as u32;
            }
            let mut event = libc::epoll_event { events, u64: key as u64 };
            let epoll = self.inner().as_raw_fd();
            // SAFETY: `event` is a valid epoll_event for the duration of the call.
            match unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, fd, &mut event) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (fd, key, interest);
            Ok(())
        }
    }
}

#[cfg(target_os = "linux")]
impl Poller {
    /// One system call on the poller's own descriptor.
    fn wait_natively(&self, ready: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let epoll = self.inner().as_raw_fd();
        let events = &mut ready.native;
        events.clear();
        let count = match timeout {
            None => wait_for_milliseconds(epoll, events, -1),
            Some(Duration::ZERO) => wait_for_milliseconds(epoll, events, 0),
            Some(timeout) => wait_precisely(epoll, events, timeout),
        };
        if count < 0 {
            ready.interrupted = true;
            return not_interrupted(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled in the first `count` events.
        unsafe { events.set_len(count as usize) };
        Ok(())
    }
}

#[cfg(target_os = "linux")]
#[cold]
fn not_interrupted(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

#[cfg(target_os = "linux")]
fn from_epoll(event: &libc::epoll_event) -> Event {
    const READABLE: u32 = (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) as u32;
    const WRITABLE: u32 = (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32;
    let flags = event.events;
    Event {
        key: event.u64 as usize,
        readable: flags & READABLE != 0,
        writable: flags & WRITABLE != 0,
        only_priority: flags == libc::EPOLLPRI as u32,
    }
}

/// Fills `events` with what epoll reports, and returns how many they are, or what is negative for an error.
#[cfg(target_os = "linux")]
fn wait_for_milliseconds(
    epoll: RawFd,
    events: &mut Vec<libc::epoll_event>,
    timeout: libc::c_int,
) -> libc::c_int {
    if faults::attempt(Call::EpollWait).is_err() {
        return -1;
    }
    // SAFETY: the memory of `events` has room for its capacity.
    unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), events.capacity() as libc::c_int, timeout) }
}

/// The same with a timeout that can have a fraction of a millisecond: epoll_wait is a third cheaper than epoll_pwait2.
#[cfg(target_os = "linux")]
#[inline(never)]
fn wait_precisely(epoll: RawFd, events: &mut Vec<libc::epoll_event>, timeout: Duration) -> libc::c_int {
    /// Linux before 5.11, and seccomp profiles of its time, refuse epoll_pwait2.
    static HAS_PWAIT2: AtomicBool = AtomicBool::new(true);

    if HAS_PWAIT2.load(Ordering::Relaxed) {
        let timespec = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos() as libc::c_long,
        };
        // SAFETY: the memory of `events` has room for its capacity; `timespec` outlives the call; a null mask leaves
        // the signal mask alone.
        let mut pwait2 = || unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                epoll,
                events.as_mut_ptr(),
                events.capacity() as libc::c_int,
                &raw const timespec,
                std::ptr::null::<libc::sigset_t>(),
                size_of::<u64>(),
            ) as libc::c_int
        };
        let count = faults::attempt(Call::EpollPwait2).map_or(-1, |()| pwait2());
        if count >= 0
            || !matches!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
        {
            return count;
        }
        HAS_PWAIT2.store(false, Ordering::Relaxed);
    }
    wait_for_milliseconds(epoll, events, to_milliseconds(timeout))
}

/// Whole milliseconds, rounded up so that a timer is never found early, for kernels without epoll_pwait2.
#[cfg(target_os = "linux")]
fn to_milliseconds(timeout: Duration) -> libc::c_int {
    let rounded = timeout.saturating_add(Duration::from_nanos(999_999));
    rounded.as_millis().min(libc::c_int::MAX as u128) as libc::c_int
}

impl Drop for Poller {
    fn drop(&mut self) {
        let is_intact = self.is_intact();
        if is_intact && !self.is_inherited() {
            return;
        }
        // `polling` would take its notifier out of the set that is shared with the parent, which could then never be
        // woken again. If the set cannot be let go of, closing the child's descriptor of it is all that may be done here,
        // and not even that if somebody has closed it.
        if let Some(poller) = self.poller.take() {
            let set = poller.as_fd().as_raw_fd();
            #[cfg(target_os = "linux")]
            if is_intact && let_go(set) {
                return;
            }
            std::mem::forget(poller);
            if is_intact {
                // SAFETY: `poller` was the owner of the descriptor, and is forgotten.
                unsafe { libc::close(set) };
            }
        }
        #[cfg(target_os = "linux")]
        if !is_intact {
            std::mem::forget(self.waker.take());
        }
    }
}

/// Has the number of an inherited set stand for something else, which its owner can use and close without the parent's
/// noticing. False if there is no descriptor for that.
#[cfg(target_os = "linux")]
fn let_go(set: RawFd) -> bool {
    // SAFETY: a call without pointers.
    let nothing = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if nothing < 0 {
        return false;
    }
    // SAFETY: the descriptor was just made, and is nobody else's.
    let nothing = unsafe { OwnedFd::from_raw_fd(nothing) };
    // SAFETY: a call without pointers, which closes the inherited descriptor.
    unsafe { libc::dup3(nothing.as_raw_fd(), set, libc::O_CLOEXEC) >= 0 }
}

fn to_polling(key: usize, interest: Interest) -> polling::Event {
    polling::Event::new(key, interest.readable, interest.writable)
}

#[cfg(target_os = "linux")]
fn is_only_priority(event: &polling::Event) -> bool {
    // `polling` does not say whether EPOLLIN was among the flags. If it was, it comes up again after the narrowing.
    event.is_priority() && !event.is_interrupt()
}

#[cfg(not(target_os = "linux"))]
fn is_only_priority(_event: &polling::Event) -> bool {
    false
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
