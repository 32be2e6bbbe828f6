//! The event loop's clock, which is that of Python's time.monotonic(), and the processor's tick counter.

use std::cell::Cell;
use std::sync::OnceLock;

/// How long all other threads of the process have used a processor, in seconds.
pub fn processor_time_of_others() -> f64 {
    used(libc::CLOCK_PROCESS_CPUTIME_ID) - processor_time()
}

/// How long the calling thread has used a processor, in seconds.
pub fn processor_time() -> f64 {
    used(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn used(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Seconds since an unspecified start.
pub fn now() -> f64 {
    #[cfg(test)]
    if let Some(time) = simulated::read() {
        return time as f64 / 1e9;
    }
    #[cfg(target_vendor = "apple")]
    const CLOCK: libc::clockid_t = libc::CLOCK_UPTIME_RAW;
    #[cfg(not(target_vendor = "apple"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call, which cannot fail with a clock that exists.
    unsafe { libc::clock_gettime(CLOCK, &mut time) };
    // Python computes the float from whole nanoseconds, too: both make the same float of a reading.
    #[allow(clippy::unnecessary_cast, reason = "the fields have other types on other platforms")]
    let nanoseconds = time.tv_sec as i64 * 1_000_000_000 + time.tv_nsec as i64;
    nanoseconds as f64 / 1e9
}

/// The processor's tick counter: nanoseconds except on x86-64. Reading it takes half as long as reading the time, and does not
/// serialise instructions, so that it tells roughly how much time has passed. [`Tick`] measures its unit.
pub fn ticks() -> u64 {
    #[cfg(test)]
    if let Some(time) = simulated::read() {
        return time;
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has the instruction.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        (now() * 1e9) as u64
    }
}

/// A reading of the time and of the tick counter.
#[derive(Clone, Copy)]
pub struct Instant {
    pub seconds: f64,
    pub ticks: u64,
}

impl Instant {
    pub fn now() -> Instant {
        Instant { seconds: now(), ticks: ticks() }
    }
}

/// Seconds over which a tick is measured for the first time: short, so that it is known soon.
const FIRST_INTERVAL: f64 = 1e-3;
/// Seconds over which a tick is measured again: long, so that it is exact.
const INTERVAL: f64 = 1.0;
/// Seconds. No processor has longer ticks: more is an error of the measurement.
const MAX_TICK: f64 = 1e-6;

/// The length of a tick, measured again and again. All fields but the first are 0 until it is known.
pub struct Tick {
    /// The last reading that was used.
    measured: Cell<Instant>,
    seconds: Cell<f64>,
    /// Ticks in a second.
    frequency: Cell<f64>,
    /// Ticks in [`SHORTEST`].
    shortest: Cell<i64>,
}

/// Seconds, some 0.95 µs: shorter durations are counted as one.
pub const SHORTEST: f64 = 1.0 / (1u64 << 20) as f64;

impl Default for Tick {
    fn default() -> Tick {
        /// The first reading of this process.
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let now = Instant::now();
        let tick = Tick::since(*FIRST.get_or_init(|| now));
        tick.learn(now);
        tick
    }
}

impl Tick {
    fn since(first: Instant) -> Tick {
        Tick {
            measured: Cell::new(first),
            seconds: Cell::new(0.0),
            frequency: Cell::new(0.0),
            shortest: Cell::new(0),
        }
    }

    /// Converts ticks to seconds; 0 until the length of a tick is known.
    pub fn seconds(&self, ticks: u64) -> f64 {
        ticks as i64 as f64 * self.seconds.get()
    }

    /// Converts seconds to ticks; 0 until the length of a tick is known.
    pub fn ticks(&self, seconds: f64) -> u64 {
        (seconds * self.frequency.get()) as u64
    }

    /// Whether the ticks take less than [`SHORTEST`] or are negative. False until the length of a tick is known, unless negative.
    pub fn is_short(&self, ticks: u64) -> bool {
        (ticks as i64) < self.shortest.get()
    }

    /// Measures a tick unless its length is known. False if the first reading was too recent.
    #[cold]
    pub fn find_out(&self) -> bool {
        if self.seconds.get() == 0.0 {
            self.learn(Instant::now());
        }
        self.seconds.get() > 0.0
    }

    /// Measures a tick by this reading, if enough time has passed since the last that was used.
    pub fn learn(&self, now: Instant) {
        let known = self.seconds.get() > 0.0;
        if now.seconds - self.measured.get().seconds >= if known { INTERVAL } else { FIRST_INTERVAL } {
            self.measure(now);
        }
    }

    #[cold]
    fn measure(&self, now: Instant) {
        let measured = self.measured.replace(now);
        let ticks = now.ticks.wrapping_sub(measured.ticks);
        let tick = (now.seconds - measured.seconds) / ticks as f64;
        if tick > 0.0 && tick < MAX_TICK && ticks as i64 > 0 {
            self.seconds.set(tick);
            self.frequency.set(1.0 / tick);
            self.shortest.set((SHORTEST / tick) as i64);
        }
    }
}

/// A simulated clock, for the thread that starts it. A tick is a nanosecond.
#[cfg(test)]
pub mod simulated {
    use std::cell::Cell;

    #[derive(Clone, Copy)]
    struct Clock {
        nanoseconds: u64,
        step: u64,
    }

    thread_local! {
        static CLOCK: Cell<Option<Clock>> = const { Cell::new(None) };
    }

    /// Starts a clock that moves by `step` nanoseconds with each reading, and otherwise not.
    pub fn start(step: u64) {
        CLOCK.set(Some(Clock { nanoseconds: 1_000_000_000, step }));
    }

    pub fn stop() {
        CLOCK.set(None);
    }

    pub fn advance(nanoseconds: u64) {
        if let Some(clock) = CLOCK.get() {
            CLOCK.set(Some(Clock { nanoseconds: clock.nanoseconds + nanoseconds, ..clock }));
        }
    }

    /// The time, without moving the clock.
    pub fn nanoseconds() -> u64 {
        CLOCK.get().map_or(0, |clock| clock.nanoseconds)
    }

    pub(super) fn read() -> Option<u64> {
        let clock = CLOCK.get()?;
        advance(clock.step);
        Some(clock.nanoseconds)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ticks_take_as_long_as_the_clock_says() {
        let tick = Tick::default();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let start = Instant::now();
        tick.learn(start);
        std::thread::sleep(std::time::Duration::from_millis(50));
        let end = Instant::now();
        let ticks = end.ticks.wrapping_sub(start.ticks);
        let (passed, right) = (tick.seconds(ticks), end.seconds - start.seconds);
        assert!((passed / right - 1.0).abs() < 0.02, "{passed} s by ticks, {right} s by the clock");
        assert!((tick.ticks(right) as f64 / ticks as f64 - 1.0).abs() < 0.02);
        assert!(!tick.is_short(ticks));
        assert!(tick.is_short(0));
        assert!(tick.is_short(0u64.wrapping_sub(ticks)), "backwards");
    }

    #[test]
    fn ticks_are_measured_anew_when_much_time_has_passed() {
        let tick = Tick::since(Instant { seconds: 1.0, ticks: 1000 });
        let after = |seconds, ticks| {
            tick.learn(Instant { seconds, ticks });
            (tick.seconds(1_000_000_000) * 1e3).round()
        };
        assert_eq!(after(1.0001, 200_000), 0.0, "that is too soon");
        assert!(!tick.is_short(1 << 40) && !tick.is_short(0), "it is not known yet");
        assert_eq!(after(1.01, 10_001_000), 1000.0);
        assert_eq!(after(1.5, 0), 1000.0, "too soon again");
        assert_eq!(after(3.0, 0), 1000.0, "backwards, which is no measurement");
        assert_eq!(after(5.0, 4_000_000_000), 500.0);
    }

    #[test]
    fn the_clock_goes_forward() {
        let before = super::now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let passed = super::now() - before;
        assert!((0.002..1.0).contains(&passed));
    }
}
