//! When the clock and the descriptors are looked at while callbacks are ready.
//!
//! A callback may take less time than a look at the descriptors, or even at the clock. So neither is looked at in every
//! iteration, but nobody who has something to say waits long for it: see the constants.

use std::cell::Cell;

use super::clock::{self, Instant, Tick};

/// While callbacks are ready, descriptors are looked at no more often than this, in seconds...
const POLL_INTERVAL: f64 = 25e-6;
/// ...but at least once in so many iterations, so that a program that counts its run_monitor sees I/O progress...
const POLL_ITERATIONS: u32 = 8;
/// ...except after so many looks in succession that found nothing, with nothing done by the loop in between...
const EMPTY_POLLS: u32 = 64;
/// ...when it is once in so many.
const POLL_ITERATIONS_WHEN_EMPTY: u32 = 128;

/// The clock's ticks are measured against its seconds over this time at least.
const CALIBRATION: f64 = 1e-3;
/// No processor ticks faster: more is an error of the measurement.
const MOST_TICKS: f64 = POLL_INTERVAL * 1e10;

/// Tells when to look.
pub struct PollPolicy {
    /// Whether this loop did something since the last poll that can have made a descriptor ready.
    poll_requested: Cell<bool>,
    /// Iterations since the last poll.
    skipped: Cell<u32>,
    /// Polls in succession that found nothing.
    empty_polls: Cell<u32>,
    polled: Cell<Instant>,
    calibrated: Cell<Instant>,
    /// Ticks in [`POLL_INTERVAL`]; none as long as that is not known.
    ticks: Cell<u64>,
    /// The same for longer times: more exact, and slower to notice a change.
    pub tick: Tick,
}

impl Default for PollPolicy {
    fn default() -> Self {
        let never = Instant { seconds: f64::NEG_INFINITY, ticks: 0 };
        PollPolicy {
            poll_requested: Cell::new(true),
            skipped: Cell::new(0),
            empty_polls: Cell::new(0),
            polled: Cell::new(never),
            calibrated: Cell::new(never),
            ticks: Cell::new(0),
            tick: Tick::default(),
        }
    }
}

impl PollPolicy {
    pub fn request_poll(&self) {
        self.poll_requested.set(true);
    }

    /// The time in ticks, if it is so soon after the last poll that no more than the time of that need be known; counts
    /// the iteration then. A timer that is due by `deadline` needs the time itself.
    pub fn try_skip_poll(&self, deadline: Option<f64>) -> Option<u64> {
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
        let iterations =
            if self.empty_polls.get() < EMPTY_POLLS { POLL_ITERATIONS } else { POLL_ITERATIONS_WHEN_EMPTY };
        self.poll_requested.get() || self.skipped.get() >= iterations
    }

    fn skip(&self) {
        self.skipped.set(self.skipped.get() + 1);
    }

    /// Descriptors are about to be looked at.
    pub fn start_poll(&self, now: Instant) {
        self.polled.set(now);
        self.skipped.set(0);
        if self.poll_requested.replace(false) {
            self.empty_polls.set(0);
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

    /// A look at the descriptors is over. It found something, or was in empty_polls.
    pub fn end_poll(&self, empty_polls: bool) {
        if empty_polls {
            self.empty_polls.set(self.empty_polls.get().saturating_add(1));
            // It may have taken long.
            self.polled.set(Instant::now());
        } else {
            self.empty_polls.set(0);
        }
    }

    /// A wait for descriptors is over.
    pub fn end_wait(&self) {
        self.empty_polls.set(0);
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
    fn iterations(poll_policy: &PollPolicy) -> u32 {
        let now = poll_policy.polled();
        (0..).find(|_| poll_policy.poll_is_due(now)).unwrap()
    }

    #[test]
    fn polls_come_after_a_number_of_iterations() {
        let poll_policy = PollPolicy::default();
        assert!(poll_policy.poll_is_due(1.0), "nobody has polled yet");
        poll_policy.start_poll(at(1.0));
        for request_poll in [true, false] {
            for _ in 0..EMPTY_POLLS {
                assert_eq!(iterations(&poll_policy), POLL_ITERATIONS);
                poll_policy.start_poll(at(1.0));
                poll_policy.end_poll(true);
            }
            assert_eq!(iterations(&poll_policy), POLL_ITERATIONS_WHEN_EMPTY);
            if request_poll {
                poll_policy.request_poll();
                poll_policy.start_poll(at(1.0));
            } else {
                poll_policy.start_poll(at(1.0));
                poll_policy.end_poll(false);
            }
        }
        assert_eq!(iterations(&poll_policy), POLL_ITERATIONS);
    }

    #[test]
    fn polls_come_after_an_interval_and_after_a_stir() {
        let poll_policy = PollPolicy::default();
        poll_policy.start_poll(at(1.0));
        assert!(!poll_policy.poll_is_due(1.0 + 0.9 * POLL_INTERVAL));
        assert!(poll_policy.poll_is_due(1.0 + 1.1 * POLL_INTERVAL));
        poll_policy.start_poll(at(2.0));
        assert!(!poll_policy.poll_is_due(2.0));
        poll_policy.request_poll();
        assert!(poll_policy.poll_is_due(2.0));
        assert!(poll_policy.try_skip_poll(None).is_none());
    }

    /// A poll_policy with a poll just made, that knows the clock's ticks.
    fn calibrated() -> PollPolicy {
        let poll_policy = PollPolicy::default();
        for _ in 0..2 {
            poll_policy.start_poll(Instant::now());
            std::thread::sleep(std::time::Duration::from_secs_f64(CALIBRATION));
        }
        poll_policy.start_poll(Instant::now());
        poll_policy
    }

    #[test]
    fn the_clock_is_not_needed_for_an_interval() {
        let poll_policy = calibrated();
        let mut longest: f64 = 0.0;
        for _ in 0..1000 {
            let start = clock::now();
            poll_policy.start_poll(at(start));
            while poll_policy.try_skip_poll(None).is_some() {
                poll_policy.skipped.set(0);
            }
            longest = longest.max(clock::now() - start);
            assert!(clock::now() - start > 0.9 * POLL_INTERVAL, "that was too short");
        }
        assert!(longest < 0.1, "{longest} seconds without the clock");
    }

    #[test]
    fn timers_that_may_be_due_need_the_clock() {
        let poll_policy = calibrated();
        poll_policy.start_poll(Instant::now());
        assert!(poll_policy.try_skip_poll(Some(poll_policy.polled())).is_none());
        assert!(poll_policy.try_skip_poll(Some(poll_policy.polled() + POLL_INTERVAL)).is_none());
        assert!(poll_policy.try_skip_poll(Some(f64::NEG_INFINITY)).is_none());
    }

    #[test]
    fn errors_of_the_calibration_mean_the_clock_is_used() {
        let poll_policy = PollPolicy::default();
        poll_policy.start_poll(at(1.0));
        assert_eq!(poll_policy.ticks.get(), 0);
        poll_policy.calibrated.set(Instant { seconds: 1.0, ticks: u64::MAX / 2 });
        poll_policy.start_poll(at(2.0));
        assert_eq!(poll_policy.ticks.get(), 0, "the ticks went backwards");
        assert!(poll_policy.try_skip_poll(None).is_none());
    }
}
