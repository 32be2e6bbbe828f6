//! The wait and the notifier of the `polling` crate, on every platform.

use std::io;
use std::time::Duration;

use super::super::faults::{self, Call};
use super::{Event, Events, Set, SetWait};

/// The longest wait. `polling` waits on when a signal cuts its wait short. The event loop has signals written to a descriptor and
/// watches that; where a program takes this away, the loop checks for signals after each wait.
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

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn truncate(&mut self, count: usize) {
        self.events.truncate(count);
    }

    pub fn clear(&mut self) {
        self.reported.clear();
        self.events.clear();
    }
}

pub struct PollingWait;

impl SetWait for PollingWait {
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
}

/// Whether an event is EPOLLPRI without EPOLLHUP. `polling` does not say whether EPOLLIN was among the flags: if it was, it is
/// reported again after [`mask_priority`](super::mask_priority).
fn is_only_priority(event: &::polling::Event) -> bool {
    cfg!(target_os = "linux") && event.is_priority() && !event.is_interrupt()
}

/// A no-op: no other set asks for out-of-band data by itself.
#[cfg(not(target_os = "linux"))]
pub fn mask_priority(_: &Set, _: std::os::fd::RawFd, _: usize, _: super::Interest) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub fn replace_inherited(_: std::os::fd::RawFd) -> bool {
    false
}
