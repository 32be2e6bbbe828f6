//! The poll policy: when to poll the descriptors, and to read the clock, while callbacks are ready.
//!
//! A callback may take less time than a poll, or even a reading of the clock, so an iteration may skip either. It does not poll,
//! and does not decide how long to wait when no callback is ready.
//!
//! An iteration polls if one of these holds, and skips the poll otherwise:
//! - A poll was requested: the loop did something that can have made a descriptor ready.
//! - [`POLL_INTERVAL`] has passed since the last poll.
//! - The budget of skips in a row is used up. It is [`SKIPS`], or [`SKIPS_WHEN_EMPTY`] after [`EMPTY_POLLS`].
//!
//! `src/core` asks before it runs the callbacks of an iteration: [`PollPolicy::try_skip_poll`] at first, which reads the
//! processor's ticks alone, then [`PollPolicy::poll_is_due`] with the time.

use std::cell::Cell;

use super::clock::{self, Instant, Tick};
use super::published::Published;

/// Seconds. With 100 µs, a message that came during a flood of a hundred callbacks waited 173 µs at the 99th percentile; with
/// 25 µs, 93.
const POLL_INTERVAL: f64 = 25e-6;
/// Small enough that a program which counts its iterations sees I/O progress.
const SKIPS: u32 = 8;
/// Empty polls in a row, without a request between them, after which the budget is larger.
const EMPTY_POLLS: u32 = 64;
const SKIPS_WHEN_EMPTY: u32 = 128;

/// The least time over which ticks are measured against seconds.
const CALIBRATION: f64 = 1e-3;
/// The ticks that [`POLL_INTERVAL`] would have on a processor of 10 GHz: more is an error of the measurement.
const MAX_TICKS: f64 = POLL_INTERVAL * 1e10;

pub struct PollPolicy {
    poll_requested: Cell<bool>,
    /// Iterations since the last poll.
    skipped: Cell<u32>,
    /// Empty polls in a row, without a request between them.
    empty_polls: Cell<u32>,
    /// When the last poll was, in seconds and in ticks.
    polled: Published<f64>,
    polled_ticks: Cell<u64>,
    calibrated: Cell<Instant>,
    /// Ticks in [`POLL_INTERVAL`], by the last millisecond or more; 0 if they are not known.
    ticks: Cell<u64>,
    /// The length of a tick, by a second or more: more exact than `ticks`, but slower to notice a change.
    pub tick: Tick,
}

impl Default for PollPolicy {
    fn default() -> Self {
        let never = Instant { seconds: f64::NEG_INFINITY, ticks: 0 };
        PollPolicy {
            poll_requested: Cell::new(true),
            skipped: Cell::new(0),
            empty_polls: Cell::new(0),
            polled: Published::new(never.seconds),
            polled_ticks: Cell::new(never.ticks),
            calibrated: Cell::new(never),
            ticks: Cell::new(0),
            tick: Tick::default(),
        }
    }
}

impl PollPolicy {
    /// Makes the next iteration poll.
    pub fn request_poll(&self) {
        self.poll_requested.set(true);
    }

