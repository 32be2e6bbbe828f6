//! What wakes a poller on Linux.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// An eventfd in the poller's set. It is edge-triggered, so that each ring is one event and nobody has to take the ring
/// away.
pub struct Alarm(OwnedFd);

/// A key that nobody else uses: `polling` keeps the one of all ones, and [`super::super::registry`] never sets the top bit.
pub const ALARM_KEY: usize = usize::MAX - 1;

impl Alarm {
    pub fn new(poller: &polling::Poller) -> io::Result<Alarm> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and is nobody else's.
        let alarm = Alarm(unsafe { OwnedFd::from_raw_fd(fd) });
        alarm.control(poller.as_raw_fd(), libc::EPOLL_CTL_ADD)?;
        Ok(alarm)
    }

    /// Whether the number `epoll` still stands for the set that the alarm is in, and the alarm's own number for the alarm.
    pub fn is_in(&self, epoll: RawFd) -> bool {
        // To add what is in a set changes nothing.
        match self.control(epoll, libc::EPOLL_CTL_ADD) {
            Err(error) => error.raw_os_error() == Some(libc::EEXIST),
            Ok(()) => {
                // It is the set of somebody else, who is to find nothing in it.
                let _ = self.control(epoll, libc::EPOLL_CTL_DEL);
                false
            }
        }
    }

    fn control(&self, epoll: RawFd, operation: libc::c_int) -> io::Result<()> {
        let mut event =
            libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: ALARM_KEY as u64 };
        // SAFETY: `event` is a valid epoll_event for the duration of the call.
        match unsafe { libc::epoll_ctl(epoll, operation, self.0.as_raw_fd(), &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub fn ring(&self) -> io::Result<()> {
        let one = 1u64.to_ne_bytes();
        // SAFETY: `one` is eight readable bytes. The count that they are added to can't overflow in a lifetime.
        match unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
