//! Listening sockets from which other processes accept, too.
//!
//! In the kernel, the processes that wait for such a socket form a queue, and a connection wakes the first one that is idle
//! ([`Interest::exclusive`](crate::reactor::poller::Interest)). A process that has accepted goes to the end, by registering the
//! socket anew, so that idle processes take turns.
//!
//! A process that was woken and then does not come to accept (its callbacks block, it is stopped or killed) leaves the connection
//! waiting while the others sleep. Registering looks for connections, so each process does it every [`INTERVAL`].

use std::os::fd::RawFd;

use pyo3::prelude::*;

use super::due::Due;
use super::watching::Watch;
use super::{Core, Direction, Waiter};
use crate::cpython::borrowing::StateCell;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::errors::no_memory;

/// The longest time, in seconds, for which a connection waits while a process is idle.
const INTERVAL: f64 = 0.5;

#[derive(Default)]
pub struct Acceptors {
    sockets: StateCell<Vec<RawFd>>,
    /// When they are registered anew.
    pub(super) due: Due,
}

impl Core {
    /// Waits for the connections of a listening socket together with other processes: as [`Core::add_waiter`].
    pub fn add_acceptor(&self, py: Python<'_>, fd: RawFd, step: BoundMethod) -> PyResult<()> {
        if self.acceptors.sockets.borrow_mut().try_reserve(1).is_err() {
            drop(step);
            return Err(no_memory(py));
        }
        let former = self.add_waiter(py, fd, Direction::Read, Waiter::Acceptor(step))?;
        {
            let mut sockets = self.acceptors.sockets.borrow_mut();
            if !sockets.contains(&fd) {
                sockets.push(fd);
            }
            self.acceptors.due.set_by(self.poll_policy.polled() + INTERVAL);
        }
        drop(former);
        Ok(())
    }

    /// Goes to the end of the queue of the processes that wait for a socket.
    pub fn requeue_acceptor(&self, fd: RawFd) {
        self.request_poll();
        self.register_acceptor(fd);
    }

    /// False if it is none any more. After an error, [`Core::renew_acceptors`] tries again.
    fn register_acceptor(&self, fd: RawFd) -> bool {
        let mut borrowed = self.registry.borrow_mut();
        let Some(registry) = &mut *borrowed else { return false };
        let Some(token) = registry.find(fd) else { return false };
        let Some(watch) = registry.get(token).filter(|watch| watch.has_acceptor()) else { return false };
        let interest = watch.wanted();
        let _ = registry.renew_interest(token, interest);
        true
    }

    /// Registers the sockets anew, if it is time.
    #[inline(always)]
    pub(super) fn renew_acceptors(&self, now: f64) {
        if self.acceptors.due.has_come(now) {
            self.renew_due_acceptors(now);
        }
    }

    #[cold]
    fn renew_due_acceptors(&self, now: f64) {
        let mut sockets = self.acceptors.sockets.borrow_mut();
        sockets.retain(|fd| self.register_acceptor(*fd));
        if sockets.is_empty() {
            self.acceptors.due.clear();
        } else {
            self.acceptors.due.set(now + INTERVAL);
        }
    }
}

impl Watch {
    fn has_acceptor(&self) -> bool {
        matches!(self, Watch::Waiters { reader: Some(Waiter::Acceptor(_)), .. })
    }
}
