//! When the clock and the descriptors are looked at while callbacks are ready.
//!
//! A callback may take less time than a look at the descriptors, or even at the clock. So neither is looked at in every
//! iteration, but nobody who has something to say waits long for it: see the constants.

use std::cell::Cell;

use super::clock::{self, Instant, Tick};

/// While callbacks are ready, descriptors are looked at no more often than this, in seconds...
const POLL_INTERVAL: f64 = 25e-6;
/// ...but at least once in so many iterations, so that a program that counts its turns sees I/O progress...
const POLL_ITERATIONS: u32 = 8;
/// ...except after so many looks in succession that found nothing, with nothing done by the loop in between...
const VAIN_POLLS: u32 = 64;
/// ...when it is once in so many.
const POLL_VAIN_ITERATIONS: u32 = 128;

/// The clock's ticks are measured against its seconds over this time at least.
const CALIBRATION: f64 = 1e-3;
/// No processor ticks faster: more is an error of the measurement.
const MOST_TICKS: f64 = POLL_INTERVAL * 1e10;

/// Tells when to look.
pub struct Pace {
    /// Whether this loop did something since the last poll that can have made a descriptor ready.
    stirred: Cell<bool>,
    /// Iterations since the last poll.
    skipped: Cell<u32>,
    /// Polls in succession that found nothing.
    vain: Cell<u32>,
    polled: Cell<Instant>,
    calibrated: Cell<Instant>,
    /// Ticks in [`POLL_INTERVAL`]; none as long as that is not known.
    ticks: Cell<u64>,
    /// The same for longer times: more exact, and slower to notice a change.
    pub tick: Tick,
}

impl Default for Pace {
    fn default() -> Self {
        let never = Instant { seconds: f64::NEG_INFINITY, ticks: 0 };
        Pace {
            stirred: Cell::new(true),
            skipped: Cell::new(0),
            vain: Cell::new(0),
            polled: Cell::new(never),
            calibrated: Cell::new(never),
            ticks: Cell::new(0),
            tick: Tick::default(),
        }
    }
}

impl Pace {
    pub fn stir(&self) {
        self.stirred.set(true);
    }

    /// The time in ticks, if it is so soon after the last poll that no more than the time of that need be known; counts
    /// the iteration then. A timer that is due by `deadline` needs the time itself.
    pub fn fast(&self, deadline: Option<f64>) -> Option<u64> {
        if self.must_poll() {
            return None;
        }
        let polled = self.polled.get();
        let ticks = clock::ticks();
        // Twice the interval: ticks are not as exact as seconds.
        if ticks.wrapping_sub(polled.ticks) >= self.ticks.get()
            || deadline.is_some_and(|deadline| deadline <= polled.seconds + 2.0 * POLL_INTERVAL)
        {
            return None;
        }
        self.skip();
        Some(ticks)
    }

    /// The time of the last poll.
    pub fn polled(&self) -> f64 {
        self.polled.get().seconds
    }

    /// The time of the last poll, by both clocks.
    pub fn instant(&self) -> Instant {
        self.polled.get()
    }

    /// Whether descriptors are to be looked at now; counts the iteration if they are not.
    pub fn poll_is_due(&self, now: f64) -> bool {
        let due = self.must_poll() || now - self.polled() >= POLL_INTERVAL;
        if !due {
            self.skip();
        }
        due
    }

    fn must_poll(&self) -> bool {
        let iterations = if self.vain.get() < VAIN_POLLS { POLL_ITERATIONS } else { POLL_VAIN_ITERATIONS };
        self.stirred.get() || self.skipped.get() >= iterations
    }

    fn skip(&self) {
        self.skipped.set(self.skipped.get() + 1);
    }

    /// Descriptors are about to be looked at.
    pub fn start_poll(&self, now: Instant) {
        self.polled.set(now);
        self.skipped.set(0);
        if self.stirred.replace(false) {
            self.vain.set(0);
        }
        let calibrated = self.calibrated.get();
        let passed = now.seconds - calibrated.seconds;
        if passed >= CALIBRATION {
            // Without an earlier reading, infinite time has passed, and this makes no ticks.
            let ticks = now.ticks.wrapping_sub(calibrated.ticks) as f64 * (POLL_INTERVAL / passed);
            self.ticks.set(if ticks <= MOST_TICKS { ticks as u64 } else { 0 });
            self.calibrated.set(now);
            self.tick.learn(now);
        }
    }

