//! A miniature of the event loop: what `src/core` does with the reactor, without Python.

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::clock::Instant;
use super::super::kernel::Wait;
use super::super::poll_policy::PollPolicy;
use super::super::poller::{Events, Interest};
use super::super::registry::{Registry, Token};
use super::super::spin::{AdaptiveSpin, spin_for_wakeup};
use super::super::timers::Timers;
use super::machine::Machine;
use super::program::Direction;
use super::set::Set;

const CLOCK_RESOLUTION: f64 = 1e-9;
const IDLE_EVENTS: u8 = 2;

pub struct Watch {
    pub fd: RawFd,
    pub by: By,
}

pub enum By {
    Waiters { reader: bool, writer: bool, idle: u8 },
    Transport,
}

impl Watch {
    fn waiter(&mut self, direction: Direction) -> Option<&mut bool> {
        match (&mut self.by, direction) {
            (By::Waiters { reader, .. }, Direction::Read) => Some(reader),
            (By::Waiters { writer, .. }, Direction::Write) => Some(writer),
            (By::Transport, _) => None,
        }
    }

    fn wanted(&self) -> Interest {
        match self.by {
            By::Waiters { reader, writer, .. } => {
                Interest { readable: reader, writable: writer, ..Interest::NONE }
            }
            By::Transport => Interest::NONE,
        }
    }

    fn is_idle(&self) -> bool {
        matches!(self.by, By::Waiters { reader: false, writer: false, .. })
    }
}

/// A watch that is notified, and by which of the poll's events.
#[derive(Clone, Copy, Debug)]
pub struct Notified {
    pub fd: RawFd,
    pub event: usize,
    pub readable: bool,
    pub writable: bool,
}

/// What a poll or a wait found.
#[derive(Default)]
pub struct Polled {
    pub events: usize,
    pub notified: Vec<Notified>,
    /// Whether a wait ended by its time alone.
    pub timed_out: bool,
}

pub struct EventLoop {
    pub machine: Rc<Machine>,
    pub registry: Registry<Watch, Set>,
    pub timers: Timers<u32>,
    pub poll_policy: PollPolicy,
    pub callbacks: u32,
    spin: AdaptiveSpin,
    events: Events,
    received: Vec<u32>,
    /// Messages that were received and taken out of the ready queue.
    pub run: Vec<u32>,
    pub fired: Vec<u32>,
    /// Iterations since the last poll.
    pub skipped: u32,
    /// Whether there may be stale registrations that could not be removed.
    pub keeps_stale: bool,
}

impl EventLoop {
    pub fn new(machine: &Rc<Machine>) -> EventLoop {
        EventLoop {
            machine: Rc::clone(machine),
            registry: Registry::new(Set::new(machine).expect("nothing is refused yet")),
            timers: Timers::default(),
            poll_policy: PollPolicy::default(),
            callbacks: 0,
            spin: AdaptiveSpin::default(),
            events: Events::default(),
            received: Vec::new(),
            run: Vec::new(),
            fired: Vec::new(),
            skipped: 0,
            keeps_stale: false,
        }
    }

    /// One iteration. Returns what it polled; None if it skipped the poll.
    pub fn iterate(&mut self, spins: bool) -> io::Result<Option<Polled>> {
        self.collect();
        let callbacks_wait = self.callbacks > 0 || !self.received.is_empty();
        self.callbacks = self.callbacks.saturating_sub(1);
        self.run.append(&mut self.received);
        self.skipped += 1;
        if callbacks_wait && self.poll_policy.try_skip_poll(self.timers.next_deadline()).is_some() {
            return Ok(None);
        }
        let mut now = Instant::now();
        let mut polled = None;
        if !callbacks_wait {
            let timeout = self
                .timers
                .next_deadline()
                .map(|deadline| Duration::from_secs_f64((deadline - now.seconds).clamp(0.0, 24.0 * 3600.0)));
            polled = Some(self.poll(now, timeout, spins)?);
            now = self.poll_policy.instant();
        } else if self.poll_policy.poll_is_due(now.seconds) {
            polled = Some(self.poll(now, Some(Duration::ZERO), false)?);
        }
        self.collect();
        if let Some(polled) = &mut polled {
            polled.timed_out &= self.received.is_empty();
        }
        while let Some(timer) = self.timers.pop_due(now.seconds + CLOCK_RESOLUTION) {
            self.fired.push(timer);
        }
        Ok(polled)
    }

