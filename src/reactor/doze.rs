//! Waiting for another thread that is about to answer, without sleeping.
//!
//! A thread that sleeps takes tens of microseconds to wake up: longer than another thread often needs to do what it
//! was asked to. So where the last wake-up came soon, the next is awaited with open eyes for as long, and only then
//! asleep. Descriptors are looked at meanwhile, and the processor is offered to whoever else is waiting for it: often
//! just that thread. If somebody else took it for long, processors are scarce, and dozing is given up for a while.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use super::clock;
use super::kernel::Kernel;
use super::poller::Ready;
use super::waker::Sleep;

/// The longest doze, in seconds...
const LONGEST: f64 = 50e-6;
/// ...in which descriptors are looked at so often.
const POLL_INTERVAL: f64 = 10e-6;
/// A thread that always answers sooner must not keep the loop from the descriptors: every so many dozes end with a look.
const MOST_BLIND: u8 = 8;
/// Looks at the state between two at the clock.
const LOOKS: u32 = 16;
/// A doze that took so many seconds was not ours to end: others had the processor.
const OVERSLEPT: f64 = 4.0 * LONGEST;

/// After such a doze, at least so many waits are without one, and twice as many each time...
const FEWEST_SOBER: u32 = 256;
/// ...up to so many.
const MOST_SOBER: u32 = 65536;

/// Whether a doze is worth its while.
#[derive(Default)]
pub struct Drowsiness {
    /// Whether the last wait was ended by another thread, within the time of a doze.
    woken_soon: Cell<bool>,
    /// Waits to come without a doze.
    sober: Cell<u32>,
    /// How many those were the last time, less the dozes since that went well.
    penalty: Cell<u32>,
}

impl Drowsiness {
    /// Whether to doze before a wait.
    pub fn wants_doze(&self, timeout: Option<Duration>) -> bool {
        if !self.woken_soon.get() || timeout.is_some_and(|timeout| timeout.as_secs_f64() < 2.0 * LONGEST) {
            return false;
        }
        let sober = self.sober.get();
        self.sober.set(sober.saturating_sub(1));
        sober == 0 && has_processors()
    }

    /// A wait is over that took so many seconds, and may have been ended by another thread.
    pub fn learn(&self, seconds: f64, woken: bool) {
        self.woken_soon.set(woken && seconds < LONGEST);
    }

    /// The same for a wait that began with a doze of so many seconds.
    pub fn learn_from_doze(&self, dozed: f64) {
        let penalty = self.penalty.get();
        if dozed < OVERSLEPT {
            self.penalty.set(penalty.saturating_sub(1));
        } else {
            let sober = (2 * penalty).clamp(FEWEST_SOBER, MOST_SOBER);
            self.penalty.set(sober);
            self.sober.set(sober);
        }
    }
}

/// Whether other threads can run while this one does nothing.
fn has_processors() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| std::thread::available_parallelism().is_ok_and(|count| count.get() > 1))
}

/// How a doze ended.
pub struct Doze {
    /// Whether it was enough: somebody has ended the sleep, or descriptors are ready.
    pub is_over: bool,
    /// How long it took, by the last look at the clock.
    pub seconds: f64,
}