    /// A look at the descriptors is over. It found something, or was in vain.
    pub fn end_peek(&self, vain: bool) {
        if vain {
            self.vain.set(self.vain.get().saturating_add(1));
            // It may have taken long.
            self.polled.set(Instant::now());
        } else {
            self.vain.set(0);
        }
    }

    /// A wait for descriptors is over.
    pub fn end_wait(&self) {
        self.vain.set(0);
        self.polled.set(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Instant {
        Instant { seconds, ticks: clock::ticks() }
    }

    /// How many iterations go by before the next poll, without the clock's telling that it is time.
    fn iterations(pace: &Pace) -> u32 {
        let now = pace.polled();
        (0..).find(|_| pace.poll_is_due(now)).unwrap()
    }

    #[test]
    fn polls_come_after_a_number_of_iterations() {
        let pace = Pace::default();
        assert!(pace.poll_is_due(1.0), "nobody has polled yet");
        pace.start_poll(at(1.0));
        for stir in [true, false] {
            for _ in 0..VAIN_POLLS {
                assert_eq!(iterations(&pace), POLL_ITERATIONS);
                pace.start_poll(at(1.0));
                pace.end_peek(true);
            }
            assert_eq!(iterations(&pace), POLL_VAIN_ITERATIONS);
            if stir {
                pace.stir();
                pace.start_poll(at(1.0));
            } else {
                pace.start_poll(at(1.0));
                pace.end_peek(false);
            }
        }
        assert_eq!(iterations(&pace), POLL_ITERATIONS);
    }

    #[test]
    fn polls_come_after_an_interval_and_after_a_stir() {
        let pace = Pace::default();
        pace.start_poll(at(1.0));
        assert!(!pace.poll_is_due(1.0 + 0.9 * POLL_INTERVAL));
        assert!(pace.poll_is_due(1.0 + 1.1 * POLL_INTERVAL));
        pace.start_poll(at(2.0));
        assert!(!pace.poll_is_due(2.0));
        pace.stir();
        assert!(pace.poll_is_due(2.0));
        assert!(pace.fast(None).is_none());
    }

    /// A pace with a poll just made, that knows the clock's ticks.
    fn calibrated() -> Pace {
        let pace = Pace::default();
        for _ in 0..2 {
            pace.start_poll(Instant::now());
            std::thread::sleep(std::time::Duration::from_secs_f64(CALIBRATION));
        }
        pace.start_poll(Instant::now());
        pace
    }

    #[test]
    fn the_clock_is_not_needed_for_an_interval() {
        let pace = calibrated();
        let mut longest: f64 = 0.0;
        for _ in 0..1000 {
            let start = clock::now();
            pace.start_poll(at(start));
            while pace.fast(None).is_some() {
                pace.skipped.set(0);
            }
            longest = longest.max(clock::now() - start);
            assert!(clock::now() - start > 0.9 * POLL_INTERVAL, "that was too short");
        }
        assert!(longest < 0.1, "{longest} seconds without the clock");
    }

    #[test]
    fn timers_that_may_be_due_need_the_clock() {
        let pace = calibrated();
        pace.start_poll(Instant::now());
        assert!(pace.fast(Some(pace.polled())).is_none());
        assert!(pace.fast(Some(pace.polled() + POLL_INTERVAL)).is_none());
        assert!(pace.fast(Some(f64::NEG_INFINITY)).is_none());
    }

    #[test]
    fn errors_of_the_calibration_mean_the_clock_is_used() {
        let pace = Pace::default();
        pace.start_poll(at(1.0));
        assert_eq!(pace.ticks.get(), 0);
        pace.calibrated.set(Instant { seconds: 1.0, ticks: u64::MAX / 2 });
        pace.start_poll(at(2.0));
        assert_eq!(pace.ticks.get(), 0, "the ticks went backwards");
        assert!(pace.fast(None).is_none());
    }
}
