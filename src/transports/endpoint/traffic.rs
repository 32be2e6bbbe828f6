//! What a transport has read and written, and when it last did, for `hotloop.snapshot()`.
//!
//! Only the thread that owns the event loop reads this. Times are those of the loop's last poll: no clock is read for them.

use std::cell::Cell;

use crate::reactor::clock;

pub struct Traffic {
    /// When the transport was made, in seconds of the clock.
    opened: f64,
    /// When bytes were last read or written, or the transport was made.
    active: Cell<f64>,
    read: Cell<u64>,
    written: Cell<u64>,
}

/// What [`Traffic`] tells. Times are in seconds.
pub struct Told {
    pub age: f64,
    pub idle: f64,
    pub read: u64,
    pub written: u64,
}

impl Traffic {
    /// `polled`: when the loop last polled; negative infinity if it never has.
    pub fn new(polled: f64) -> Traffic {
        let opened = if polled.is_finite() { polled } else { clock::now() };
        Traffic { opened, active: Cell::new(opened), read: Cell::new(0), written: Cell::new(0) }
    }

    #[inline(always)]
    pub fn add_read(&self, count: usize, polled: f64) {
        self.read.set(self.read.get().wrapping_add(count as u64));
        self.active.set(polled);
    }

    /// How many bytes were read.
    pub fn total_read(&self) -> u64 {
        self.read.get()
    }

    #[inline(always)]
    pub fn add_written(&self, count: usize, polled: f64) {
        self.written.set(self.written.get().wrapping_add(count as u64));
        self.active.set(polled);
    }

    pub fn told(&self, now: f64) -> Told {
        // A write before the loop's first poll has no time.
        let active = self.active.get().max(self.opened);
        Told {
            age: (now - self.opened).max(0.0),
            idle: (now - active).max(0.0),
            read: self.read.get(),
            written: self.written.get(),
        }
    }
}
