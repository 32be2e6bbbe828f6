//! What an event loop counts of itself: for users, who ask what it does and whether anybody keeps it from doing it.
//!
//! Counting is on paths where every instruction shows. Each count is a plain cell, added to where the number is at hand.
//! Time is counted in the clock's ticks, which the loop reads anyway before an iteration. Between callbacks of one it
//! reads them for this, but with more than a few callbacks not between any two.
//!
//! How late a callback runs is counted from the last reading before it was queued. Those that were queued between two
//! readings are a batch, and only batches are remembered, so that queuing costs nothing.
//!
//! GIL: others read the counts while the loop runs. It holds the GIL whenever it counts.

use std::cell::Cell;
use std::collections::VecDeque;

use crate::cpython::borrowing::StateCell;
use crate::reactor::clock::{self, Instant, Tick};
use crate::reactor::histogram::Histogram;

/// A number that only grows.
#[derive(Default)]
pub struct Count(Cell<u64>);

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
    connected,
    bytes_read,
    bytes_written,
}

/// Up to so many callbacks an iteration, the clock is read between any two...
const FEW: usize = 8;
/// ...and above that once in so many.
const SOME: usize = 8;

pub struct Metrics {
    pub counts: Counts,
    /// How long iterations take.
    pub iterations: Histogram,
    /// How late callbacks run.
    pub delays: Histogram,
    /// Open transports.
    transports: Cell<usize>,
    /// The longest that the ready queue was when an iteration began with it, if that had several callbacks.
    ready_highest: Cell<usize>,
    /// Seconds in which the loop ran, up to the end of the last run, and when the one under way began.
    ran: Cell<f64>,
    run_began: Cell<Option<f64>>,
    /// Seconds spent in waiting, up to the end of the last wait.
    idle: Cell<f64>,
    /// When the iteration that is under way began, in ticks; 0 if there is none.
    began: Cell<u64>,
    /// The last reading of the clock, in ticks.
    moment: Cell<u64>,
    /// Callbacks in the order of the ready queue: since when they are ready, and how many. What is queued behind those is
    /// ready since the last reading.
    batches: StateCell<VecDeque<(u64, usize)>>,
    /// How many callbacks that are.
    in_batches: Cell<usize>,
    /// Since when all callbacks of the iteration under way are ready, if that is the same moment: they are in no batch
    /// then. 0 if it isn't.
    since: Cell<u64>,
    /// How many of them are to be run yet.
    left: Cell<usize>,
    /// When timers were last looked at, by the clock.
    timers_looked_at: Cell<f64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            counts: Counts::default(),
            iterations: Histogram::default(),
            delays: Histogram::default(),
            transports: Cell::new(0),
            ready_highest: Cell::new(0),
            ran: Cell::new(0.0),
            run_began: Cell::new(None),
            idle: Cell::new(0.0),
            began: Cell::new(0),
            moment: Cell::new(0),
            batches: StateCell::default(),
            in_batches: Cell::new(0),
            since: Cell::new(0),
            left: Cell::new(0),
            timers_looked_at: Cell::new(f64::NEG_INFINITY),
        }
    }
}

impl Metrics {
    /// Somebody runs the loop from now on.
    pub fn begin_run(&self, now: Instant) {
        // What was queued while nobody ran the loop is not late.
        self.forget_batches();
        self.moment.set(now.ticks);
        self.run_began.set(Some(now.seconds));
    }

    /// Nobody does any more.
    pub fn end_run(&self, tick: &Tick) {
        let now = Instant::now();
        self.end_iteration(now.ticks, tick);
        if let Some(began) = self.run_began.take() {
            self.ran.set(self.ran.get() + now.seconds - began);
        }
    }

