//! Lets another thread see whether a callback or an iteration runs for long.
//!
//! It does not measure, and does not report: the watchdog of `src/core` does.
//!
//! The loop's thread numbers the runs of callbacks, and those of iterations:
//!
//! ```text
//! even: nothing runs -- begin() --> odd: a run is under way -- end() --> the next even number
//! ```
//!
//! The watchdog reads the number. If it finds an odd number again, that run is still under way; it records the number as noticed,
//! and [`RunSequence::end`] returns the run.
//!
//! Invariant: the number is a sequence lock for `began`. A reader that finds the same odd number before and after it read `began`
//! has the value of that run. The fences keep this on processors that reorder stores or loads; on x86-64 they cost nothing.

use super::breakdown::Observation;
use super::sync::atomic::{
    AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence,
};
use super::thread_state;

/// Runs of one sort, of which one is under way at a time. Where runs nest, the outer one is not seen after the inner one has begun.
#[derive(Default)]
pub struct RunSequence {
    number: AtomicU64,
    /// When the last run began, in ticks.
    began: AtomicU64,
    /// The number of the run that the watchdog noticed last.
    noticed: AtomicU64,
}

/// The run of a callback or an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub number: u64,
    /// In ticks.
    pub began: u64,
}

impl RunSequence {
    /// Begins a run.
    pub fn begin(&self, ticks: u64) {
        // A reader that sees the new value must see that the previous run is over.
        fence(Release);
        self.began.store(ticks, Relaxed);
        self.number.store(self.number.load(Relaxed) | 1, Release);
    }

    /// Ends a run. Returns it if it was noticed.
    pub fn end(&self) -> Option<Run> {
        let number = self.number.load(Relaxed);
        self.number.store((number | 1) + 1, Release);
        let noticed = self.noticed.load(Relaxed) == number;
        noticed.then(|| Run { number, began: self.began.load(Relaxed) })
    }

    /// The run under way.
    pub fn under_way(&self) -> Option<Run> {
        let number = self.number.load(Acquire);
        let began = self.began.load(Relaxed);
        // The number must not be read again before `began`. If it has changed, the run was not a long one.
        fence(Acquire);
        (number % 2 == 1 && self.number.load(Relaxed) == number).then_some(Run { number, began })
    }

    /// Makes [`RunSequence::end`] return this run.
    pub fn notice(&self, run: Run) {
        self.noticed.store(run.number, Relaxed);
    }
}

/// What the watchdog has seen of the runs under way.
#[derive(Default)]
pub struct Observations {
    pub callback: Option<Observation>,
    pub iteration: Option<Observation>,
}

#[derive(Default)]
pub struct RunMonitor {
    pub callbacks: RunSequence,
    pub iterations: RunSequence,
    /// The number of `callbacks` when the iteration began. Only the loop's thread uses it.
    first_callback: AtomicU64,
    /// Seconds after which a run is long, as the bits of a float.
    threshold: AtomicU64,
    /// The system's number of the loop's thread.
    thread: AtomicU64,
    /// The interpreter's state of that thread, as an address.
    interpreter_state: AtomicUsize,
    /// The watchdog locks it while it has its own lock, so that it is not locked over a fork. The loop's thread does so at the end
    /// of a run that was noticed. No Python code runs meanwhile.
    observations: std::sync::Mutex<Observations>,
}

impl RunMonitor {
    pub fn set_threshold(&self, seconds: f64) {
        self.threshold.store(seconds.to_bits(), Relaxed);
    }

    pub fn threshold(&self) -> f64 {
        f64::from_bits(self.threshold.load(Relaxed))
    }

    /// Makes the calling thread the loop's.
    pub fn set_thread(&self, interpreter_state: usize) {
        self.thread.store(thread_state::current_thread(), Relaxed);
        self.interpreter_state.store(interpreter_state, Relaxed);
    }

    /// The interpreter's state of the loop's thread, which is there while a run is under way.
    pub fn interpreter_state(&self) -> usize {
        self.interpreter_state.load(Relaxed)
    }

    /// The system's number of the loop's thread.
    pub fn thread(&self) -> u64 {
        self.thread.load(Relaxed)
    }

    pub fn begin_iteration(&self, ticks: u64) {
        self.first_callback.store(self.callbacks.number.load(Relaxed), Relaxed);
        self.iterations.begin(ticks);
    }

    /// Ends the iteration, if one was begun. Returns it, and how many callbacks it had, if it was noticed.
    pub fn end_iteration(&self) -> Option<(Run, u64)> {
        if self.iterations.number.load(Relaxed).is_multiple_of(2) {
            return None;
        }
        let run = self.iterations.end()?;
        let callbacks = self.callbacks.number.load(Relaxed).wrapping_sub(self.first_callback.load(Relaxed));
        Some((run, callbacks / 2))
    }

    pub fn observations(&self) -> std::sync::MutexGuard<'_, Observations> {
        self.observations.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_seen_while_it_lasts() {
        let monitor = RunSequence::default();
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
    fn callbacks_of_a_noticed_iteration_are_counted() {
        let monitor = RunMonitor::default();
        assert_eq!(monitor.end_iteration(), None, "none was begun");
        for callbacks in [3, 1] {
            monitor.begin_iteration(7);
            let iteration = monitor.iterations.under_way().unwrap();
            for _ in 0..callbacks {
                monitor.callbacks.begin(8);
                assert_eq!(monitor.callbacks.end(), None);
            }
            monitor.iterations.notice(iteration);
            assert_eq!(monitor.end_iteration(), Some((iteration, callbacks)));
            assert_eq!(monitor.end_iteration(), None, "it has ended");
        }
    }
}
