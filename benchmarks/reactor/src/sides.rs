//! The two reactors behind one interface: what an event loop asks of either.
//!
//! Each finds, for an event, the number that its descriptor was registered with: an event loop would find there whom
//! to tell. hotloop's registry does so by itself, and checks that the registration is still the one that the event
//! is for. A user of mio does it, here in the leanest way there is, with a table by descriptor and no check.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use hotloop::reactor::poller::{self, Poller};
use hotloop::reactor::registry::{Registry, Token};
use mio::unix::SourceFd;

/// Descriptors that one wait reports at the most, which hotloop does not let its users choose.
const EVENTS_PER_WAIT: usize = 1024;

pub trait Reactor {
    /// Names a registration.
    type Key: Copy;
    /// Wakes the reactor from any thread.
    type Waker: Wake;

    fn new() -> io::Result<Self>
    where
        Self: Sized;

    fn waker(&self) -> Self::Waker;

    /// Watches a descriptor for what can be read.
    fn register(&mut self, fd: RawFd, number: usize) -> io::Result<Self::Key>;

    /// Watches it for what can be read and, if so, for room to write.
    fn change(&mut self, key: Self::Key, writable: bool) -> io::Result<()>;

    fn deregister(&mut self, key: Self::Key) -> io::Result<()>;

    /// Waits, and calls `deliver` with the number of each descriptor that can be read.
    fn wait(&mut self, timeout: Option<Duration>, deliver: impl FnMut(usize)) -> io::Result<()>;
}

pub trait Wake: Clone + Send + 'static {
    fn wake(&self) -> io::Result<()>;
}

pub struct Hotloop {
    registry: Registry<usize>,
    ready: poller::Events,
}

impl Reactor for Hotloop {
    type Key = Token;
    type Waker = Arc<Poller>;

    fn new() -> io::Result<Hotloop> {
        Ok(Hotloop { registry: Registry::new(Poller::new(poller::Backend::default())?), ready: poller::Events::default() })
    }

    fn waker(&self) -> Arc<Poller> {
        Arc::clone(self.registry.poller())
    }

    fn register(&mut self, fd: RawFd, number: usize) -> io::Result<Token> {
        let slot = self.registry.insert(fd, number);
        self.registry.set_interest(slot, poller::Interest::READABLE)?;
        Ok(slot)
    }

    fn change(&mut self, key: Token, writable: bool) -> io::Result<()> {
        self.registry.set_interest(key, poller::Interest { readable: true, writable })
    }

    fn deregister(&mut self, key: Token) -> io::Result<()> {
        self.registry.remove(key);
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>, mut deliver: impl FnMut(usize)) -> io::Result<()> {
        self.registry.poller().wait(&mut self.ready, timeout)?;
        for event in self.ready.events() {
            if let Some((_, number)) = self.registry.resolve(event.key)
                && event.readable
            {
                deliver(*number);
            }
        }
        Ok(())
    }
}

impl Wake for Arc<Poller> {
    fn wake(&self) -> io::Result<()> {
        Poller::wake(self)
    }
}

pub struct Mio {
    poll: mio::Poll,
    events: mio::Events,
    waker: Arc<mio::Waker>,
    /// By descriptor.
    numbers: Vec<usize>,
}

const WAKER: mio::Token = mio::Token(usize::MAX);

impl Reactor for Mio {
    type Key = RawFd;
    type Waker = Arc<mio::Waker>;

    fn new() -> io::Result<Mio> {
        let poll = mio::Poll::new()?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), WAKER)?);
        Ok(Mio { poll, events: mio::Events::with_capacity(EVENTS_PER_WAIT), waker, numbers: Vec::new() })
    }

    fn waker(&self) -> Arc<mio::Waker> {
        Arc::clone(&self.waker)
    }

    fn register(&mut self, fd: RawFd, number: usize) -> io::Result<RawFd> {
        let token = mio::Token(fd as usize);
        if token.0 >= self.numbers.len() {
            self.numbers.resize(token.0 + 1, 0);
        }
        self.numbers[token.0] = number;
        self.poll.registry().register(&mut SourceFd(&fd), token, mio::Interest::READABLE)?;
        Ok(fd)
    }

    fn change(&mut self, fd: RawFd, writable: bool) -> io::Result<()> {
        let readable = mio::Interest::READABLE;
        let interest = if writable { readable | mio::Interest::WRITABLE } else { readable };
        self.poll.registry().reregister(&mut SourceFd(&fd), mio::Token(fd as usize), interest)
    }

    fn deregister(&mut self, fd: RawFd) -> io::Result<()> {
        self.poll.registry().deregister(&mut SourceFd(&fd))
    }

    fn wait(&mut self, timeout: Option<Duration>, mut deliver: impl FnMut(usize)) -> io::Result<()> {
        self.poll.poll(&mut self.events, timeout)?;
        for event in &self.events {
            if event.token() != WAKER && event.is_readable() {
                deliver(self.numbers[event.token().0]);
            }
        }
        Ok(())
    }
}

impl Wake for Arc<mio::Waker> {
    fn wake(&self) -> io::Result<()> {
        mio::Waker::wake(self)
    }
}
