//! What an event loop counts of itself, for `metrics()`.
//!
//! Counting is on paths where every instruction shows. Each count is a cell, added to where the number is at hand. Time is
//! counted in the clock's ticks, which the loop reads before an iteration anyway; [`super::delays`] says how late callbacks run.
//!
//! Other threads read the counts while the loop runs: they are [`Published`].

use std::num::NonZeroU64;
use std::ops::Range;

use super::delays::Delays;
use super::ready::ReadyQueue;
use crate::reactor::clock::{self, Instant, Tick};
use crate::reactor::histogram::Histogram;
use crate::reactor::published::Published;

/// A number that only grows.
#[derive(Default)]
pub struct Count(Published<u64>);

impl Count {
    pub fn add(&self, number: usize) {
        self.0.set(self.0.get().wrapping_add(number as u64));
    }

    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: Count,)*
        }

        impl Counts {
            fn reset(&self) {
                $(self.$name.0.set(0);)*
            }

            /// All of them, with their names.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get())),*].into_iter()
            }
        }
    };
}

counts! {
    io_events,
    timers_fired,
    tasks_created,
    /// Waits that another thread ended.
    wakeups,
    accepted,
    /// Times that the limit of a server paused its accepting.
    accept_pauses,
    connected,
    bytes_read,
    bytes_written,
}

/// The time of pauses, of which several can be under way: each counts.
#[derive(Default)]
pub struct Pauses {
    under_way: Published<usize>,
    /// Seconds until `counted`, in seconds of the clock.
    seconds: Published<f64>,
    counted: Published<f64>,
}

impl Pauses {
    pub fn begin(&self, now: f64) {
        self.count(now);
        self.under_way.set(self.under_way.get() + 1);
    }

    pub fn end(&self, now: f64) {
        self.count(now);
        self.under_way.set(self.under_way.get().saturating_sub(1));
    }

    fn count(&self, now: f64) {
        self.seconds.set(self.seconds_until(now));
        self.counted.set(now);
    }

    pub fn seconds_until(&self, now: f64) -> f64 {
        self.seconds.get() + self.under_way.get() as f64 * (now - self.counted.get()).max(0.0)
    }

    fn reset(&self, now: f64) {
        self.seconds.set(0.0);
        self.counted.set(now);
    }
}

#[derive(Default)]
pub struct Metrics {
    pub counts: Counts,
    /// How long iterations take.
    pub iterations: Histogram,
    pub delays: Delays,
    /// How long limits have paused servers.
    pub accept_paused: Pauses,
    /// Open transports.
    pub transports: Published<usize>,
    /// How many callbacks the last iteration began with, for other threads.
    pub ready: Published<usize>,
    /// Bytes that sockets and pipes did not take, for other threads.
    pub bytes_waiting: Published<usize>,
    /// The longest ready queue that an iteration of several callbacks began with.
    ready_highest: Published<usize>,
    /// Seconds of the runs that have ended.
    ran: Published<f64>,
    /// When the present run began, in seconds of the clock; None if the loop is not running.
    run_began: Published<Option<f64>>,
    /// Seconds of the waits that have ended.
    idle: Published<f64>,
    /// When the present iteration began, in ticks; None while the loop waits or is not running.
    iteration_began: Published<Option<NonZeroU64>>,
    /// Until when timers have been queued, by the clock that they are due by.
    timers_queued: Published<Option<f64>>,
}

impl Metrics {
    /// Starts a run. What was queued before, or was due by the loop's own clock, is not late.
    pub fn begin_run(&self, now: Instant, has_own_clock: bool) {
        self.delays.restart(now.ticks);
        self.run_began.set(Some(now.seconds));
        if has_own_clock {
            self.timers_queued.set(Some(now.seconds));
        }
    }

    pub fn end_run(&self, tick: &Tick) {
        let now = Instant::now();
        self.iteration_ended(now.ticks, tick);
        if let Some(began) = self.run_began.take() {
            self.ran.set(self.ran.get() + now.seconds - began);
        }
    }

    /// Starts an iteration, of the callbacks at these positions. If the loop has not waited since the one before, that one ends here.
    /// Returns the position before which [`Delays::before_callback`] is to be called.
    #[inline(always)]
    pub fn begin_iteration(&self, now: u64, positions: &Range<u64>, tick: &Tick) -> u64 {
        self.record_iteration(self.iteration_began.replace(NonZeroU64::new(now)), now, tick);
        if cfg!(Py_GIL_DISABLED) {
            self.ready.set((positions.end - positions.start) as usize);
        }
        let next_reading = self.delays.begin_iteration(now, positions, tick);
        if next_reading == positions.start {
            let callbacks = (positions.end - positions.start) as usize;
            self.ready_highest.set(self.ready_highest.get().max(callbacks));
        }
        next_reading
    }

