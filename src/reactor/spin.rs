//! Waiting for another thread that is about to answer, without sleeping.
//!
//! A thread that sleeps takes tens of microseconds to wake up: longer than another thread often needs to do what it
//! was asked to. So where the last wake-up came soon, the next is awaited with open eyes for as long, and only then
//! asleep. Descriptors are polled at meanwhile, and the processor is offered to whoever else is waiting for it: often
//! just that thread. If somebody else took it for long, processors are scarce, and spinning is given up for a while.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use super::clock;
use super::inject_queue::Sleep;
use super::kernel::Kernel;
use super::poller::Events;

/// The longest spin, in seconds...
const MAX_SPIN: f64 = 50e-6;
/// ...in which descriptors are polled at so often.
const POLL_INTERVAL: f64 = 10e-6;
/// A thread that always answers sooner must not keep the loop from the descriptors: every so many spins end with a look.
const MAX_WITHOUT_POLL: u8 = 8;
/// Looks at the state between two at the clock.
const CHECKS_PER_CLOCK_READ: u32 = 16;
/// A spin that took so many seconds was not ours to end: others had the processor.
const OVERRUN: f64 = 4.0 * MAX_SPIN;

/// After such a spin, at least so many waits are without one, and twice as many each time...
const MIN_COOLDOWN: u32 = 256;
/// ...up to so many.
const MAX_COOLDOWN: u32 = 65536;

/// Whether a spin is worth its while.
#[derive(Default)]
pub struct AdaptiveSpin {
    /// Whether the last wait was ended by another thread, within the time of a spin.
    woken_soon: Cell<bool>,
    /// Waits to come without a spin.
    cooldown: Cell<u32>,
    /// How many those were the last time, less the spins since that went well.
    last_cooldown: Cell<u32>,
}

impl AdaptiveSpin {
    /// Whether to spin before a wait.
    pub fn should_spin(&self, timeout: Option<Duration>) -> bool {
        if !self.woken_soon.get() || timeout.is_some_and(|timeout| timeout.as_secs_f64() < 2.0 * MAX_SPIN) {
            return false;
        }
        let cooldown = self.cooldown.get();
        self.cooldown.set(cooldown.saturating_sub(1));
        cooldown == 0 && has_processors()
    }

    /// A wait is over that took so many seconds, and may have been ended by another thread.
    pub fn record_wait(&self, seconds: f64, woken: bool) {
        self.woken_soon.set(woken && seconds < MAX_SPIN);
    }

    /// The same for a wait that began with a spin of so many seconds.
    pub fn record_spin(&self, spun: f64) {
        let last_cooldown = self.last_cooldown.get();
        if spun < OVERRUN {
            self.last_cooldown.set(last_cooldown.saturating_sub(1));
        } else {
            let cooldown = (2 * last_cooldown).clamp(MIN_COOLDOWN, MAX_COOLDOWN);
            self.last_cooldown.set(cooldown);
            self.cooldown.set(cooldown);
        }
    }
}

/// Whether other threads can run while this one does nothing.
fn has_processors() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| std::thread::available_parallelism().is_ok_and(|count| count.get() > 1))
}

/// How a spin ended.
pub struct Spin {
    /// Whether it was enough: somebody has ended the sleep, or descriptors are ready.
    pub is_over: bool,
    /// How long it took, by the last look at the clock.
    pub seconds: f64,
}

