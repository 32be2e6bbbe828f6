//! The two reactors behind one interface.
//!
//! Each finds, for an event, the number that its descriptor was registered with, as an event loop finds a watch. hotloop's registry
//! does it by itself, and checks that the registration is still there. mio leaves it to its user: here to a table by descriptor,
//! without a check.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use hotloop::reactor::kernel::Wait;
use hotloop::reactor::poller::{self, Backend, Poller};
use hotloop::reactor::registry::{Registry, Token};
use mio::unix::SourceFd;

/// The most events of one wait: hotloop's number, which its users can't choose.
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

    /// Watches a descriptor for reading.
    fn register(&mut self, fd: RawFd, number: usize) -> io::Result<Self::Key>;

    /// Watches it for reading, and for writing if `writable`.
    fn change(&mut self, key: Self::Key, writable: bool) -> io::Result<()>;

    fn deregister(&mut self, key: Self::Key) -> io::Result<()>;

    /// Waits, and calls `on_readable` with the number of each readable descriptor.
    fn wait(&mut self, timeout: Option<Duration>, on_readable: impl FnMut(usize)) -> io::Result<()>;
}

pub trait Wake: Clone + Send + 'static {
    fn wake(&self) -> io::Result<()>;
}

pub struct Hotloop {
    registry: Registry<usize>,
    events: poller::Events,
}

impl Reactor for Hotloop {
    type Key = Token;
    type Waker = Arc<Poller>;

    fn new() -> io::Result<Hotloop> {
        Ok(Hotloop {
            registry: Registry::new(Poller::new(Backend::default())?),
            events: poller::Events::default(),
        })
    }

    fn waker(&self) -> Arc<Poller> {
        Arc::clone(self.registry.poller())
    }

    fn register(&mut self, fd: RawFd, number: usize) -> io::Result<Token> {
        let token = self.registry.insert(fd, number);
        self.registry.set_interest(token, poller::Interest::READABLE)?;
        Ok(token)
    }

    fn change(&mut self, key: Token, writable: bool) -> io::Result<()> {
        self.registry.set_interest(key, poller::Interest { readable: true, writable })
    }

    fn deregister(&mut self, key: Token) -> io::Result<()> {
        self.registry.remove(key);
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>, mut on_readable: impl FnMut(usize)) -> io::Result<()> {
        self.registry.poller().wait(&mut self.events, timeout)?;
        for event in self.events.events() {
            if let Some((_, number)) = self.registry.resolve(event.key)
                && event.readable
            {
                on_readable(*number);
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

    fn wait(&mut self, timeout: Option<Duration>, mut on_readable: impl FnMut(usize)) -> io::Result<()> {
        self.poll.poll(&mut self.events, timeout)?;
        for event in &self.events {
            if event.token() != WAKER && event.is_readable() {
                on_readable(self.numbers[event.token().0]);
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
