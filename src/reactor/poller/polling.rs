//! The wait and the notifier of the `polling` crate, on every platform.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::super::faults::{self, Call};
use super::{Event, Events, Set, Wait};

/// The longest wait. `polling` waits on when a signal cuts its wait short. The event loop has signals written to a descriptor and
/// watches that; where a program takes this away, signals are looked for each time that this is over.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// What `polling` reported.
#[derive(Default)]
pub struct Buffer {
    reported: ::polling::Events,
    /// `reported`, as the event loop has it.
    events: Vec<Event>,
}

impl Buffer {
    pub fn events(&self) -> impl Iterator<Item = Event> {
        self.events.iter().copied()
    }

    pub fn clear(&mut self) {
        self.reported.clear();
        self.events.clear();
    }
}

pub struct PollingWait;

impl Wait for PollingWait {
    #[inline(never)]
    fn wait(&self, set: &Set, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let buffer = &mut events.polling;
        buffer.clear();
        let timeout = timeout.map_or(LONGEST_WAIT, |timeout| timeout.min(LONGEST_WAIT));
        faults::attempt(Call::EpollWait)?;
        set.wait(&mut buffer.reported, Some(timeout))?;
        buffer.events.extend(buffer.reported.iter().map(|event| Event {
            key: event.key,
            readable: event.readable,
            writable: event.writable,
            only_priority: is_only_priority(&event),
        }));
        Ok(())
    }

    fn wake(&self, set: &Set) -> io::Result<()> {
        faults::attempt(Call::Wake)?;
        set.notify()
    }

    fn is_intact(&self, _: &Set) -> Option<bool> {
        None
    }

    fn is_own(&self, _: RawFd) -> bool {
        false
    }
}

/// Whether an event is EPOLLPRI without EPOLLHUP. `polling` does not say whether EPOLLIN was among the flags: if it was, it is
/// reported again after [`mask_priority`](super::mask_priority).
fn is_only_priority(event: &::polling::Event) -> bool {
    cfg!(target_os = "linux") && event.is_priority() && !event.is_interrupt()
}

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{mask_priority, replace_inherited};

/// What epoll's sets need and others don't.
#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::*;

    pub fn mask_priority(_: &Set, _: RawFd, _: usize, _: super::super::Interest) -> io::Result<()> {
        Ok(())
    }

    pub fn replace_inherited(_: RawFd) -> bool {
        false
    }
}