/// Waits for a short time.
pub fn doze<K: Kernel>(sleep: &Sleep, kernel: &K, ready: &mut Ready) -> io::Result<Doze> {
    // A delivery can end the doze before there is a look at the descriptors.
    ready.clear();
    let start = clock::now();
    let mut now = start;
    let mut next_poll = start + POLL_INTERVAL;
    let mut looked = false;
    let is_over = 'doze: loop {
        for _ in 0..LOOKS {
            if sleep.is_awake() {
                break 'doze true;
            }
            std::hint::spin_loop();
        }
        kernel.yield_now();
        now = clock::now();
        if now >= next_poll {
            kernel.wait(ready, Some(Duration::ZERO))?;
            looked = true;
            if !ready.is_empty() || ready.interrupted {
                break true;
            }
            next_poll = now + POLL_INTERVAL;
        }
        if now - start >= LONGEST {
            break !sleep.deepen();
        }
    };
    // If the doze is not over, a wait follows.
    if sleep.count_blind(looked || !is_over) >= MOST_BLIND {
        kernel.wait(ready, Some(Duration::ZERO))?;
        sleep.count_blind(true);
    }
    Ok(Doze { is_over, seconds: now - start })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::reactor::poller::Poller;
    use crate::reactor::waker::Inbox;
    use std::sync::Arc;

    #[test]
    fn only_those_who_were_woken_soon_doze() {
        let drowsiness = Drowsiness::default();
        assert!(!drowsiness.wants_doze(None));
        drowsiness.learn(LONGEST / 2.0, true);
        assert_eq!(drowsiness.wants_doze(None), has_processors());
        assert!(!drowsiness.wants_doze(Some(Duration::from_secs_f64(LONGEST))), "a timer comes first");
        for (seconds, woken) in [(LONGEST * 2.0, true), (LONGEST / 2.0, false)] {
            drowsiness.learn(LONGEST / 2.0, true);
            drowsiness.learn(seconds, woken);
            assert!(!drowsiness.wants_doze(None), "{seconds} {woken}");
        }
    }

    #[test]
    fn who_overslept_stays_sober() {
        let drowsiness = Drowsiness::default();
        drowsiness.learn(LONGEST / 2.0, true);
        for times in 0..12 {
            drowsiness.learn_from_doze(OVERSLEPT);
            let expected = (FEWEST_SOBER << times).min(MOST_SOBER);
            assert!((0..expected).all(|_| !drowsiness.wants_doze(None)));
            assert_eq!(drowsiness.wants_doze(None), has_processors());
        }
        for _ in 0..MOST_SOBER {
            drowsiness.learn_from_doze(LONGEST);
        }
        drowsiness.learn_from_doze(OVERSLEPT);
        assert_eq!(drowsiness.sober.get(), FEWEST_SOBER, "forgotten");
    }

    #[test]
    fn a_doze_ends_by_a_delivery_an_event_or_its_time() {
        let inbox = Inbox::default();
        let poller = Poller::new(false).unwrap();
        let mut ready = Ready::default();

        assert!(inbox.fall_asleep(true));
        assert!(!inbox.deliver(1), "who dozes need not be woken");
        assert!(doze(&inbox.sleep, &poller, &mut ready).unwrap().is_over);
        inbox.collect();

        assert!(inbox.fall_asleep(true));
        let dozed = doze(&inbox.sleep, &poller, &mut ready).unwrap();
        assert!(!dozed.is_over && dozed.seconds >= LONGEST);
        assert!(inbox.deliver(2), "who sleeps must be woken");
        inbox.collect();

        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(writer);
        use std::os::fd::AsRawFd;
        poller.add(reader.as_raw_fd(), 7, crate::reactor::poller::Interest::READABLE).unwrap();
        assert!(inbox.fall_asleep(true));
        assert!(doze(&inbox.sleep, &poller, &mut ready).unwrap().is_over);
        assert_eq!(ready.events().map(|event| event.key).collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn a_doze_that_a_delivery_ends_tells_nothing_of_an_earlier_wait() {
        let (inbox, poller, mut ready) = (Inbox::default(), Poller::new(false).unwrap(), Ready::default());
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        use std::os::fd::AsRawFd;
        poller.add(stream.as_raw_fd(), 7, crate::reactor::poller::Interest::WRITABLE).unwrap();
        poller.wait(&mut ready, None).unwrap();
        assert!(!ready.is_empty());
        assert!(inbox.fall_asleep(true));
        assert!(!inbox.deliver(1));
        assert!(doze(&inbox.sleep, &poller, &mut ready).unwrap().is_over);
        assert!(ready.is_empty());
    }

    #[test]
    fn a_thread_that_answers_soon_does_not_keep_the_loop_from_descriptors() {
        let (inbox, poller, mut ready) = (Inbox::default(), Poller::new(false).unwrap(), Ready::default());
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        use std::os::fd::AsRawFd;
        poller.add(stream.as_raw_fd(), 7, crate::reactor::poller::Interest::WRITABLE).unwrap();
        let found = (0..MOST_BLIND).filter(|_| {
            assert!(inbox.fall_asleep(true));
            assert!(!inbox.deliver(1));
            doze(&inbox.sleep, &poller, &mut ready).unwrap();
            inbox.collect();
            !ready.is_empty()
        });
        assert!(found.count() > 0);
    }

    #[test]
    fn no_delivery_is_dozed_or_slept_through() {
        const MESSAGES: u32 = 20_000;
        let shared = Arc::new((Inbox::default(), Poller::new(false).unwrap()));
        let sender = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for message in 0..MESSAGES {
                    if shared.0.deliver(message) {
                        shared.1.wake().unwrap();
                    }
                    // Some come during a doze, some at its end, some after it.
                    let pause = Duration::from_secs_f64(f64::from(message % 16) * LONGEST / 8.0);
                    let start = std::time::Instant::now();
                    while start.elapsed() < pause {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let mut received = 0;
        let mut ready = Ready::default();
        while received < MESSAGES {
            if shared.0.fall_asleep(true) && !doze(&shared.0.sleep, &shared.1, &mut ready).unwrap().is_over {
                let start = std::time::Instant::now();
                shared.1.wait(&mut ready, Some(Duration::from_secs(20))).unwrap();
                assert!(start.elapsed() < Duration::from_secs(10), "a delivery was slept through");
            }
            shared.0.sleep.end();
            received += shared.0.collect().len() as u32;
        }
        sender.join().unwrap();
    }
}
