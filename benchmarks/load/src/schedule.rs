//! When the requests of an open loop are due: evenly spaced, whatever the server does.

use std::time::{Duration, Instant};

const NANOSECONDS: u128 = 1_000_000_000;

pub struct Schedule {
    begin: Instant,
    end: Instant,
    /// Requests per second, of all connections together.
    rate: u64,
    /// Requests that were taken so far.
    taken: u64,
}

impl Schedule {
    pub fn new(begin: Instant, length: Duration, rate: u64) -> Self {
        Schedule { begin, end: begin + length, rate, taken: 0 }
    }

    /// The number of the next request and the time at which it is due. None after the last.
    pub fn next(&self) -> Option<(u64, Instant)> {
        let due = self.begin + offset(self.taken, self.rate);
        (due < self.end).then_some((self.taken, due))
    }

    /// Takes the next request if it is due by `now`.
    pub fn take(&mut self, now: Instant) -> Option<(u64, Instant)> {
        let next = self.next().filter(|(_, due)| *due <= now)?;
        self.taken += 1;
        Some(next)
    }
}

/// The time from the begin to request `number`. Computed from the number, so that rounding does not add up.
fn offset(number: u64, rate: u64) -> Duration {
    let nanoseconds = u128::from(number) * NANOSECONDS / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_evenly_spaced_and_rounding_does_not_add_up() {
        assert_eq!(offset(0, 3), Duration::ZERO);
        assert_eq!(offset(1, 3), Duration::from_nanos(333_333_333));
        assert_eq!(offset(3_000_000, 3), Duration::from_secs(1_000_000));
    }

    #[test]
    fn a_request_is_taken_when_it_is_due() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, Duration::from_secs(1), 4);
        assert_eq!(schedule.take(begin), Some((0, begin)));
        assert_eq!(schedule.take(begin + Duration::from_millis(249)), None);
        let late = begin + Duration::from_millis(600);
        assert_eq!(schedule.take(late), Some((1, begin + Duration::from_millis(250))));
        assert_eq!(schedule.take(late), Some((2, begin + Duration::from_millis(500))));
        assert_eq!(schedule.take(late), None);
    }

    #[test]
    fn the_schedule_ends() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, Duration::from_secs(1), 4);
        let after = begin + Duration::from_secs(2);
        assert_eq!(std::iter::from_fn(|| schedule.take(after)).count(), 4);
        assert_eq!(schedule.next(), None);
    }
}