/// Waits for a short time.
pub fn spin_for_wakeup<K: Kernel>(sleep: &Sleep, kernel: &K, ready: &mut Events) -> io::Result<Spin> {
    // A delivery can end the spin before there is a look at the descriptors.
    ready.clear();
    let start = clock::now();
    let mut now = start;
    let mut next_poll = start + POLL_INTERVAL;
    let mut polled = false;
    let is_over = 'spin: loop {
        for _ in 0..CHECKS_PER_CLOCK_READ {
            if sleep.is_awake() {
                break 'spin true;
            }
            std::hint::spin_loop();
        }
        kernel.yield_now();
        now = clock::now();
        if now >= next_poll {
            kernel.wait(ready, Some(Duration::ZERO))?;
            polled = true;
            if !ready.is_empty() || ready.interrupted {
                break true;
            }
            next_poll = now + POLL_INTERVAL;
        }
        if now - start >= MAX_SPIN {
            break !sleep.park();
        }
    };
    // If the spin is not over, a wait follows.
    if sleep.count_without_poll(polled || !is_over) >= MAX_WITHOUT_POLL {
        kernel.wait(ready, Some(Duration::ZERO))?;
        sleep.count_without_poll(true);
    }
    Ok(Spin { is_over, seconds: now - start })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::reactor::inject_queue::InjectQueue;
    use crate::reactor::poller::Poller;
    use std::sync::Arc;

    #[test]
    fn only_those_who_were_woken_soon_doze() {
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
    fn who_overslept_stays_sober() {
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
        assert_eq!(spin.cooldown.get(), MIN_COOLDOWN, "forgotten");
    }

    #[test]
    fn a_doze_ends_by_a_delivery_an_event_or_its_time() {
        let injected = InjectQueue::default();
        let poller = Poller::new(false).unwrap();
        let mut ready = Events::default();

        assert!(injected.begin_wait(true));
        assert!(!injected.push(1), "who spins need not be woken");
        assert!(spin_for_wakeup(&injected.sleep, &poller, &mut ready).unwrap().is_over);
        injected.take_all();

        assert!(injected.begin_wait(true));
        let spun = spin_for_wakeup(&injected.sleep, &poller, &mut ready).unwrap();
        assert!(!spun.is_over && spun.seconds >= MAX_SPIN);
        assert!(injected.push(2), "who sleeps must be woken");
        injected.take_all();

        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(writer);
        use std::os::fd::AsRawFd;
        poller.add(reader.as_raw_fd(), 7, crate::reactor::poller::Interest::READABLE).unwrap();
        assert!(injected.begin_wait(true));
        assert!(spin_for_wakeup(&injected.sleep, &poller, &mut ready).unwrap().is_over);
        assert_eq!(ready.events().map(|event| event.key).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn a_doze_that_a_delivery_ends_tells_nothing_of_an_earlier_wait() {
        let (injected, poller, mut ready) =
            (InjectQueue::default(), Poller::new(false).unwrap(), Events::default());
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        use std::os::fd::AsRawFd;
        poller.add(stream.as_raw_fd(), 7, crate::reactor::poller::Interest::WRITABLE).unwrap();
        poller.wait(&mut ready, None).unwrap();
        assert!(!ready.is_empty());
        assert!(injected.begin_wait(true));
        assert!(!injected.push(1));
        assert!(spin_for_wakeup(&injected.sleep, &poller, &mut ready).unwrap().is_over);
        assert!(ready.is_empty());
    }

    #[test]
    fn a_thread_that_answers_soon_does_not_keep_the_loop_from_descriptors() {
        let (injected, poller, mut ready) =
            (InjectQueue::default(), Poller::new(false).unwrap(), Events::default());
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        use std::os::fd::AsRawFd;
        poller.add(stream.as_raw_fd(), 7, crate::reactor::poller::Interest::WRITABLE).unwrap();
        let found = (0..MAX_WITHOUT_POLL).filter(|_| {
            assert!(injected.begin_wait(true));
            assert!(!injected.push(1));
            spin_for_wakeup(&injected.sleep, &poller, &mut ready).unwrap();
            injected.take_all();
            !ready.is_empty()
        });
        assert!(found.count() > 0);
    }

    #[test]
    fn no_delivery_is_dozed_or_slept_through() {
        const MESSAGES: u32 = 20_000;
        let shared = Arc::new((InjectQueue::default(), Poller::new(false).unwrap()));
        let sender = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for message in 0..MESSAGES {
                    if shared.0.push(message) {
                        shared.1.wake().unwrap();
                    }
                    // Some come during a spin, some at its end, some after it.
                    let pause = Duration::from_secs_f64(f64::from(message % 16) * MAX_SPIN / 8.0);
                    let start = std::time::Instant::now();
                    while start.elapsed() < pause {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let mut received = 0;
        let mut ready = Events::default();
        while received < MESSAGES {
            if shared.0.begin_wait(true)
                && !spin_for_wakeup(&shared.0.sleep, &shared.1, &mut ready).unwrap().is_over
            {
                let start = std::time::Instant::now();
                shared.1.wait(&mut ready, Some(Duration::from_secs(20))).unwrap();
                assert!(start.elapsed() < Duration::from_secs(10), "a delivery was slept through");
            }
            shared.0.sleep.end();
            received += shared.0.take_all().len() as u32;
        }
        sender.join().unwrap();
    }
}
