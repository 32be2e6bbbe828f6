//! When something of the loop's own is done next, outside of callbacks and timers: waits end by then.

use std::cell::Cell;
use std::time::Duration;

/// The longest time between two, in seconds.
const LONGEST: f64 = 1.0;

/// A time, in seconds of the clock. At first there is none.
pub struct Due(Cell<f64>);

impl Default for Due {
    fn default() -> Self {
        Due(Cell::new(f64::INFINITY))
    }
}

impl Due {
    pub fn set(&self, time: f64) {
        self.0.set(time);
    }

    /// The earlier of this and the time set before.
    pub fn set_by(&self, time: f64) {
        self.0.set(self.0.get().min(time));
    }

    pub fn clear(&self) {
        self.0.set(f64::INFINITY);
    }

    #[inline(always)]
    pub fn has_come(&self, now: f64) -> bool {
        now >= self.0.get()
    }

    /// Limits how long a wait may take that begins now.
    #[inline(always)]
    pub fn limit(&self, now: f64, timeout: Option<Duration>) -> Option<Duration> {
        let due = self.0.get();
        if due == f64::INFINITY {
            return timeout;
        }
        let left = Duration::from_secs_f64((due - now).clamp(0.0, LONGEST));
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }
}