    /// If no poll is due and no timer can be, by the processor's ticks, counts a skipped iteration and returns the ticks now.
    pub fn try_skip_poll(&self, deadline: Option<f64>) -> Option<u64> {
        if self.must_poll() {
            return None;
        }
        let polled = self.instant();
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

    /// When the last poll was, in seconds.
    pub fn polled(&self) -> f64 {
        self.polled.get()
    }

    /// When the last poll was, in seconds and in ticks.
    pub fn instant(&self) -> Instant {
        Instant { seconds: self.polled.get(), ticks: self.polled_ticks.get() }
    }

    fn set_polled(&self, now: Instant) {
        self.polled.set(now.seconds);
        self.polled_ticks.set(now.ticks);
    }

    /// Whether this iteration has to poll. Counts a skipped iteration if not.
    pub fn poll_is_due(&self, now: f64) -> bool {
        let due = self.must_poll() || now - self.polled() >= POLL_INTERVAL;
        if !due {
            self.skip();
        }
        due
    }

    /// Whether a poll is due whatever the time is.
    fn must_poll(&self) -> bool {
        let budget = if self.empty_polls.get() < EMPTY_POLLS { SKIPS } else { SKIPS_WHEN_EMPTY };
        self.poll_requested.get() || self.skipped.get() >= budget
    }

    fn skip(&self) {
        self.skipped.set(self.skipped.get() + 1);
    }

    /// Records that a poll or a wait begins.
    pub fn start_poll(&self, now: Instant) {
        self.set_polled(now);
        self.skipped.set(0);
        if self.poll_requested.replace(false) {
            self.empty_polls.set(0);
        }
        let calibrated = self.calibrated.get();
        let passed = now.seconds - calibrated.seconds;
        if passed >= CALIBRATION {
            // Before the first calibration, infinite time has passed, and this makes 0 ticks.
            let ticks = now.ticks.wrapping_sub(calibrated.ticks) as f64 * (POLL_INTERVAL / passed);
            self.ticks.set(if ticks <= MAX_TICKS { ticks as u64 } else { 0 });
            self.calibrated.set(now);
            self.tick.learn(now);
        }
    }

    /// Records that a poll is over, and whether it found nothing.
    pub fn end_poll(&self, empty: bool) {
        if empty {
            self.empty_polls.set(self.empty_polls.get().saturating_add(1));
            // The poll may have taken long.
            self.set_polled(Instant::now());
        } else {
            self.empty_polls.set(0);
        }
    }

    /// Records that a wait is over.
    pub fn end_wait(&self) {
        self.empty_polls.set(0);
        self.set_polled(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Instant {
        Instant { seconds, ticks: clock::ticks() }
    }

    /// How many iterations skip the poll while no time passes.
    fn skips(policy: &PollPolicy) -> u32 {
        let now = policy.polled();
        (0..).find(|_| policy.poll_is_due(now)).unwrap()
    }

    #[test]
    fn the_budget_of_skips_grows_with_empty_polls() {
        let policy = PollPolicy::default();
        assert!(policy.poll_is_due(1.0), "there was no poll yet");
        policy.start_poll(at(1.0));
        for requested in [true, false] {
            for _ in 0..EMPTY_POLLS {
                assert_eq!(skips(&policy), SKIPS);
                policy.start_poll(at(1.0));
                policy.end_poll(true);
            }
            assert_eq!(skips(&policy), SKIPS_WHEN_EMPTY);
            if requested {
                policy.request_poll();
                policy.start_poll(at(1.0));
            } else {
                policy.start_poll(at(1.0));
                policy.end_poll(false);
            }
        }
        assert_eq!(skips(&policy), SKIPS);
    }

    #[test]
    fn a_poll_is_due_after_an_interval_and_after_a_request() {
        let policy = PollPolicy::default();
        policy.start_poll(at(1.0));
        assert!(!policy.poll_is_due(1.0 + 0.9 * POLL_INTERVAL));
        assert!(policy.poll_is_due(1.0 + 1.1 * POLL_INTERVAL));
        policy.start_poll(at(2.0));
        assert!(!policy.poll_is_due(2.0));
        policy.request_poll();
        assert!(policy.poll_is_due(2.0));
        assert!(policy.try_skip_poll(None).is_none());
    }

    /// A policy that knows the ticks, right after a poll.
    fn calibrated() -> PollPolicy {
        let policy = PollPolicy::default();
        for _ in 0..2 {
            policy.start_poll(Instant::now());
            std::thread::sleep(std::time::Duration::from_secs_f64(CALIBRATION));
        }
        policy.start_poll(Instant::now());
        policy
    }

    #[test]
    fn the_clock_is_not_read_for_an_interval() {
        let policy = calibrated();
        let mut longest: f64 = 0.0;
        for _ in 0..1000 {
            let start = clock::now();
            policy.start_poll(at(start));
            while policy.try_skip_poll(None).is_some() {
                policy.skipped.set(0);
            }
            longest = longest.max(clock::now() - start);
            assert!(clock::now() - start > 0.9 * POLL_INTERVAL, "that was too short");
        }
        assert!(longest < 0.1, "{longest} seconds without the clock");
    }

    #[test]
    fn the_clock_is_read_if_a_timer_may_be_due() {
        let policy = calibrated();
        policy.start_poll(Instant::now());
        assert!(policy.try_skip_poll(Some(policy.polled())).is_none());
        assert!(policy.try_skip_poll(Some(policy.polled() + POLL_INTERVAL)).is_none());
        assert!(policy.try_skip_poll(Some(f64::NEG_INFINITY)).is_none());
    }

    #[test]
    fn the_clock_is_read_after_an_error_of_the_calibration() {
        let policy = PollPolicy::default();
        policy.start_poll(at(1.0));
        assert_eq!(policy.ticks.get(), 0);
        policy.calibrated.set(Instant { seconds: 1.0, ticks: u64::MAX / 2 });
        policy.start_poll(at(2.0));
        assert_eq!(policy.ticks.get(), 0, "the ticks went backwards");
        assert!(policy.try_skip_poll(None).is_none());
    }
}
