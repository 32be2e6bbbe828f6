//! Spin, then park: a wait for another thread that is about to answer.
//!
//! A parked thread takes tens of microseconds to wake up, which is longer than another thread often needs for its answer. So if
//! another thread ended the last wait within [`MAX_SPIN`], the next wait begins with a spin of that length. A spin polls the
//! descriptors, and yields the processor, often to the very thread that is waited for.
//!
//! A spin of [`OVERRUN`] or more shows that processors are scarce: others had this one. Then the loop backs off:
//!
//! ```text
//! overrun --> the next MIN_COOLDOWN waits do not spin --> overrun --> twice as many do not --> ... MAX_COOLDOWN
//! ```
//!
//! Each spin without an overrun shortens the next cooldown by one wait, before it is doubled.
//!
//! Before each wait, `src/core` asks [`AdaptiveSpin`] whether to spin, calls [`spin_for_wakeup`] without the GIL, and records
//! what came of it.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use super::clock;
use super::inject_queue::Parker;
use super::kernel::Wait;
use super::poller::Events;

/// The longest spin, in seconds.
const MAX_SPIN: f64 = 50e-6;
/// Seconds between two polls of a spin.
const POLL_INTERVAL: f64 = 10e-6;
/// The most spins in a row without a poll: a thread that always answers sooner must not starve the descriptors.
const MAX_WITHOUT_POLL: u8 = 8;
/// Readings of the wait's state between two of the clock.
const CHECKS_PER_CLOCK_READ: u32 = 16;
/// Seconds that a spin takes only if other threads had the processor.
const OVERRUN: f64 = 4.0 * MAX_SPIN;

/// Waits without a spin after the first overrun.
const MIN_COOLDOWN: u32 = 256;
const MAX_COOLDOWN: u32 = 65536;

/// Decides whether a wait begins with a spin.
#[derive(Default)]
pub struct AdaptiveSpin {
    /// Whether another thread ended the last wait within [`MAX_SPIN`].
    woken_soon: Cell<bool>,
    /// Waits still to come without a spin.
    cooldown: Cell<u32>,
    /// The length of the last cooldown, less the spins since that had no overrun.
    last_cooldown: Cell<u32>,
}

impl AdaptiveSpin {
    /// Whether to spin before a wait. Counts the wait towards the cooldown.
    pub fn should_spin(&self, timeout: Option<Duration>) -> bool {
        if !self.woken_soon.get() || timeout.is_some_and(|timeout| timeout.as_secs_f64() < 2.0 * MAX_SPIN) {
            return false;
        }
        let cooldown = self.cooldown.get();
        self.cooldown.set(cooldown.saturating_sub(1));
        cooldown == 0 && has_processors()
    }

    /// Records how long a wait took, with its spin, and whether another thread ended it.
    pub fn record_wait(&self, seconds: f64, woken: bool) {
        self.woken_soon.set(woken && seconds < MAX_SPIN);
    }

    /// Records how long a spin took.
    pub fn record_spin(&self, seconds: f64) {
        let last_cooldown = self.last_cooldown.get();
        if seconds < OVERRUN {
            self.last_cooldown.set(last_cooldown.saturating_sub(1));
        } else {
            let cooldown = (2 * last_cooldown).clamp(MIN_COOLDOWN, MAX_COOLDOWN);
            self.last_cooldown.set(cooldown);
            self.cooldown.set(cooldown);
        }
    }
}

/// Whether another thread can run while this one spins.
fn has_processors() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| std::thread::available_parallelism().is_ok_and(|count| count.get() > 1))
}

/// How a spin ended.
pub struct SpinResult {
    /// Whether the wait is over: another thread has ended it, or there are events. If not, the loop is parked.
    pub is_over: bool,
    /// How long the spin took, by its last reading of the clock.
    pub seconds: f64,
}