    /// An iteration begins, which is the end of the one before, unless the loop has waited since, or has not run. So
    /// many callbacks are about to be run. Returns the first of them before which [`Metrics::mark`] is to be called.
    pub fn begin_iteration(&self, now: u64, callbacks: usize, tick: &Tick) -> usize {
        let began = self.began.replace(now);
        if began != 0 {
            self.iterations.record(now.wrapping_sub(began), tick);
        }
        if callbacks == 1 && self.in_batches.get() == 0 {
            let since = self.moment.replace(now);
            self.delays.record(now.wrapping_sub(since), tick);
            return usize::MAX;
        }
        self.begin_long_iteration(now, callbacks);
        0
    }

    #[inline(never)]
    fn begin_long_iteration(&self, now: u64, callbacks: usize) {
        self.ready_highest.set(self.ready_highest.get().max(callbacks));
        if self.in_batches.get() == 0 {
            self.since.set(self.moment.replace(now));
            self.left.set(callbacks);
        } else {
            self.since.set(0);
            self.set_moment(now, callbacks);
        }
    }

    /// Counts how late the next callbacks are, of which `done` were run and `queued` are in the queue. Returns how many
    /// are to be done when this is to be called again.
    pub fn mark(&self, done: usize, callbacks: usize, queued: usize, tick: &Tick) -> usize {
        if done > 0 {
            self.set_moment(clock::ticks(), queued);
        }
        let next = (callbacks - done).min(if callbacks <= FEW { 1 } else { SOME });
        let since = self.since.get();
        if since == 0 {
            self.take_batches(next, tick);
        } else {
            self.delays.record_several(self.moment.get().wrapping_sub(since), next as u64, tick);
        }
        done + next
    }

    /// A callback is run, after which so many are left.
    pub fn set_left(&self, callbacks: usize) {
        self.left.set(callbacks);
    }

    /// Takes so many callbacks for run.
    #[inline(never)]
    fn take_batches(&self, mut callbacks: usize, tick: &Tick) {
        let mut batches = self.batches.borrow_mut();
        while callbacks > 0 {
            let Some((since, length)) = batches.front_mut() else { break };
            let taken = callbacks.min(*length);
            self.delays.record_several(self.moment.get().wrapping_sub(*since), taken as u64, tick);
            self.in_batches.set(self.in_batches.get() - taken);
            callbacks -= taken;
            *length -= taken;
            if *length == 0 {
                batches.pop_front();
            }
        }
    }

    /// The clock was read. So many callbacks are queued: those that are in no batch yet were since the last reading.
    pub fn set_moment(&self, ticks: u64, queued: usize) {
        let since = self.moment.replace(ticks);
        self.close_batch(since, queued);
    }

    /// The same when nothing was queued before.
    pub fn set_first_moment(&self, ticks: u64) {
        self.moment.set(ticks);
    }

    fn close_batch(&self, since: u64, queued: usize) {
        let queued = if self.since.get() == 0 { queued } else { queued.saturating_sub(self.left.get()) };
        if queued > self.in_batches.get() {
            self.make_batch(since, queued);
        }
    }

    #[inline(never)]
    fn make_batch(&self, since: u64, queued: usize) {
        self.batches.borrow_mut().push_back((since, queued - self.in_batches.replace(queued)));
    }

    /// Callbacks are about to be queued behind so many, that are ready since other moments: see [`Metrics::add_batch`].
    pub fn begin_batches(&self, queued: usize) {
        self.close_batch(self.moment.get(), queued);
    }

    /// So many callbacks were queued that are ready since then.
    pub fn add_batch(&self, since: u64, callbacks: usize) {
        self.batches.borrow_mut().push_back((since, callbacks));
        self.in_batches.set(self.in_batches.get() + callbacks);
    }

    /// What is queued is ready from now on only.
    fn forget_batches(&self) {
        self.batches.borrow_mut().clear();
        self.in_batches.set(0);
        self.left.set(0);
    }

    /// The loop is about to wait, or has stopped.
    pub fn end_iteration(&self, ticks: u64, tick: &Tick) {
        let began = self.began.replace(0);
        if began != 0 {
            self.iterations.record(ticks.wrapping_sub(began), tick);
        }
    }

