//! When a loop that does not wait gives other threads the lock that it runs with, Python's GIL.
//!
//! Another thread would have it only at its own request, after some milliseconds. So the loop releases it for [`HANDOVER`] seconds, if
//! other threads have used a processor: those that wait for the lock use it when they wake up, those that wait for work do not. Threads
//! that work without the lock use it, too, and all that they get is a loop that stands still. They are told apart by what happens while the
//! lock is released: who waited for it uses more of a processor then than before.
//!
//! ```text
//! LEAST_INTERVAL --- nobody used it ---> twice as long --- ... ---> MOST_INTERVAL
//!        ^                                    |                          |
//!        +------------- somebody did ---------+--------------------------+
//! ```

use std::cell::Cell;

/// Seconds between two times, at the least. Without any, another thread waits for the interpreter's switch interval each time.
const LEAST_INTERVAL: f64 = 200e-6;
/// Seconds between two times while nobody makes use of them. The interpreter's own switch interval is not much longer.
const MOST_INTERVAL: f64 = 16.0 * LEAST_INTERVAL;
/// The lock is released for so many seconds: a thread needs as long to wake up.
pub const HANDOVER: f64 = 50e-6;
/// It is released only if other threads have used a processor for more seconds than this, which taking one message does not.
const OTHERS_RUN: f64 = 2e-6;
/// Seconds of a processor that somebody who waited uses at the least, beside what the others use all the time.
const USED: f64 = 5e-6;

/// Decides when. All times are in seconds; `others` is the processor time of all other threads until now.
pub struct Handover {
    /// When the lock was last released, or there was no reason to.
    released: Cell<f64>,
    others: Cell<f64>,
    /// When that was read.
    measured: Cell<f64>,
    interval: Cell<f64>,
    /// What part of the time the others used a processor before.
    share: Cell<f64>,
}

impl Default for Handover {
    fn default() -> Handover {
        Handover {
            released: Cell::new(f64::NEG_INFINITY),
            others: Cell::new(0.0),
            measured: Cell::new(f64::NEG_INFINITY),
            interval: Cell::new(LEAST_INTERVAL),
            share: Cell::new(0.0),
        }
    }
}

impl Handover {
    /// Whether to ask for the processor time of the others.
    #[inline(always)]
    pub fn is_due(&self, now: f64) -> bool {
        now - self.released.get() >= self.interval.get()
    }

    /// The lock was released for a wait.
    pub fn waited(&self, now: f64) {
        self.released.set(now);
    }

    /// Whether to release the lock now.
    pub fn begin(&self, now: f64, others: f64) -> bool {
        self.released.set(now);
        let passed = now - self.measured.replace(now);
        let used = others - self.others.replace(others);
        self.share.set(if passed > 0.0 { (used / passed).clamp(0.0, 1.0) } else { 1.0 });
        used > OTHERS_RUN
    }

    /// The lock is held again, at `now`.
    pub fn end(&self, now: f64, others: f64) {
        let seconds = now - self.measured.replace(now);
        self.released.set(now);
        let used = others - self.others.replace(others);
        let is_used = used > USED + seconds * self.share.get();
        let longer = (2.0 * self.interval.get()).min(MOST_INTERVAL);
        self.interval.set(if is_used { LEAST_INTERVAL } else { longer });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Gives the lock away for as long as it may, and returns how often in a second. `before` and `during`: the shares of a processor
    /// that the others use.
    fn times(handover: &Handover, before: f64, during: f64) -> usize {
        let (mut now, mut others, mut times) = (0.0, 0.0, 0);
        handover.waited(now);
        while now < 1.0 {
            now += 10e-6;
            others += 10e-6 * before;
            if handover.is_due(now) && handover.begin(now, others) {
                now += HANDOVER;
                others += HANDOVER * during;
                handover.end(now, others);
                times += 1;
            }
        }
        times
    }

    #[test]
    fn who_waits_for_the_lock_gets_it_often() {
        assert!(times(&Handover::default(), 0.05, 1.0) > 3500);
        assert!(times(&Handover::default(), 0.05, 0.3) > 3500);
    }

    #[test]
    fn who_works_without_it_hardly_stops_the_loop() {
        for share in [0.05, 0.5, 1.0] {
            assert!(times(&Handover::default(), share, share) < 400, "{share}");
        }
    }

    #[test]
    fn who_waits_for_work_does_not_stop_the_loop() {
        assert_eq!(times(&Handover::default(), 0.0, 0.0), 0);
        assert_eq!(times(&Handover::default(), 0.005, 0.0), 0);
    }

    #[test]
    fn who_begins_to_wait_is_noticed_the_first_time() {
        let handover = Handover::default();
        times(&handover, 0.5, 0.5);
        assert_eq!(handover.interval.get(), MOST_INTERVAL);
        let others = handover.others.get() + 0.1;
        assert!(handover.begin(2.0, others));
        handover.end(2.0 + HANDOVER, others + HANDOVER);
        assert_eq!(handover.interval.get(), LEAST_INTERVAL);
    }
}
