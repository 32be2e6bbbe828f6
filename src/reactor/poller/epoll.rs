//! The wait by epoll itself, on Linux.
//!
//! The `polling` crate makes five system calls for a wait with a timeout: it arms a timerfd, and re-arms its notifier whether
//! that fired or not. A wake-up and the wait that sees it are seven. Here a wait is one call on the set's own descriptor, and a
//! wake-up is one more.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::faults::{self, Call};
use super::waker::{WAKER_KEY, Waker};
use super::{Event, Events, Interest, Set, SetWait};

/// The most events that one wait reports; the next wait reports the others.
const EVENTS_PER_WAIT: usize = 1024;

/// What epoll reported.
pub struct Buffer(Vec<libc::epoll_event>);

impl Default for Buffer {
    fn default() -> Self {
        Buffer(Vec::with_capacity(EVENTS_PER_WAIT))
    }
}

impl Buffer {
    pub fn events(&self) -> impl Iterator<Item = Event> {
        self.0.iter().filter(|event| event.u64 != WAKER_KEY as u64).map(from_epoll)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn truncate(&mut self, count: usize) {
        self.0.truncate(count);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    #[cfg(test)]
    pub fn fill(&mut self, events: &[libc::epoll_event]) {
        self.0.extend_from_slice(events);
    }
}

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

pub struct EpollWait {
    waker: Waker,
}

impl EpollWait {
    pub fn new(set: &Set) -> io::Result<EpollWait> {
        Ok(EpollWait { waker: Waker::new(set)? })
    }
}

impl SetWait for EpollWait {
    fn wait(&self, set: &Set, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let Buffer(buffer) = &mut events.epoll;
        buffer.clear();
        let count = match timeout {
            None => wait_for_milliseconds(set.as_raw_fd(), buffer, -1),
            Some(Duration::ZERO) => wait_for_milliseconds(set.as_raw_fd(), buffer, 0),
            Some(timeout) => wait_precisely(set.as_raw_fd(), buffer, timeout),
        };
        if count < 0 {
            events.interrupted = true;
            return not_interrupted(io::Error::last_os_error());
        }
        // SAFETY: the kernel has filled in the first `count` events.
        unsafe { buffer.set_len(count as usize) };
        Ok(())
    }

    fn wake(&self, _: &Set) -> io::Result<()> {
        self.waker.wake()
    }

    fn is_intact(&self, set: &Set) -> Option<bool> {
        Some(self.waker.is_in(set.as_raw_fd()))
    }

    fn is_own(&self, fd: RawFd) -> bool {
        self.waker.as_raw_fd() == fd
    }
}

#[cold]
fn not_interrupted(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// epoll_wait(): returns how many events there are, or -1 for an error, which errno tells.
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

/// What epoll_pwait2() reads. The C library's timespec is half as large on 32-bit processors.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanoseconds: i64,
}

/// epoll_pwait2(), whose timeout can have a fraction of a millisecond. epoll_wait() is a third cheaper.
#[inline(never)]
fn wait_precisely(epoll: RawFd, events: &mut Vec<libc::epoll_event>, timeout: Duration) -> libc::c_int {
    /// Linux before 5.11, and seccomp profiles of its time, refuse epoll_pwait2.
    static HAS_PWAIT2: AtomicBool = AtomicBool::new(true);

    if HAS_PWAIT2.load(Ordering::Relaxed) {
        let timespec =
            KernelTimespec { seconds: timeout.as_secs() as i64, nanoseconds: timeout.subsec_nanos().into() };
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

/// Whole milliseconds, rounded up so that a timer is never found early.
fn to_milliseconds(timeout: Duration) -> libc::c_int {
    let rounded = timeout.saturating_add(Duration::from_nanos(999_999));
    rounded.as_millis().min(libc::c_int::MAX as u128) as libc::c_int
}

/// Registers a descriptor without EPOLLPRI, which `polling` always asks for.
pub fn mask_priority(set: &Set, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
    faults::attempt(Call::EpollModify)?;
    let mut events = 0;
    if interest.readable {
        events |= libc::EPOLLIN as u32;
    }
    if interest.writable {
        events |= libc::EPOLLOUT as u32;
    }
    control(set, libc::EPOLL_CTL_MOD, fd, key, events)
}

/// Registers a descriptor for [`Interest::ACCEPTING`], without EPOLLPRI, which EPOLLEXCLUSIVE does not go with. Of the sets in which
/// the file is, this one becomes the last to be woken.
pub fn add_exclusive(set: &Set, fd: RawFd, key: usize) -> io::Result<()> {
    let readable = libc::EPOLLIN as u32;
    match control(set, libc::EPOLL_CTL_ADD, fd, key, readable | libc::EPOLLEXCLUSIVE as u32) {
        // Linux before 4.5 has no EPOLLEXCLUSIVE.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            control(set, libc::EPOLL_CTL_ADD, fd, key, readable)
        }
        result => result,
    }
}

fn control(set: &Set, operation: libc::c_int, fd: RawFd, key: usize, events: u32) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: key as u64 };
    // SAFETY: `event` is a valid epoll_event for the duration of the call.
    match unsafe { libc::epoll_ctl(set.as_raw_fd(), operation, fd, &mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts an eventfd in the place of an inherited set, so that its owner can use and close the number without an effect on the
/// parent. False if there is no descriptor for that.
pub fn replace_inherited(set: RawFd) -> bool {
    // SAFETY: a call without pointers.
    let eventfd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if eventfd < 0 {
        return false;
    }
    // SAFETY: the descriptor was just made, and has no other owner.
    let eventfd = unsafe { OwnedFd::from_raw_fd(eventfd) };
    // SAFETY: a call without pointers, which closes the inherited descriptor.
    unsafe { libc::dup3(eventfd.as_raw_fd(), set, libc::O_CLOEXEC) >= 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_milliseconds_up() {
        assert_eq!(to_milliseconds(Duration::ZERO), 0);
        assert_eq!(to_milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(to_milliseconds(Duration::from_micros(1001)), 2);
        assert_eq!(to_milliseconds(Duration::MAX), libc::c_int::MAX);
    }
}
