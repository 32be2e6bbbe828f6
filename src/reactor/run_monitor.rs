//! Whether a callback runs for long, as another thread sees it.
//!
//! The loop numbers what it does: the number is odd while a callback runs and even otherwise. A watcher that finds the same
//! odd number again knows that the callback still runs, and leaves a note, which the loop finds when the callback is over.
//!
//! The number is a sequence lock for `began`: who reads the same odd number before and after it has read what belongs to
//! that number. The fences see to that on processors that reorder stores, and loads; on x86-64 they cost nothing.

use super::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence};

/// One loop's run_monitor.
#[derive(Default)]
pub struct RunMonitor {
    number: AtomicU64,
    /// When the callback under way began, in ticks of the clock.
    began: AtomicU64,
    /// The turn that somebody has noticed, for taking long.
    noticed: AtomicU64,
    /// After how many seconds that is, as the bits of a float.
    threshold: AtomicU64,
    /// The system's number of the thread that runs the loop.
    thread: AtomicU64,
}

/// A callback that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallbackRun {
    pub number: u64,
    /// In ticks of the clock.
    pub began: u64,
}

impl RunMonitor {
    pub fn set_threshold(&self, seconds: f64) {
        self.threshold.store(seconds.to_bits(), Relaxed);
    }

    pub fn threshold(&self) -> f64 {
        f64::from_bits(self.threshold.load(Relaxed))
    }

    /// The calling thread runs the loop.
    pub fn set_thread(&self) {
        self.thread.store(current_thread(), Relaxed);
    }

    /// A callback begins to run.
    pub fn begin(&self, ticks: u64) {
        // Who sees the new value must see that the turn before is over.
        fence(Release);
        self.began.store(ticks, Relaxed);
        self.number.store(self.number.load(Relaxed) | 1, Release);
    }

    /// It is over. Returns what it was if somebody has noticed it.
    pub fn end(&self) -> Option<CallbackRun> {
        let number = self.number.load(Relaxed);
        self.number.store((number | 1) + 1, Release);
        let noticed = self.noticed.load(Relaxed) == number;
        noticed.then(|| CallbackRun { number, began: self.began.load(Relaxed) })
    }

    /// The callback that runs now.
    pub fn under_way(&self) -> Option<CallbackRun> {
        let number = self.number.load(Acquire);
        let began = self.began.load(Relaxed);
        // If another one has begun in between, there was no long one. This must not be read before that.
        fence(Acquire);
        (number % 2 == 1 && self.number.load(Relaxed) == number).then_some(CallbackRun { number, began })
    }

    /// A callback takes long.
    pub fn notice(&self, turn: CallbackRun) {
        self.noticed.store(turn.number, Relaxed);
    }

    /// Seconds of processor time that the loop's thread has used, if the system tells.
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

/// By the clock that Linux has for each thread, which anybody may read. A thread that has ended has none.
#[cfg(target_os = "linux")]
fn processor_time(thread: u64) -> Option<f64> {
    // How the kernel numbers these clocks: CPUCLOCK_SCHED of a thread.
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
    fn turns_are_seen_while_they_last() {
        let run_monitor = RunMonitor::default();
        assert_eq!(run_monitor.under_way(), None);
        run_monitor.begin(7);
        let turn = run_monitor.under_way().unwrap();
        assert_eq!(turn.began, 7);
        assert_eq!(run_monitor.under_way(), Some(turn));
        assert_eq!(run_monitor.end(), None, "nobody has noticed");
        assert_eq!(run_monitor.under_way(), None);
        run_monitor.begin(8);
        let next = run_monitor.under_way().unwrap();
        assert_ne!(next.number, turn.number);
        run_monitor.notice(turn);
        assert_eq!(run_monitor.end(), None, "it was another that was noticed");
        run_monitor.begin(9);
        let last = run_monitor.under_way().unwrap();
        run_monitor.notice(last);
        assert_eq!(run_monitor.end(), Some(last));
        run_monitor.begin(10);
        assert_eq!(run_monitor.end(), None, "once is enough");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn processor_time_is_that_of_the_thread() {
        let run_monitor = RunMonitor::default();
        run_monitor.set_thread();
        let before = run_monitor.processor_time().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let slept = run_monitor.processor_time().unwrap() - before;
        assert!(slept < 0.03, "{slept} s while asleep");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let spun = run_monitor.processor_time().unwrap() - before;
        assert!(spun > 0.01, "{spun} s while awake");
        let ended = RunMonitor::default();
        std::thread::scope(|scope| scope.spawn(|| ended.set_thread()).join().unwrap());
        let deadline = Instant::now() + Duration::from_secs(5);
        while ended.processor_time().is_some() {
            assert!(Instant::now() < deadline, "a thread that has ended has no clock");
        }
    }
}
