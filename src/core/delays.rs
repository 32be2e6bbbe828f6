//! How late callbacks run: `delay` of `metrics()`. What else an event loop counts is in [`super::metrics`].
//!
//! The clock is not read when a callback is queued, since that made each 15 ns slower. A callback counts as ready from the last
//! reading before it was queued, and as run from the last reading before it ran. An iteration of three callbacks:
//!
//! ```text
//!    begin_iteration   before_callback   before_callback   begin_iteration, or iteration_ended and wait_ended
//!  -------+-----------------+-----------------+-----------------+-------> time
//!         |  1st callback   |  2nd callback   |  3rd callback   |
//!   queues group A    queues group B    queues group C    the delay of A is recorded
//! ```
//!
//! Callbacks that were queued between two readings are a [`Group`]. Timers and callbacks of other threads are groups with a
//! time of their own. The entries of the ready queue, by position:
//!
//! ```text
//!   run already | front | more: Group, Group, ... | queued since the last reading
//!               next to run                       grouped                        end of the queue
//! ```

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;

use crate::cpython::borrowing::StateCell;
use crate::reactor::clock::{self, SHORTEST, Tick};
use crate::reactor::histogram::Histogram;

/// In an iteration of up to this many callbacks, the clock is read before each.
const READ_EACH: u64 = 8;
/// In a longer iteration, it is read once for this many callbacks.
const READ_EVERY: u64 = 8;

/// After an attempt to get memory for a group that failed, the next is made this many callbacks later.
const ATTEMPT_EVERY: u64 = 1024;

/// Callbacks that became ready at the same time: those behind the group before, up to position `end` of the ready queue.
#[derive(Clone, Copy, Default)]
struct Group {
    /// In ticks of the clock.
    ready_since: u64,
    end: u64,
}

/// Invariants: `front` and the groups in `more` are in the order of the queue. The last of them ends at `grouped`, and what is
/// behind that is ready since `last_read`. A group of which all callbacks have run may stay until its place is needed.
#[derive(Default)]
pub struct Delays {
    pub histogram: Histogram,
    /// The last reading of the clock, in ticks.
    last_read: Cell<u64>,
    front: Cell<Group>,
    more: StateCell<VecDeque<Group>>,
    grouped: Cell<u64>,
    /// Where there was no memory for a group: the position from which on it is tried again.
    next_attempt: Cell<u64>,
    /// The delay that was recorded last, in ticks.
    latest: Cell<u64>,
    /// Whether the clock is read before each callback of a long iteration, too: accounts need that.
    reads_each: Cell<bool>,
    /// Groups that became ready within so many ticks are one.
    together: Cell<u64>,
}

impl Delays {
    /// Forgets the groups: callbacks that are queued now count as ready from now on.
    pub fn restart(&self, now: u64) {
        self.last_read.set(now);
        self.front.take();
        self.more.borrow_mut().clear();
        self.grouped.set(0);
        self.next_attempt.set(0);
    }

    pub fn set_reads_each(&self, each: bool, tick: &Tick) {
        self.reads_each.set(each);
        // Shorter delays are counted as one.
        self.together.set(if each { tick.ticks(SHORTEST) } else { 0 });
    }

    /// The last reading of the clock, and the delay of the callback that it was read for, in ticks. They are those of the next callback
    /// if [`Delays::set_reads_each`] was called before the iteration.
    #[inline(always)]
    pub fn latest(&self) -> (u64, u64) {
        (self.last_read.get(), self.latest.get())
    }

    /// A wait has ended that began with an empty queue.
    pub fn wait_ended(&self, now: u64) {
        self.last_read.set(now);
    }

    /// The callbacks at these positions are about to run. Returns the position before which
    /// [`Delays::before_callback`] is to be called.
    #[inline(always)]
    pub fn begin_iteration(&self, now: u64, iteration: &Range<u64>, tick: &Tick) -> u64 {
        if iteration.end - iteration.start == 1 && self.grouped.get() <= iteration.start {
            let ready_since = self.last_read.replace(now);
            self.grouped.set(iteration.end);
            let delay = now.wrapping_sub(ready_since);
            self.latest.set(delay);
            self.histogram.record(delay, tick);
            return iteration.end;
        }
        self.begin_long_iteration(now, iteration);
        iteration.start
    }

    #[inline(never)]
    fn begin_long_iteration(&self, now: u64, iteration: &Range<u64>) {
        if self.grouped.get() <= iteration.start {
            self.front.set(Group { ready_since: self.last_read.replace(now), end: iteration.end });
            self.grouped.set(iteration.end);
        } else {
            self.clock_read(now, iteration.end);
        }
    }