    /// The loop is about to wait, or has stopped.
    pub fn iteration_ended(&self, now: u64, tick: &Tick) {
        self.record_iteration(self.iteration_began.take(), now, tick);
    }

    fn record_iteration(&self, began: Option<NonZeroU64>, now: u64, tick: &Tick) {
        if let Some(began) = began {
            self.iterations.record(now.wrapping_sub(began.get()), tick);
        }
    }

    /// Seconds of the waits that have ended.
    pub fn idle(&self) -> f64 {
        self.idle.get()
    }

    /// Counts a wait, which another thread may have ended.
    pub fn count_wait(&self, seconds: f64, woken: bool) {
        self.idle.set(self.idle.get() + seconds);
        if woken {
            self.counts.wakeups.add(1);
        }
    }

    /// Starts queuing the timers that are due at `now`, which is `ticks` by the system's clock.
    pub fn begin_timers(&self, now: f64, ticks: u64, queue_end: u64) -> DueTimers {
        let queued_before = self.timers_queued.replace(Some(now)).unwrap_or(f64::NEG_INFINITY);
        DueTimers { now, ticks, queued_before, first: queue_end, group: queue_end, due: now }
    }

    /// A timer is about to be queued at the position.
    pub fn timer_due(&self, timers: &mut DueTimers, when: f64, position: u64, tick: &Tick) {
        // A timer that was made with a time in the past is late since timers were queued before.
        let due = when.max(timers.queued_before);
        if position > timers.first {
            let differs = due - timers.due > (timers.now - timers.due) * INSIGNIFICANT;
            if !differs {
                return;
            }
            self.delays.queued_since(timers.due_in_ticks(tick), timers.group..position);
        }
        (timers.due, timers.group) = (due, position);
    }

    /// All timers that are due have been queued, and the iteration begins next.
    pub fn end_timers(&self, timers: &DueTimers, queue: &ReadyQueue, tick: &Tick) {
        let positions = queue.positions();
        if positions.end > timers.first {
            self.counts.timers_fired.add((positions.end - timers.first) as usize);
            let group = timers.group..positions.end;
            self.delays.last_queued_since(timers.due_in_ticks(tick), group, positions.start);
        }
    }

    pub fn open_transport(&self) {
        self.transports.set(self.transports.get() + 1);
    }

    pub fn close_transport(&self) {
        self.transports.set(self.transports.get().saturating_sub(1));
    }

    pub fn ready_highest(&self) -> usize {
        // Iterations of a single callback are not noted.
        self.ready_highest.get().max(usize::from(!self.delays.histogram.is_empty()))
    }

    /// Seconds of waiting, and seconds of everything else, in all runs. `polled`: when the wait began that is under way, if
    /// one is.
    pub fn idle_and_busy(&self, polled: f64) -> (f64, f64) {
        let now = clock::now();
        let (mut idle, mut ran) = (self.idle.get(), self.ran.get());
        if let Some(began) = self.run_began.get() {
            ran += now - began;
            if self.iteration_began.get().is_none() {
                // Only the part after a reset counts.
                idle += (now - polled.max(began)).max(0.0);
            }
        }
        (idle, (ran - idle).max(0.0))
    }

    /// Sets everything to zero but the number of open transports.
    pub fn reset(&self) {
        self.counts.reset();
        self.iterations.reset();
        self.delays.histogram.reset();
        self.ready_highest.set(0);
        self.ran.set(0.0);
        self.idle.set(0.0);
        let now = Instant::now();
        self.accept_paused.reset(now.seconds);
        self.run_began.set(self.run_began.get().map(|_| now.seconds));
        if self.iteration_began.get().is_some() {
            self.iteration_began.set(NonZeroU64::new(now.ticks));
        }
    }
}

/// Timers whose delays differ by less than this part are in one group.
const INSIGNIFICANT: f64 = 1.0 / 64.0;

/// Timers that are being queued because they are due, from position `first` on. Those from `group` on are as late as each other.
pub struct DueTimers {
    now: f64,
    ticks: u64,
    /// Until when timers had been queued before.
    queued_before: f64,
    first: u64,
    group: u64,
    /// When the first of the group became due, or was made.
    due: f64,
}

impl DueTimers {
    fn due_in_ticks(&self, tick: &Tick) -> u64 {
        self.ticks.wrapping_sub(tick.ticks((self.now - self.due).max(0.0)))
    }
}
