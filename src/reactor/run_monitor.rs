//! Lets another thread see whether a callback runs for long.
//!
//! It does not measure, and does not report: the watchdog of `src/core` does.
//!
//! The loop's thread numbers the runs of callbacks:
//!
//! ```text
//! even: no callback runs -- begin() --> odd: a callback runs -- end() --> the next even number
//! ```
//!
//! The watchdog reads the number. If it finds an odd number again, that callback still runs; it records the number as noticed,
//! and [`RunMonitor::end`] returns the run.
//!
//! Invariant: the number is a sequence lock for `began`. A reader that finds the same odd number before and after it read `began`
//! has the value of that run. The fences keep this on processors that reorder stores or loads; on x86-64 they cost nothing.

use super::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence};

#[derive(Default)]
pub struct RunMonitor {
    number: AtomicU64,
    /// When the last run began, in ticks.
    began: AtomicU64,
    /// The number of the run that the watchdog noticed last.
    noticed: AtomicU64,
    /// Seconds after which a run is long, as the bits of a float.
    threshold: AtomicU64,
    /// The system's number of the loop's thread.
    thread: AtomicU64,
}

/// The run of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallbackRun {
    pub number: u64,
    /// In ticks.
    pub began: u64,
}

impl RunMonitor {
    pub fn set_threshold(&self, seconds: f64) {
        self.threshold.store(seconds.to_bits(), Relaxed);
    }

    pub fn threshold(&self) -> f64 {
        f64::from_bits(self.threshold.load(Relaxed))
    }

    /// Makes the calling thread the loop's.
    pub fn set_thread(&self) {
        self.thread.store(current_thread(), Relaxed);
    }

    /// Begins a run.
    pub fn begin(&self, ticks: u64) {
        // A reader that sees the new value must see that the previous run is over.
        fence(Release);
        self.began.store(ticks, Relaxed);
        self.number.store(self.number.load(Relaxed) | 1, Release);
    }

    /// Ends a run. Returns it if it was noticed.
    pub fn end(&self) -> Option<CallbackRun> {
        let number = self.number.load(Relaxed);
        self.number.store((number | 1) + 1, Release);
        let noticed = self.noticed.load(Relaxed) == number;
        noticed.then(|| CallbackRun { number, began: self.began.load(Relaxed) })
    }

    /// The run under way.
    pub fn under_way(&self) -> Option<CallbackRun> {
        let number = self.number.load(Acquire);
        let began = self.began.load(Relaxed);
        // The number must not be read again before `began`. If it has changed, the run was not a long one.
        fence(Acquire);
        (number % 2 == 1 && self.number.load(Relaxed) == number).then_some(CallbackRun { number, began })
    }

    /// Makes [`RunMonitor::end`] return this run.
    pub fn notice(&self, run: CallbackRun) {
        self.noticed.store(run.number, Relaxed);
    }

    /// Seconds of processor time that the loop's thread has used; None if the system does not tell.
    pub fn processor_time(&self) -> Option<f64> {
        processor_time(self.thread.load(Relaxed))
    }
}

#[cfg(target_os = "linux")]
fn current_thread() -> u64 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as u64 }
}

#[cfg(not(target_os = "linux"))]
fn current_thread() -> u64 {
    0
}

/// Reads the clock that Linux has for each thread. A thread that has ended has none.
#[cfg(target_os = "linux")]
fn processor_time(thread: u64) -> Option<f64> {
    // Linux derives the clock's number from the thread's: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED.
    const SCHEDULED_OF_THREAD: libc::clockid_t = 0b110;
    let clock = (!(thread as libc::clockid_t) << 3) | SCHEDULED_OF_THREAD;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call.
    let read = unsafe { libc::clock_gettime(clock, &mut time) } == 0;
    read.then_some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
}

#[cfg(not(target_os = "linux"))]
fn processor_time(_thread: u64) -> Option<f64> {
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_run_is_seen_while_it_lasts() {
        let monitor = RunMonitor::default();
        assert_eq!(monitor.under_way(), None);
        monitor.begin(7);
        let run = monitor.under_way().unwrap();
        assert_eq!(run.began, 7);
        assert_eq!(monitor.under_way(), Some(run));
        assert_eq!(monitor.end(), None, "it was not noticed");
        assert_eq!(monitor.under_way(), None);
        monitor.begin(8);
        let next = monitor.under_way().unwrap();
        assert_ne!(next.number, run.number);
        monitor.notice(run);
        assert_eq!(monitor.end(), None, "another run was noticed");
        monitor.begin(9);
        let last = monitor.under_way().unwrap();
        monitor.notice(last);
        assert_eq!(monitor.end(), Some(last));
        monitor.begin(10);
        assert_eq!(monitor.end(), None, "a run is returned once");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn processor_time_is_that_of_the_thread() {
        let monitor = RunMonitor::default();
        monitor.set_thread();
        let before = monitor.processor_time().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let slept = monitor.processor_time().unwrap() - before;
        assert!(slept < 0.03, "{slept} s while it slept");
        // Others may have the processors for a while.
        let deadline = Instant::now() + Duration::from_secs(20);
        while monitor.processor_time().unwrap() - before < slept + 0.05 {
            assert!(Instant::now() < deadline, "no processor time while it ran");
        }
        let ended = RunMonitor::default();
        std::thread::scope(|scope| scope.spawn(|| ended.set_thread()).join().unwrap());
        let deadline = Instant::now() + Duration::from_secs(5);
        while ended.processor_time().is_some() {
            assert!(Instant::now() < deadline, "a thread that has ended has no clock");
        }
    }
}
