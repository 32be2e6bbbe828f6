//! What wakes a wait by epoll: an eventfd in the set.
//!
//! It is edge-triggered, so that each wake-up is one event and the eventfd need not be read. Its count has two parts:
//!
//! ```text
//! | mark: which waker it is | wake-ups so far |
//!  63                     40 39             0
//! ```
//!
//! The mark tells whether the number still stands for this waker after the program has closed descriptors behind our back.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{sleep, yield_now};
use std::time::Duration;

use super::super::faults::{self, Call};
use super::super::socket::status;

pub struct Waker {
    fd: OwnedFd,
    mark: u64,
    /// The type of an eventfd, as fstat() tells it: no file, socket or pipe has it.
    mode: libc::mode_t,
}

/// Makes each mark differ from those of all wakers of this process and of those that it was forked from.
static NEXT_MARK: AtomicU64 = AtomicU64::new(0);

/// A trillion wake-ups fit below the mark.
const WAKE_BITS: u32 = 40;
/// The largest mark. The smallest is 1: a count without a mark was read by another process.
const MAX_MARK: u64 = (1 << 23) - 1;

/// How many times the mark is read again if another process has read it, which writes it back at once.
const ATTEMPTS: u32 = 1000;
/// After this many attempts there is a pause between two: the other process may have lost the processor.
const ATTEMPTS_WITHOUT_PAUSE: u32 = 100;
const PAUSE: Duration = Duration::from_micros(100);

/// `polling` keeps the key of all ones, and [`super::super::registry`] never sets the top bit.
pub const WAKER_KEY: usize = usize::MAX - 1;

impl Waker {
    pub fn new(poller: &polling::Poller) -> io::Result<Waker> {
        faults::attempt(Call::EventFd)?;
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and has no other owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mode = status(fd.as_raw_fd())?.st_mode;
        let waker = Waker { fd, mode, mark: 1 + NEXT_MARK.fetch_add(1, Ordering::Relaxed) % MAX_MARK };
        waker.add(waker.mark << WAKE_BITS)?;
        faults::attempt(Call::EpollAdd)?;
        waker.control(poller.as_raw_fd(), libc::EPOLL_CTL_ADD)?;
        // The mark is not a wake-up: its event is taken out.
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: there is room for one event.
        match unsafe { libc::epoll_wait(poller.as_raw_fd(), &mut event, 1, 0) } {
            0.. => Ok(waker),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether `epoll` still stands for the set that the waker is in, and the waker's own number for the waker.
    pub fn is_in(&self, epoll: RawFd) -> bool {
        // Adding what is in the set fails, and changes nothing.
        match self.control(epoll, libc::EPOLL_CTL_ADD) {
            Err(error) => error.raw_os_error() == Some(libc::EEXIST) && self.has_mark(),
            Ok(()) => {
                // It is another set, which is left as it was.
                let _ = self.control(epoll, libc::EPOLL_CTL_DEL);
                false
            }
        }
    }

    /// Whether the number stands for this waker and not for a later one, which may have got the same numbers.
    fn has_mark(&self) -> bool {
        if !self.may_be_ours() {
            return false;
        }
        for attempt in 0..ATTEMPTS {
            match self.read_mark() {
                // A forked process that inherited the waker is reading the mark.
                Ok(0) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(mark) => return mark == self.mark,
                Err(_) => return false,
            }
            if attempt < ATTEMPTS_WITHOUT_PAUSE { yield_now() } else { sleep(PAUSE) }
        }
        false
    }

    /// Whether the number stands for an eventfd that does not block. Nothing may be read from any other file: its owner would
    /// lose it.
    fn may_be_ours(&self) -> bool {
        let fd = self.fd.as_raw_fd();
        // SAFETY: all zeroes is a valid itimerspec, which outlives the call.
        let is_timer = || unsafe {
            let mut time: libc::itimerspec = std::mem::zeroed();
            libc::timerfd_gettime(fd, &mut time) == 0
        };
        // SAFETY: a call without pointers.
        let blocks = || unsafe { libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK == 0 };
        // A timerfd has an eventfd's mode, and lets eight bytes be read, too.
        status(fd).is_ok_and(|status| status.st_mode == self.mode) && !is_timer() && !blocks()
    }

    /// Reads the count, which sets it to zero, writes it back and returns its mark; 0 if another process has just read it.
    fn read_mark(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        // SAFETY: `count` is eight writable bytes.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        if read < 0 {
            return Err(io::Error::last_os_error());
        }
        let count = u64::from_ne_bytes(count);
        // A process that shares the waker needs the mark. It may be woken for nothing.
        self.add(count)?;
        Ok(count >> WAKE_BITS)
    }

    fn control(&self, epoll: RawFd, operation: libc::c_int) -> io::Result<()> {
        let mut event =
            libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: WAKER_KEY as u64 };
        // SAFETY: `event` is a valid epoll_event for the duration of the call.
        match unsafe { libc::epoll_ctl(epoll, operation, self.fd.as_raw_fd(), &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub fn wake(&self) -> io::Result<()> {
        loop {
            match faults::attempt(Call::Wake).and_then(|()| self.add(1)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn add(&self, count: u64) -> io::Result<()> {
        let count = count.to_ne_bytes();
        // SAFETY: `count` is eight readable bytes.
        match unsafe { libc::write(self.fd.as_raw_fd(), count.as_ptr().cast(), count.len()) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