    fn collect(&mut self) {
        if self.machine.queue.has_entries() {
            self.received.extend(self.machine.queue.take_all());
        }
    }

    fn poll(&mut self, now: Instant, timeout: Option<Duration>, spins: bool) -> io::Result<Polled> {
        self.poll_policy.start_poll(now);
        self.skipped = 0;
        let mut events = std::mem::take(&mut self.events);
        let mut result = self.wait(now.seconds, &mut events, timeout, spins);
        let is_recovered = result.is_err();
        if let Err(error) = result {
            result = self.registry.recover(error).and_then(|()| self.poll_nonblocking(&mut events));
        }
        let polled = result.map(|()| {
            // Also by a wake-up that comes late, when its message was taken.
            #[expect(clippy::len_zero, reason = "is_empty() passes over the waker's event")]
            let is_woken = events.len() > 0;
            let timed_out = !is_woken
                && !events.interrupted
                && !is_recovered
                && timeout.is_some_and(|timeout| timeout > Duration::ZERO);
            Polled { timed_out, ..self.dispatch_events(&events) }
        });
        self.events = events;
        polled
    }

    fn poll_nonblocking(&mut self, events: &mut Events) -> io::Result<()> {
        self.registry.refresh_poller()?;
        self.keeps_stale = self.registry.suspects_stale();
        self.registry.poller().wait(events, Some(Duration::ZERO))?;
        self.poll_policy.end_poll(events.is_empty());
        Ok(())
    }

