//! When a limit is reached, and when it no longer is: of a server's connections, and of how late callbacks run.
//!
//! `core/gates.rs` counts the connections, and looks at the delays.

use super::histogram::Histogram;

/// Which delays are compared with the limit, in seconds: those of the last second.
const WINDOW: f64 = 1.0;

/// Looks of a window at intervals of a tenth, one from before it, and one to spare.
const LOOKS: usize = 12;

/// With how many connections a server accepts again whose limit was reached: nine tenths, and at least one less.
pub fn resume_at(most: usize) -> usize {
    most - most.div_ceil(10)
}

/// How many callbacks there had been at a time, and how many of them were later than the limit, and than half of it.
#[derive(Clone, Copy, Default)]
pub struct Look {
    at: f64,
    callbacks: u64,
    later: u64,
    later_than_half: u64,
}

impl Look {
    /// `at`: in seconds of the clock. `limit`: in seconds.
    pub fn new(at: f64, delays: &Histogram, limit: f64) -> Look {
        let (callbacks, [later, later_than_half]) = delays.count_from([limit, limit / 2.0]);
        Look { at, callbacks, later, later_than_half }
    }
}

/// Callbacks, and how many of them were too late.
#[derive(Clone, Copy)]
struct Part {
    callbacks: u64,
    later: u64,
}

impl Part {
    /// Whether the 90th percentile of the delays is too late.
    fn is_late(self) -> bool {
        self.later.saturating_mul(10) > self.callbacks
    }
}

/// The callbacks of the last second, compared with the limit, and those since the look before, compared with half of it.
pub struct Recent {
    second: Part,
    last: Part,
}

impl Recent {
    pub fn is_idle(&self) -> bool {
        self.second.callbacks == 0
    }

    /// Whether the loop is late. It no longer is when the callbacks since the last look are not, though others of the second were.
    pub fn is_late(&self, was_late: bool) -> bool {
        if was_late { self.last.is_late() } else { self.second.is_late() }
    }
}

/// The looks of the last second, oldest first, and the last one before it.
#[derive(Default)]
pub struct Window {
    looks: [Look; LOOKS],
    len: usize,
}

impl Window {
    pub fn add(&mut self, look: Look) -> Recent {
        if self.len > 0 && look.callbacks < self.looks[self.len - 1].callbacks {
            // reset_metrics() was called.
            self.len = 0;
        }
        while self.len == LOOKS || (self.len > 1 && look.at - self.looks[1].at >= WINDOW) {
            self.looks.copy_within(1..self.len, 0);
            self.len -= 1;
        }
        self.looks[self.len] = look;
        self.len += 1;
        let (first, last) = (self.looks[0], self.looks[self.len.saturating_sub(2)]);
        Recent {
            second: Part {
                callbacks: look.callbacks - first.callbacks,
                later: look.later.saturating_sub(first.later),
            },
            last: Part {
                callbacks: look.callbacks - last.callbacks,
                later: look.later_than_half.saturating_sub(last.later_than_half),
            },
        }
    }

    /// Forgets the callbacks before the last look.
    pub fn restart(&mut self) {
        if self.len > 0 {
            self.looks[0] = self.looks[self.len - 1];
            self.len = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepting_resumes_at_nine_tenths_and_at_least_one_below() {
        for (most, resumes) in [(1, 0), (2, 1), (9, 8), (10, 9), (11, 9), (20, 18), (100, 90), (101, 90)] {
            assert_eq!(resume_at(most), resumes, "{most}");
        }
    }

    fn look(at: f64, callbacks: u64, later: u64, later_than_half: u64) -> Look {
        Look { at, callbacks, later, later_than_half }
    }

    #[test]
    fn a_tenth_of_the_callbacks_may_be_late() {
        let mut window = Window::default();
        assert!(window.add(look(0.0, 1000, 1000, 1000)).is_idle());
        assert!(!window.add(look(0.1, 1010, 1001, 1002)).is_late(false));
        assert!(window.add(look(0.2, 1019, 1002, 1004)).is_late(false));
        assert!(window.add(look(0.3, 1029, 1003, 1006)).is_late(true));
        assert!(!window.add(look(0.4, 1039, 1006, 1007)).is_late(true));
    }

    #[test]
    fn delays_are_forgotten_after_a_second_or_by_a_restart() {
        let mut window = Window::default();
        window.add(look(0.0, 0, 0, 0));
        for tenths in 1..=10 {
            let recent = window.add(look(f64::from(tenths) / 10.0, 5, 5, 5));
            assert!(recent.is_late(false), "{tenths}");
            assert_eq!(recent.is_late(true), tenths == 1, "{tenths}");
        }
        let recent = window.add(look(1.15, 5, 5, 5));
        assert!(recent.is_idle() && !recent.is_late(false));
        window.add(look(1.2, 9, 9, 9));
        window.restart();
        assert!(!window.add(look(1.3, 10, 9, 9)).is_late(false));
    }

    #[test]
    fn looks_that_come_too_often_or_rarely_fit() {
        let mut window = Window::default();
        for count in 0..1000 {
            window.add(look(count as f64 * 1e-3, count, count, count));
        }
        assert!(window.add(look(1.0, 1000, 1000, 1000)).is_late(false));
        assert_eq!(window.add(look(50.0, 1001, 1000, 1000)).second.callbacks, 1);
    }

    #[test]
    fn a_reset_begins_anew() {
        let mut window = Window::default();
        window.add(look(0.0, 1000, 1000, 1000));
        assert!(!window.add(look(0.1, 10, 10, 10)).is_late(false));
        assert!(window.add(look(0.2, 20, 20, 20)).is_late(false));
    }
}