    /// Records the delays of the next callbacks of the iteration. Returns the position before which this is to be called again.
    #[inline(never)]
    pub fn before_callback(&self, next: u64, iteration: &Range<u64>, queue_end: u64, tick: &Tick) -> u64 {
        if self.reads_each.get() {
            self.before_each(next, iteration, queue_end, tick);
            return next + 1;
        }
        if next > iteration.start {
            self.clock_read(clock::ticks(), queue_end);
        }
        let step = if iteration.end - iteration.start <= READ_EACH { 1 } else { READ_EVERY };
        let beyond = (next - iteration.start) % step;
        if beyond > 0 {
            // Accounts have ended in this iteration: the callbacks up to there are recorded.
            return (next + step - beyond).min(iteration.end);
        }
        let end = (next + step).min(iteration.end);
        let front = self.front.get();
        if end <= front.end {
            let delay = self.last_read.get().wrapping_sub(front.ready_since);
            self.latest.set(delay);
            self.histogram.record_several(delay, end - next, tick);
        } else {
            self.record_several_groups(next, end, tick);
        }
        end
    }

    #[inline(always)]
    fn before_each(&self, next: u64, iteration: &Range<u64>, queue_end: u64, tick: &Tick) {
        if next > iteration.start {
            self.clock_read(clock::ticks(), queue_end);
        }
        let mut front = self.front.get();
        if front.end <= next {
            let mut more = self.more.borrow_mut();
            while front.end <= next {
                let Some(group) = more.pop_front() else { return };
                front = group;
            }
            self.front.set(front);
        }
        let delay = self.last_read.get().wrapping_sub(front.ready_since);
        self.latest.set(delay);
        // The histogram is the same as without accounts.
        let (done, left) = (next - iteration.start, iteration.end - next);
        if done + left <= READ_EACH {
            self.histogram.record(delay, tick);
        } else if done.is_multiple_of(READ_EVERY) {
            self.histogram.record_several(delay, left.min(READ_EVERY), tick);
        }
    }

    #[inline(never)]
    fn record_several_groups(&self, mut next: u64, end: u64, tick: &Tick) {
        let mut more = self.more.borrow_mut();
        while next < end {
            let front = self.front.get();
            if front.end <= next {
                let Some(group) = more.pop_front() else { break };
                self.front.set(group);
                continue;
            }
            let group_end = front.end.min(end);
            let delay = self.last_read.get().wrapping_sub(front.ready_since);
            self.latest.set(delay);
            self.histogram.record_several(delay, group_end - next, tick);
            next = group_end;
        }
    }

    /// The clock was read while the queue ended at a position.
    pub fn clock_read(&self, now: u64, queue_end: u64) {
        let ready_since = self.last_read.replace(now);
        self.close_group(ready_since, queue_end);
    }

    /// Callbacks that became ready at another time than the last reading were queued at these positions.
    pub fn queued_since(&self, ready_since: u64, positions: Range<u64>) {
        self.close_group(self.last_read.get(), positions.start);
        self.close_group(ready_since, positions.end);
    }

    /// Another thread has queued a callback. Those that it queues within [`SHORTEST`] are one group.
    #[inline(always)]
    pub fn pushed(&self, now: u64, position: u64, tick: &Tick) {
        if self.grouped.get() == position
            && let Some(last) = self.more.borrow_mut().back_mut()
            && tick.is_short(now.wrapping_sub(last.ready_since))
        {
            last.end = position + 1;
            self.grouped.set(position + 1);
        } else {
            self.queued_since(now, position..position + 1);
        }
    }

    /// Like [`Delays::queued_since`], if the iteration begins next. An iteration of nothing else needs no group then.
    pub fn last_queued_since(&self, ready_since: u64, positions: Range<u64>, queue_start: u64) {
        if positions.start == queue_start && self.grouped.get() <= queue_start {
            self.last_read.set(ready_since);
        } else {
            self.queued_since(ready_since, positions);
        }
    }

    fn close_group(&self, ready_since: u64, end: u64) {
        if end > self.grouped.get() {
            self.add_group(Group { ready_since, end });
        }
    }

    #[inline(never)]
    fn add_group(&self, group: Group) {
        let mut more = self.more.borrow_mut();
        if let Some(last) = more.back_mut()
            && group.ready_since.wrapping_sub(last.ready_since) < self.together.get()
        {
            last.end = group.end;
            self.grouped.set(group.end);
            return;
        }
        // Without memory, they count as ready since a later reading.
        if more.len() == more.capacity() {
            if group.end < self.next_attempt.get() {
                return;
            }
            if more.try_reserve(1).is_err() {
                self.next_attempt.set(group.end + ATTEMPT_EVERY);
                return;
            }
        }
        self.grouped.set(group.end);
        more.push_back(group);
    }
}