/// Spins for up to [`MAX_SPIN`], and parks then.
pub fn spin_for_wakeup(parker: &Parker, kernel: &impl Wait, events: &mut Events) -> io::Result<SpinResult> {
    // The spin may end without a poll.
    events.clear();
    let start = clock::now();
    let mut now = start;
    let mut next_poll = start + POLL_INTERVAL;
    let mut polled = false;
    let is_over = 'spin: loop {
        for _ in 0..CHECKS_PER_CLOCK_READ {
            if parker.is_unparked() {
                break 'spin true;
            }
            std::hint::spin_loop();
        }
        kernel.yield_now();
        now = clock::now();
        if now >= next_poll {
            kernel.wait(events, Some(Duration::ZERO))?;
            polled = true;
            if !events.is_empty() || events.interrupted {
                break true;
            }
            next_poll = now + POLL_INTERVAL;
        }
        if now - start >= MAX_SPIN {
            break !parker.park();
        }
    };
    // A parked loop goes on to wait on the kernel, which is a poll, too.
    if parker.count_without_poll(polled || !is_over) >= MAX_WITHOUT_POLL {
        kernel.wait(events, Some(Duration::ZERO))?;
        parker.count_without_poll(true);
    }
    Ok(SpinResult { is_over, seconds: now - start })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::reactor::inject_queue::InjectQueue;
    use crate::reactor::kernel::Kernel;
    use crate::reactor::poller::{Backend, Interest, Poller};
    use std::os::fd::AsRawFd;

    #[test]
    fn only_a_loop_that_was_woken_soon_spins() {
        let spin = AdaptiveSpin::default();
        assert!(!spin.should_spin(None));
        spin.record_wait(MAX_SPIN / 2.0, true);
        assert_eq!(spin.should_spin(None), has_processors());
        assert!(!spin.should_spin(Some(Duration::from_secs_f64(MAX_SPIN))), "a timer comes first");
        for (seconds, woken) in [(MAX_SPIN * 2.0, true), (MAX_SPIN / 2.0, false)] {
            spin.record_wait(MAX_SPIN / 2.0, true);
            spin.record_wait(seconds, woken);
            assert!(!spin.should_spin(None), "{seconds} {woken}");
        }
    }

    #[test]
    fn an_overrun_is_followed_by_a_cooldown() {
        let spin = AdaptiveSpin::default();
        spin.record_wait(MAX_SPIN / 2.0, true);
        for times in 0..12 {
            spin.record_spin(OVERRUN);
            let expected = (MIN_COOLDOWN << times).min(MAX_COOLDOWN);
            assert!((0..expected).all(|_| !spin.should_spin(None)));
            assert_eq!(spin.should_spin(None), has_processors());
        }
        for _ in 0..MAX_COOLDOWN {
            spin.record_spin(MAX_SPIN);
        }
        spin.record_spin(OVERRUN);
        assert_eq!(spin.cooldown.get(), MIN_COOLDOWN, "spins without an overrun end the back-off");
    }

    #[test]
    fn a_spin_ends_by_a_message_an_event_or_its_time() {
        let queue = InjectQueue::default();
        let poller = Poller::new(Backend::default()).unwrap();
        let mut events = Events::default();

        assert!(queue.begin_wait(true));
        assert!(!queue.push(1).unwrap(), "a loop that spins need not be woken");
        assert!(spin_for_wakeup(&queue.parker, &poller, &mut events).unwrap().is_over);
        queue.take_all();

        assert!(queue.begin_wait(true));
        let spun = spin_for_wakeup(&queue.parker, &poller, &mut events).unwrap();
        assert!(!spun.is_over && spun.seconds >= MAX_SPIN);
        assert!(queue.push(2).unwrap(), "a loop that is parked must be woken");
        queue.take_all();

        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(writer);
        poller.add(reader.as_raw_fd(), 7, Interest::READABLE).unwrap();
        assert!(queue.begin_wait(true));
        assert!(spin_for_wakeup(&queue.parker, &poller, &mut events).unwrap().is_over);
        assert_eq!(events.events().map(|event| event.key).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn a_spin_that_a_message_ends_reports_no_event_of_an_earlier_wait() {
        let (queue, poller, mut events) =
            (InjectQueue::default(), Poller::new(Backend::default()).unwrap(), Events::default());
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        poller.add(stream.as_raw_fd(), 7, Interest::WRITABLE).unwrap();
        poller.wait(&mut events, None).unwrap();
        assert!(!events.is_empty());
        assert!(queue.begin_wait(true));
        assert!(!queue.push(1).unwrap());
        assert!(spin_for_wakeup(&queue.parker, &poller, &mut events).unwrap().is_over);
        assert!(events.is_empty());
    }

    #[test]
    fn a_thread_that_answers_soon_does_not_starve_descriptors() {
        let (queue, poller, mut events) =
            (InjectQueue::default(), Poller::new(Backend::default()).unwrap(), Events::default());
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        poller.add(stream.as_raw_fd(), 7, Interest::WRITABLE).unwrap();
        let found = (0..MAX_WITHOUT_POLL).filter(|_| {
            assert!(queue.begin_wait(true));
            assert!(!queue.push(1).unwrap());
            spin_for_wakeup(&queue.parker, &poller, &mut events).unwrap();
            queue.take_all();
            !events.is_empty()
        });
        assert!(found.count() > 0);
    }

    /// Has `senders` threads send messages to a loop that waits until it has all of them.
    fn exchange(senders: u32, spins: bool) {
        const MESSAGES: u32 = 20_000;
        let (queue, poller) = (InjectQueue::default(), Poller::new(Backend::default()).unwrap());
        let send = || {
            for message in 0..MESSAGES {
                if queue.push(message).unwrap() {
                    poller.wake().unwrap();
                }
                // Some come during a spin, some at its end, some after it.
                let pause = f64::from(message % 16) * MAX_SPIN / 8.0;
                let start = clock::now();
                while spins && clock::now() - start < pause {
                    std::thread::yield_now();
                }
            }
        };
        std::thread::scope(|scope| {
            (0..senders).for_each(|_| _ = scope.spawn(send));
            let (mut received, mut events) = (0, Events::default());
            while received < senders * MESSAGES {
                if queue.begin_wait(spins)
                    && !(spins && spin_for_wakeup(&queue.parker, &poller, &mut events).unwrap().is_over)
                {
                    let start = clock::now();
                    poller.wait(&mut events, Some(Duration::from_secs(20))).unwrap();
                    assert!(clock::now() - start < 10.0, "a message was missed");
                }
                queue.parker.unpark();
                received += queue.take_all().len() as u32;
            }
        });
    }

    #[test]
    fn a_parked_loop_misses_no_message() {
        exchange(2, false);
    }

    #[test]
    fn a_spinning_loop_misses_no_message() {
        exchange(1, true);
    }
}