    fn wait(
        &mut self,
        now: f64,
        events: &mut Events,
        timeout: Option<Duration>,
        spins: bool,
    ) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) {
            return self.poll_nonblocking(events);
        }
        self.registry.refresh_poller()?;
        self.keeps_stale = self.registry.suspects_stale();
        let poller = Arc::clone(self.registry.poller());
        let parker = &self.machine.queue.parker;
        let spins = spins || self.spin.should_spin(timeout);
        if !self.machine.queue.begin_wait(spins) {
            return self.poll_nonblocking(events);
        }
        let mut spun = None;
        let result = (|| {
            let mut timeout = timeout;
            if spins {
                let spin = spin_for_wakeup(parker, &*poller, events)?;
                spun = Some(spin.seconds);
                if spin.is_over {
                    return Ok(());
                }
                let passed = Duration::from_secs_f64(spin.seconds);
                timeout = timeout.map(|timeout| timeout.saturating_sub(passed));
            }
            poller.wait(events, timeout)
        })();
        let woken = parker.is_unparked();
        parker.unpark();
        self.poll_policy.end_wait();
        self.spin.record_wait(self.poll_policy.polled() - now, woken);
        if let Some(seconds) = spun {
            self.spin.record_spin(seconds);
        }
        result
    }

    fn dispatch_events(&mut self, events: &Events) -> Polled {
        let mut polled = Polled::default();
        let mut unwaited = Vec::new();
        let registry = &mut self.registry;
        for event in events.events() {
            polled.events += 1;
            let index = polled.events - 1;
            let Some((token, watch)) = registry.resolve(event.key) else {
                registry.suspect_stale();
                continue;
            };
            if event.only_priority {
                registry.mask_priority(token);
                continue;
            }
            let asked = registry.registered(token);
            let readable = event.readable && asked.readable;
            let writable = event.writable && asked.writable;
            let (readable, writable) = match watch.by {
                By::Transport => (readable, writable),
                By::Waiters { reader, writer, .. } => (readable && reader, writable && writer),
            };
            if readable || writable {
                polled.notified.push(Notified { fd: watch.fd, event: index, readable, writable });
            } else if matches!(watch.by, By::Waiters { .. }) {
                unwaited.push(token);
            }
        }
        unwaited.into_iter().for_each(|token| self.unregister_if_idle(token));
        polled
    }

    fn unregister_if_idle(&mut self, token: Token) {
        let registry = &mut self.registry;
        let Some(watch) = registry.get_mut(token) else { return };
        let wanted = watch.wanted();
        let By::Waiters { idle, .. } = &mut watch.by else { return };
        *idle += 1;
        if *idle <= IDLE_EVENTS {
            return;
        }
        *idle = 0;
        if wanted.is_none() {
            registry.remove(token);
        } else {
            let _ = registry.set_interest(token, wanted);
        }
    }

    // --- What the program asks for, as in `src/core/watching.rs` ---

    pub fn add_waiter(&mut self, fd: RawFd, direction: Direction) -> io::Result<()> {
        self.poll_policy.request_poll();
        let registry = &mut self.registry;
        let token = registry.find(fd).unwrap_or_else(|| {
            registry.insert(fd, Watch { fd, by: By::Waiters { reader: false, writer: false, idle: 0 } })
        });
        let mut interest = registry.registered(token);
        // An error may have removed the interest of a waiter that is there already.
        let wanted = registry.get(token).map_or(Interest::NONE, Watch::wanted);
        interest.readable |= wanted.readable || direction == Direction::Read;
        interest.writable |= wanted.writable || direction == Direction::Write;
        let taken = || io::Error::other("the descriptor belongs to a transport");
        registry.get_mut(token).and_then(|watch| watch.waiter(direction)).ok_or_else(taken)?;
        let token = match registry.renew_or_move(token, interest) {
            Ok(token) => token,
            Err(error) => {
                let token = registry.find(fd).unwrap_or(token);
                if registry.get(token).is_some_and(Watch::is_idle) {
                    registry.remove(token);
                }
                return Err(error);
            }
        };
        let watch = registry.get_mut(token).expect("it was just renewed");
        if let By::Waiters { idle, .. } = &mut watch.by {
            *idle = 0;
        }
        *watch.waiter(direction).expect("it is not a transport's") = true;
        Ok(())
    }

    pub fn take_waiter(&mut self, fd: RawFd, direction: Direction) {
        if let Some(token) = self.registry.find(fd)
            && let Some(waiter) = self.registry.get_mut(token).and_then(|watch| watch.waiter(direction))
        {
            *waiter = false;
        }
    }

    /// Returns whether the kernel was asked, and what it said.
    pub fn remove_waiter(&mut self, fd: RawFd, direction: Direction) -> Option<io::Result<()>> {
        let registry = &mut self.registry;
        let token = registry.find(fd)?;
        let watch = registry.get_mut(token)?;
        *watch.waiter(direction)? = false;
        let wanted = watch.wanted();
        if wanted.is_none() {
            registry.remove(token);
            return None;
        }
        (registry.registered(token) != wanted).then(|| registry.set_interest(token, wanted))
    }

    /// Returns the interest that is registered already.
    pub fn attach(&mut self, fd: RawFd) -> Interest {
        let watch = Watch { fd, by: By::Transport };
        let registry = &mut self.registry;
        if let Some(token) = registry.find(fd)
            && registry.get(token).is_some_and(Watch::is_idle)
            && let Ok(token) = registry.renew_or_move(token, Interest::READABLE)
            && let Some(idle) = registry.get_mut(token)
        {
            *idle = watch;
            return Interest::READABLE;
        }
        if let Some(token) = registry.find(fd) {
            registry.remove(token);
        }
        registry.insert(fd, watch);
        Interest::NONE
    }

    pub fn detach(&mut self, fd: RawFd) {
        if let Some(token) = self.registry.find(fd) {
            self.registry.remove(token);
        }
    }

    /// Returns whether the kernel was asked, and what it said.
    pub fn set_interest(&mut self, fd: RawFd, interest: Interest) -> Option<io::Result<()>> {
        self.poll_policy.request_poll();
        let token = self.registry.find(fd)?;
        (self.registry.registered(token) != interest).then(|| self.registry.set_interest(token, interest))
    }
}
