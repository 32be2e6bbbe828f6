//! A histogram of durations, from a microsecond to over an hour, in a few kilobytes.
//!
//! A bucket is a sixteenth of a power of two wide. Its number is the exponent of the duration's float followed by the upper four
//! bits of the mantissa.

use super::clock::{SHORTEST, Tick};
use super::published::Published;

/// Bits of the mantissa in a bucket's number.
const FINE: u32 = 4;
/// Bits of a float below a bucket's number.
const SHIFT: u32 = f64::MANTISSA_DIGITS - 1 - FINE;
/// Seconds, some 68 minutes: longer durations are counted as one.
const LONGEST: f64 = 4096.0;

/// The number of the first bucket.
const FIRST: usize = (SHORTEST.to_bits() >> SHIFT) as usize;
/// Buckets between [`SHORTEST`] and [`LONGEST`].
const BUCKETS: usize = (LONGEST.to_bits() >> SHIFT) as usize - FIRST;

pub struct Histogram {
    /// Durations of less than [`SHORTEST`].
    short: Published<u64>,
    /// The last is for durations of [`LONGEST`] or more.
    counts: Box<[Published<u64>; BUCKETS + 1]>,
    /// The longest, in seconds: a number of ticks would change its meaning with each measurement of a tick.
    longest: Published<f64>,
}

/// A copy of a histogram's content.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    pub buckets: Vec<Bucket>,
    /// 0 if all are shorter than [`SHORTEST`].
    pub longest: f64,
}

/// The bounds, in seconds, the upper one excluded, and how many durations there are between them.
pub type Bucket = (f64, f64, u64);

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            short: Published::new(0),
            counts: Box::new(std::array::from_fn(|_| Published::new(0))),
            longest: Published::new(0.0),
        }
    }
}

impl Histogram {
    /// Counts a duration, in ticks. A negative one is counted as short.
    pub fn record(&self, ticks: u64, tick: &Tick) {
        self.record_several(ticks, 1, tick);
    }

    /// Counts several equal durations.
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
        // Rounding can make it a little shorter.
        let seconds = seconds.max(SHORTEST);
        let bucket = ((seconds.to_bits() >> SHIFT) as usize - FIRST).min(BUCKETS);
        let count = &self.counts[bucket];
        count.set(count.get().wrapping_add(several));
        if seconds > self.longest.get() {
            self.longest.set(seconds);
        }
    }

    /// Counts a duration before the length of a tick is known.
    #[cold]
    #[inline(never)]
    fn record_first(&self, ticks: u64, several: u64, tick: &Tick) {
        if tick.find_out() {
            self.record_several(ticks, several, tick);
        } else {
            // The process is too young to measure a tick, and the duration is shorter than that.
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

    /// How many there are, and how many are in buckets from each of the bounds on, in seconds.
    pub fn count_from<const N: usize>(&self, bounds: [f64; N]) -> (u64, [u64; N]) {
        let starts = bounds.map(|seconds| {
            let bucket = (seconds.clamp(SHORTEST, LONGEST).to_bits() >> SHIFT) as usize - FIRST;
            // One that begins before the bound does not count.
            if bound(bucket) < seconds { (bucket + 1).min(BUCKETS) } else { bucket }
        });
        let count_of = |counts: &[Published<u64>]| counts.iter().map(Published::get).sum::<u64>();
        let all = self.short.get() + count_of(&self.counts[..]);
        (all, starts.map(|start| count_of(&self.counts[start..])))
    }

    pub fn is_empty(&self) -> bool {
        self.short.get() == 0 && self.longest.get() == 0.0
    }

    pub fn reset(&self) {
        self.short.set(0);
        self.counts.iter().for_each(|count| count.set(0));
        self.longest.set(0.0);
    }
}

/// The lower bound of a bucket.
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

    /// The bounds of the bucket of a duration.
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
    fn the_first_and_the_last_bucket_are_open() {
        for short in [0.0, -1.0, -1e6, SHORTEST * 0.99] {
            assert_eq!(bucket_of(short), (0.0, SHORTEST));
        }
        assert_eq!(bucket_of(LONGEST * 0.99).1, LONGEST);
        for long in [LONGEST * 1.001, 1e6] {
            assert_eq!(bucket_of(long), (LONGEST, f64::INFINITY));
        }
    }

    #[test]
    fn counts_from_bounds() {
        let histogram = Histogram::default();
        let tick = nanosecond();
        for milliseconds in 1..=100 {
            histogram.record(milliseconds * 1_000_000, &tick);
        }
        histogram.record(100, &tick);
        let (all, [some, none]) = histogram.count_from([0.05, 0.11]);
        assert_eq!((all, none), (101, 0));
        assert!((47..=50).contains(&some), "{some}");
        assert_eq!(histogram.count_from([1e-9, 1e-6, 1e9]), (101, [100, 100, 0]));
        histogram.record(5_000_000_000_000, &tick);
        assert_eq!(histogram.count_from([4096.0, f64::INFINITY]), (102, [1, 1]));
    }

    #[test]
    fn counts_and_resets() {
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
        assert_eq!(histogram.counted(), counted, "a measurement of a tick changes nothing");
        histogram.reset();
        assert_eq!(histogram.counted(), Counted::default());
    }
}
