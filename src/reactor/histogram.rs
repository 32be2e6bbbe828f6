//! Durations, counted by size: from a microsecond to over an hour, in a few kilobytes.
//!
//! A bucket is a sixteenth of a power of two wide. The bits of a float are its logarithm, roughly: the exponent, and then
//! four bits of the mantissa, are the number of its bucket, without any arithmetic.

use std::cell::Cell;

use super::clock::{SHORTEST, Tick};

/// Bits of the mantissa that tell buckets apart.
const FINE: u32 = 4;
/// Where the exponent and those bits begin.
const SHIFT: u32 = f64::MANTISSA_DIGITS - 1 - FINE;
/// What is longer is not told apart: some 68 minutes.
const LONGEST: f64 = 4096.0;

const FIRST: usize = (SHORTEST.to_bits() >> SHIFT) as usize;
/// How many buckets there are between [`SHORTEST`] and [`LONGEST`].
const BUCKETS: usize = (LONGEST.to_bits() >> SHIFT) as usize - FIRST;

pub struct Histogram {
    /// Those that take less than [`SHORTEST`].
    short: Cell<u64>,
    /// The last is for those that take [`LONGEST`] or longer.
    counts: Box<[Cell<u64>; BUCKETS + 1]>,
    /// The longest, in seconds: ticks are measured again and again, and would make it seem to change.
    longest: Cell<f64>,
}

/// What a histogram has counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    pub buckets: Vec<Bucket>,
    /// 0 if there are only short ones.
    pub longest: f64,
}

/// Durations, in seconds: from when on, up to when, how many.
pub type Bucket = (f64, f64, u64);

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            short: Cell::new(0),
            counts: Box::new([const { Cell::new(0) }; BUCKETS + 1]),
            longest: Cell::new(0.0),
        }
    }
}

impl Histogram {
    /// Counts a duration, in ticks of the clock. One that seems to be negative is a short one.
    pub fn record(&self, ticks: u64, tick: &Tick) {
        self.record_several(ticks, 1, tick);
    }

    /// Counts several durations that are the same.
    pub fn record_several(&self, ticks: u64, several: u64, tick: &Tick) {
        if tick.is_short(ticks) {
            self.short.set(self.short.get().wrapping_add(several));
        } else {
            self.record_long(ticks, several, tick);
        }
    }

    #[inline(never)]
    fn record_long(&self, ticks: u64, several: u64, tick: &Tick) {
        let seconds = tick.seconds(ticks);
        if seconds <= 0.0 {
            return self.record_first(ticks, several, tick);
        }
        // What is a little shorter by the last bits of a float is in the first bucket, too.
        let seconds = seconds.max(SHORTEST);
        let bucket = ((seconds.to_bits() >> SHIFT) as usize - FIRST).min(BUCKETS);
        let count = &self.counts[bucket];
        count.set(count.get().wrapping_add(several));
        if seconds > self.longest.get() {
            self.longest.set(seconds);
        }
    }

    /// A duration that is over before it is known how long a tick takes.
    #[cold]
    #[inline(never)]
    fn record_first(&self, ticks: u64, several: u64, tick: &Tick) {
        if tick.find_out() {
            self.record_several(ticks, several, tick);
        } else {
            // The process has not run for long enough to tell; neither has what is counted.
            self.short.set(self.short.get().wrapping_add(several));
        }
    }

    pub fn counted(&self) -> Counted {
        let short = (0.0, SHORTEST, self.short.get());
        let others = self.counts.iter().enumerate().map(|(bucket, count)| {
            let end = if bucket == BUCKETS { f64::INFINITY } else { bound(bucket + 1) };
            (bound(bucket), end, count.get())
        });
        Counted {
            buckets: std::iter::once(short).chain(others).filter(|(_, _, count)| *count > 0).collect(),
            longest: self.longest.get(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.short.get() == 0 && self.longest.get() == 0.0
    }

    /// Forgets all.
    pub fn reset(&self) {
        self.short.set(0);
        self.counts.iter().for_each(|count| count.set(0));
        self.longest.set(0.0);
    }
}

/// Where a bucket begins, which is where the one before ends.
fn bound(bucket: usize) -> f64 {
    f64::from_bits(((FIRST + bucket) as u64) << SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::clock::Instant;

    /// A tick of a nanosecond.
    fn nanosecond() -> Tick {
        let tick = Tick::default();
        let start = Instant::now();
        tick.learn(Instant { seconds: start.seconds + 10.0, ticks: start.ticks });
        tick.learn(Instant { seconds: start.seconds + 20.0, ticks: start.ticks + 10_000_000_000 });
        assert!((tick.seconds(1_000_000_000) - 1.0).abs() < 1e-6);
        tick
    }

    /// The bucket that one duration is counted in.
    fn bucket_of(seconds: f64) -> (f64, f64) {
        let histogram = Histogram::default();
        let tick = nanosecond();
        histogram.record((seconds * 1e9) as i64 as u64, &tick);
        let counted = histogram.counted();
        let [(start, end, 1)] = counted.buckets[..] else { panic!("{counted:?}") };
        (start, end)
    }

    #[test]
    fn buckets_are_narrow() {
        let mut seconds = 1e-6;
        while seconds < 3700.0 {
            let (start, end) = bucket_of(seconds);
            assert!(
                start * 0.999 <= seconds && seconds <= end * 1.001,
                "{seconds} is not from {start} to {end}"
            );
            assert!(end / start <= 1.0 + 1.0 / 16.0, "from {start} to {end}");
            seconds *= 1.01;
        }
    }

    #[test]
    fn ends() {
        for short in [0.0, -1.0, -1e6, SHORTEST * 0.99] {
            assert_eq!(bucket_of(short), (0.0, SHORTEST));
        }
        assert_eq!(bucket_of(LONGEST * 0.99).1, LONGEST);
        for long in [LONGEST * 1.001, 1e6] {
            assert_eq!(bucket_of(long), (LONGEST, f64::INFINITY));
        }
    }

    #[test]
    fn counts_and_forgets() {
        let histogram = Histogram::default();
        let tick = nanosecond();
        for milliseconds in 1..=100 {
            histogram.record(milliseconds * 1_000_000, &tick);
            histogram.record(100, &tick);
        }
        let counted = histogram.counted();
        assert_eq!(counted.buckets.iter().map(|(.., count)| count).sum::<u64>(), 200);
        assert_eq!(counted.buckets[0], (0.0, SHORTEST, 100));
        assert!(counted.buckets.is_sorted_by(|one, next| one.1 <= next.0));
        assert!((counted.longest - 0.1).abs() < 1e-6);
        let start = Instant::now();
        tick.learn(Instant { seconds: start.seconds + 1e6, ticks: start.ticks + (1 << 50) });
        assert_ne!(tick.seconds(100_000_000), counted.longest);
        assert_eq!(histogram.counted(), counted, "whatever a tick is now");
        histogram.reset();
        assert_eq!(histogram.counted(), Counted::default());
    }
}