    /// A wait is over that took so many seconds. It may have been ended by another thread.
    pub fn count_wait(&self, seconds: f64, woken: bool) {
        self.idle.set(self.idle.get() + seconds);
        if woken {
            self.counts.wakeups.add(1);
        }
    }

    /// Timers are looked at, at a time of the loop's clock and of ours. Those that were due before the last look were
    /// made late.
    pub fn look_at_timers(&self, now: f64, ticks: u64) -> LateTimers {
        LateTimers { now, ticks, last: self.timers_looked_at.replace(now), due: now, timers: 0 }
    }

    /// Such timers were queued.
    pub fn add_timers(&self, late: LateTimers, tick: &Tick) {
        if late.timers > 0 {
            self.counts.timers_fired.add(late.timers);
            self.add_batch(late.due_in_ticks(tick), late.timers);
        }
    }

    /// The last such timers were queued, behind so many others, and the iteration begins. If they are all that is
    /// queued, they need no batch: they are as good as queued when they were due.
    pub fn add_last_timers(&self, late: LateTimers, others: usize, tick: &Tick) {
        if others > 0 || self.in_batches.get() > 0 || late.timers == 0 {
            self.add_timers(late, tick);
        } else {
            self.counts.timers_fired.add(late.timers);
            self.moment.set(late.due_in_ticks(tick));
        }
    }

    pub fn open_transport(&self) {
        self.transports.set(self.transports.get() + 1);
    }

    pub fn close_transport(&self) {
        self.transports.set(self.transports.get().saturating_sub(1));
    }

    pub fn transports(&self) -> usize {
        self.transports.get()
    }

    pub fn ready_highest(&self) -> usize {
        // Iterations with a single callback are left out of it.
        self.ready_highest.get().max(usize::from(!self.delays.is_empty()))
    }

    /// Seconds spent in waiting, and seconds spent otherwise, in all runs. If the loop is waiting now, it has been since
    /// `polled`, by the clock.
    pub fn idle_and_busy(&self, polled: f64) -> (f64, f64) {
        let now = clock::now();
        let (mut idle, mut ran) = (self.idle.get(), self.ran.get());
        if let Some(began) = self.run_began.get() {
            ran += now - began;
            if self.began.get() == 0 {
                // After a reset, not all of it counts.
                idle += (now - polled.max(began)).max(0.0);
            }
        }
        (idle, (ran - idle).max(0.0))
    }

    /// Begins to count anew. What is open stays open.
    pub fn reset(&self) {
        self.counts.reset();
        self.iterations.reset();
        self.delays.reset();
        self.ready_highest.set(0);
        self.ran.set(0.0);
        self.idle.set(0.0);
        let now = Instant::now();
        self.run_began.set(self.run_began.get().map(|_| now.seconds));
        if self.began.get() != 0 {
            self.began.set(now.ticks);
        }
    }
}

/// Timers that are as late as each other, nearly: this part of a delay makes no difference.
const INSIGNIFICANT: f64 = 1.0 / 64.0;

/// Some of the timers that are due, one after the other.
pub struct LateTimers {
    now: f64,
    ticks: u64,
    /// When timers were looked at before.
    last: f64,
    /// When the first of these became due, or was made.
    due: f64,
    timers: usize,
}

impl LateTimers {
    fn due_in_ticks(&self, tick: &Tick) -> u64 {
        self.ticks.wrapping_sub(tick.ticks((self.now - self.due).max(0.0)))
    }

    /// Adds a timer that was due then. If it is not as late as the others, `full` is given those, without it.
    pub fn add(&mut self, when: f64, full: impl FnOnce(LateTimers)) {
        let due = when.max(self.last);
        if self.timers > 0 && due - self.due > (self.now - self.due) * INSIGNIFICANT {
            full(LateTimers { ..*self });
            self.timers = 0;
        }
        if self.timers == 0 {
            self.due = due;
        }
        self.timers += 1;
    }
}
