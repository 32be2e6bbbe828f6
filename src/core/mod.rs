//! What an event loop is made of: its ready queue, timers, watched descriptors, and what its transports have to send.
//!
//! The Python class (in `event_loop`) owns a [`Core`] and shares it with its transports. Nothing here knows what a
//! transport is: it is an object with a function to call when something happens to it.

mod future;
mod metrics;
mod ready;
mod receiving;
pub mod watchdog;
mod watching;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;

use crate::cpython::class::Visitor;
use crate::cpython::object::{Object, check_signals};
use crate::cpython::os_error::OrOsError;
use crate::cpython::received::{self, Blank};
use crate::handle::Schedule;
use crate::reactor::clock::{self, Instant};
use crate::reactor::datagram::Batch;
use crate::reactor::doze::{Drowsiness, doze};
use crate::reactor::pace::Pace;
use crate::reactor::poller::{self, Poller};
use crate::reactor::registry::Registry;
use crate::reactor::turns::Turns;
use crate::reactor::waker::Inbox;

pub use future::resolve;
pub use metrics::{Count, Metrics};
pub use ready::{OnReady, Readiness, Ready, Step};
pub use receiving::Received;
pub use watching::{Direction, Waiter, Watch};

/// One receive gets at the most this many bytes: asyncio's `max_size`.
pub const RECEIVE_BUFFER: usize = 256 * 1024;

/// Callbacks run between two looks at what waits to be sent.
const FLUSH_CALLBACKS: usize = 128;
/// Callbacks run between two looks at the clock, for the sake of what waits to be sent...
const FLUSH_CLOCK_CALLBACKS: usize = 8;
/// ...which is sent after this long, in seconds, even if the iteration goes on.
const FLUSH_INTERVAL: f64 = 1e-3;

/// A timer is due when this much is left, in seconds: the step of the clock, as in asyncio.
const CLOCK_RESOLUTION: f64 = 1e-9;

/// A wait is at most this long, as asyncio's: select() and its kin have limits.
const LONGEST_WAIT: f64 = 24.0 * 3600.0;

pub struct Core {
    pub schedule: Rc<Schedule>,
    ready: RefCell<VecDeque<Ready>>,
    /// Handles from other threads, and when they were sent, in ticks of the clock.
    inbox: Inbox<(Ready, u64)>,
    /// None once the event loop is closed.
    registry: RefCell<Option<Registry<Watch>>>,
    /// Transports with something to send at the end of the iteration.
    unsent: RefCell<Vec<(Object, Step)>>,
    /// Whether callbacks of an iteration are being run, so that there will be an end of the iteration.
    iterating: Cell<bool>,
    stopping: Cell<bool>,
    /// Whether time() is not ours, because a subclass or the program has another: it decides when timers are due.
    foreign_clock: Cell<bool>,
    /// Lent to one receive at a time.
    buffer: Cell<Option<Box<[u8]>>>,
    /// Bytes objects that streams receive into.
    received: RefCell<received::Received>,
    /// How much comes at a time to sockets that are read from without a transport, roughly.
    pub usual_size: Cell<usize>,
    /// The same for datagrams.
    batch: Cell<Option<Box<Batch>>>,
    events: Cell<Option<Box<poller::Ready>>>,
    pub pace: Pace,
    drowsiness: Drowsiness,
    pub metrics: Metrics,
    /// What a watcher sees of the loop, if it is watched.
    turns: RefCell<Option<Arc<Turns>>>,
}

/// The time as the event loop's own time() tells it.
#[cold]
fn foreign_time(py: Python<'_>, event_loop: &Object) -> PyResult<f64> {
    event_loop.call_method0(py, intern!(py, "time"))?.bind(py).extract()
}

impl Core {
    pub fn new(portable: bool) -> io::Result<Core> {
        Ok(Core {
            schedule: Rc::default(),
            ready: RefCell::default(),
            inbox: Inbox::default(),
            registry: RefCell::new(Some(Registry::new(Poller::new(portable)?))),
            unsent: RefCell::default(),
            iterating: Cell::new(false),
            stopping: Cell::new(false),
            foreign_clock: Cell::new(false),
            buffer: Cell::new(None),
            received: RefCell::default(),
            usual_size: Cell::new(0),
            batch: Cell::new(None),
            events: Cell::new(None),
            pace: Pace::default(),
            drowsiness: Drowsiness::default(),
            metrics: Metrics::default(),
            turns: RefCell::default(),
        })
    }

    pub fn is_portable(&self) -> bool {
        self.registry.borrow().as_ref().is_some_and(|registry| registry.poller().is_portable())
    }

    pub fn is_closed(&self) -> bool {
        self.registry.borrow().is_none()
    }

    pub fn stopping(&self) -> bool {
        self.stopping.get()
    }

    pub fn set_foreign_clock(&self, foreign: bool) {
        self.foreign_clock.set(foreign);
    }

    pub fn has_foreign_clock(&self) -> bool {
        self.foreign_clock.get()
    }

    pub fn set_stopping(&self, stopping: bool) {
        self.stopping.set(stopping);
    }

    // --- The ready queue ---

    #[inline(always)]
    pub fn push(&self, entry: Ready) {
        if self.inbox.is_filled() {
            // What another thread has sent came first.
            self.collect_inbox();
        }
        self.ready.borrow_mut().push_back(entry);
    }

    /// Queues from another thread, and wakes the event loop if it is asleep.
    pub fn send(&self, entry: Ready) -> PyResult<()> {
        if self.inbox.deliver((entry, clock::ticks())) { self.wake() } else { Ok(()) }
    }

    /// Ends a wait that is under way in another thread.
    pub fn rouse(&self) -> PyResult<()> {
        if self.inbox.sleep.end() { self.wake() } else { Ok(()) }
    }

    fn wake(&self) -> PyResult<()> {
        match &*self.registry.borrow() {
            Some(registry) => registry.poller().wake().or_os_error(),
            None => Ok(()),
        }
    }

    #[cold]
    fn collect_inbox(&self) {
        let entries = self.inbox.collect();
        let mut ready = self.ready.borrow_mut();
        let others = ready.len();
        self.metrics.begin_batches(others);
        for (entry, since) in entries {
            ready.push_back(entry);
            self.metrics.add_batch(since, 1);
        }
    }

    /// How many callbacks are ready now.
    pub fn ready_length(&self) -> usize {
        self.ready.borrow().len()
    }

    // --- Iterations ---

    /// Runs iterations until [`Core::set_stopping`]; the one under way then is finished.
    pub fn run(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        // What happened before may have made descriptors ready.
        self.pace.stir();
        let now = Instant::now();
        self.metrics.begin_run(now);
        if let Some(turns) = &*self.turns.borrow() {
            turns.set_thread();
        }
        if !self.has_foreign_clock() {
            self.metrics.look_at_timers(now.seconds, now.ticks);
        }
        let result = self.run_iterations(py, event_loop);
        self.metrics.end_run(&self.pace.tick);
        result
    }

    fn run_iterations(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        loop {
            self.iterate(py, event_loop)?;
            if self.stopping.get() {
                return Ok(());
            }
        }
    }

    /// One iteration, in asyncio's order: wait, take in what is ready and what is due, run the callbacks that are
    /// there by then, send what they wrote.
    pub fn iterate(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        if self.inbox.is_filled() {
            self.collect_inbox();
        }
        let callbacks_wait = !self.ready.borrow().is_empty() || self.stopping.get();
        let started = match if callbacks_wait { self.fast() } else { None } {
            Some(ticks) => Instant { seconds: self.pace.polled(), ticks },
            None => self.look(py, event_loop, callbacks_wait)?,
        };
        self.iterating.set(true);
        let result = self.run_ready(py, event_loop, started);
        self.iterating.set(false);
        let flushed = self.flush(py);
        result.and(flushed)
    }

    /// The time in ticks, if this iteration needs neither the clock nor the descriptors.
    #[inline]
    fn fast(&self) -> Option<u64> {
        if self.has_foreign_clock() {
            return None;
        }
        let deadline = self.schedule.timers.borrow().next_deadline();
        self.pace.fast(deadline)
    }

    /// Takes in what is ready, and what is due. Returns the time.
    #[inline(never)]
    fn look(&self, py: Python<'_>, event_loop: &Object, callbacks_wait: bool) -> PyResult<Instant> {
        let mut now = Instant::now();
        if !callbacks_wait {
            self.metrics.end_iteration(now.ticks, &self.pace.tick);
            let timeout = self.time_left(py, event_loop, now.seconds)?;
            self.poll(py, now, timeout)?;
            now = self.pace.instant();
            self.metrics.set_first_moment(now.ticks);
        } else if self.pace.poll_is_due(now.seconds) {
            let queued = self.ready_length();
            self.poll(py, now, Some(Duration::ZERO))?;
            if self.ready_length() > queued {
                self.metrics.set_moment(now.ticks, queued);
            }
        }
        if self.inbox.is_filled() {
            self.collect_inbox();
        }
        let due = if self.has_foreign_clock() { foreign_time(py, event_loop)? } else { now.seconds };
        self.queue_due_timers(due, now.ticks);
        Ok(now)
    }

    /// How long to wait for the next timer; None if there is none.
    fn time_left(&self, py: Python<'_>, event_loop: &Object, now: f64) -> PyResult<Option<Duration>> {
        let Some(deadline) = self.schedule.timers.borrow().next_deadline() else { return Ok(None) };
        let now = if self.has_foreign_clock() { foreign_time(py, event_loop)? } else { now };
        let left = deadline - now;
        // A foreign clock can say anything, NaN included.
        Ok(Some(Duration::from_secs_f64(if left > 0.0 { left.min(LONGEST_WAIT) } else { 0.0 })))
    }

    /// Waits for descriptors and queues what became ready. Signals that arrive are handled.
    #[inline(never)]
    fn poll(&self, py: Python<'_>, now: Instant, timeout: Option<Duration>) -> PyResult<()> {
        self.pace.start_poll(now);
        let mut events = self.events.take().unwrap_or_default();
        let (result, waited) = match timeout {
            Some(Duration::ZERO) => (self.peek(&mut events), false),
            _ => (self.wait(py, now.seconds, &mut events, timeout), true),
        };
        let check = events.interrupted || waited;
        let taken_in = result.and_then(|()| self.take_in(py, &events));
        self.events.set(Some(events));
        taken_in.or_os_error()?;
        if check { check_signals(py) } else { Ok(()) }
    }

    fn peek(&self, events: &mut poller::Ready) -> io::Result<()> {
        if let Some(registry) = &mut *self.registry.borrow_mut() {
            registry.own_poller()?;
            registry.poller().wait(events, Some(Duration::ZERO))?;
        }
        self.pace.end_peek(events.is_empty());
        Ok(())
    }

    fn wait(
        &self,
        py: Python<'_>,
        now: f64,
        events: &mut poller::Ready,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let poller = match &mut *self.registry.borrow_mut() {
            Some(registry) => {
                registry.own_poller()?;
                Arc::clone(registry.poller())
            }
            None => return Ok(()),
        };
        let dozes = self.drowsiness.wants_doze(timeout);
        if !self.inbox.fall_asleep(dozes) {
            return self.peek(events);
        }
        let sleep = &self.inbox.sleep;
        let mut dozed = None;
        let result = py.detach(|| {
            let mut timeout = timeout;
            if dozes {
                let doze = doze(sleep, &poller, events)?;
                dozed = Some(doze.seconds);
                if doze.is_over {
                    return Ok(());
                }
                let passed = Duration::from_secs_f64(doze.seconds);
                timeout = timeout.map(|timeout| timeout.saturating_sub(passed));
            }
            poller.wait(events, timeout)
        });
        let woken = sleep.is_awake();
        sleep.end();
        self.pace.end_wait();
        let seconds = self.pace.polled() - now;
        self.metrics.count_wait(seconds, woken);
        self.drowsiness.learn(seconds, woken);
        if let Some(seconds) = dozed {
            self.drowsiness.learn_from_doze(seconds);
        }
        result
    }

    /// Queues the timers that are due, by the loop's own clock and by the ticks of ours.
    fn queue_due_timers(&self, now: f64, ticks: u64) {
        let mut late = self.metrics.look_at_timers(now, ticks);
        let mut timers = self.schedule.timers.borrow_mut();
        if timers.is_empty() {
            return;
        }
        let mut ready = self.ready.borrow_mut();
        let others = ready.len();
        self.metrics.begin_batches(others);
        while let Some(timer) = timers.pop_due(now + CLOCK_RESOLUTION) {
            timer.set_fired();
            late.add(timer.when(), |batch| self.metrics.add_timers(batch, &self.pace.tick));
            ready.push_back(Ready::Timer(timer));
        }
        self.metrics.add_last_timers(late, others, &self.pace.tick);
    }

    /// Runs the callbacks that are in the queue now, not those that they add.
    fn run_ready(&self, py: Python<'_>, event_loop: &Object, started: Instant) -> PyResult<()> {
        let count = self.ready.borrow().len();
        let mut mark = self.metrics.begin_iteration(started.ticks, count, &self.pace.tick);
        let mut flushed = started.seconds;
        for done in 1..=count {
            if done > mark {
                mark = self.metrics.mark(done - 1, count, self.ready_length(), &self.pace.tick);
            }
            let Some(entry) = self.ready.borrow_mut().pop_front() else { break };
            self.metrics.set_left(count - done);
            if self.schedule.is_plain() {
                entry.run(py, event_loop)?;
            } else {
                let began = if done == 1 { started.ticks } else { clock::ticks() };
                self.run_observed(py, event_loop, &entry, began)?;
            }
            drop(entry);
            if done % FLUSH_CLOCK_CALLBACKS == 0 && !self.unsent.borrow().is_empty() {
                let now = clock::now();
                if done % FLUSH_CALLBACKS == 0 || now - flushed > FLUSH_INTERVAL {
                    self.flush(py)?;
                    flushed = now;
                }
            }
        }
        Ok(())
    }

    /// Runs a callback in debug mode, or while somebody watches, that `began` now, in ticks.
    #[inline(never)]
    fn run_observed(&self, py: Python<'_>, event_loop: &Object, entry: &Ready, began: u64) -> PyResult<()> {
        let turns = self.turns.borrow().clone();
        let Some(turns) = turns else { return entry.run_watched(py, event_loop) };
        turns.begin(began);
        let result =
            if self.schedule.debug() { entry.run_watched(py, event_loop) } else { entry.run(py, event_loop) };
        let Some(turn) = turns.end() else { return result };
        let seconds = self.pace.tick.seconds(clock::ticks().wrapping_sub(turn.began));
        let what = entry.object().bind(py);
        let told = py
            .import("hotloop._observing.watching")
            .and_then(|module| module.call_method1("end", (event_loop.bind(py), turn.number, what, seconds)));
        let told = told.map(drop).or_else(|error| {
            // What fails to be told is no failure of the program; Ctrl-C, which any Python code can meet, is for it.
            if error.is_instance_of::<PyException>(py) {
                error.write_unraisable(py, None);
                return Ok(());
            }
            Err(error)
        });
        result.and(told)
    }

    /// Lets a watcher see what the loop does from now on; None for nobody.
    pub fn set_turns(&self, turns: Option<Arc<Turns>>) {
        self.schedule.set_watched(turns.is_some());
        if let Some(turns) = &turns {
            turns.set_thread();
        }
        self.turns.replace(turns);
    }

    pub fn turns(&self) -> Option<Arc<Turns>> {
        self.turns.borrow().clone()
    }

    // --- Sending ---

    /// Asks for `step` to be called at the end of the iteration. False if there is none to come: call it now.
    #[must_use]
    #[inline]
    pub fn flush_later(&self, object: Object, step: Step) -> bool {
        let iterating = self.iterating.get();
        if iterating {
            self.unsent.borrow_mut().push((object, step));
        }
        iterating
    }

    /// Lets all transports send that asked for it.
    #[inline]
    pub fn flush(&self, py: Python<'_>) -> PyResult<()> {
        if self.unsent.borrow().is_empty() { Ok(()) } else { self.send_unsent(py) }
    }

    fn send_unsent(&self, py: Python<'_>) -> PyResult<()> {
        let mut unsent = self.unsent.take();
        let mut result = Ok(());
        for (object, step) in unsent.drain(..) {
            if let Err(error) = step(py, &object) {
                result = Err(error);
            }
        }
        let mut place = self.unsent.borrow_mut();
        if place.is_empty() {
            *place = unsent;
        }
        result
    }

    /// Says that something was done that can have made a descriptor ready.
    pub fn stir(&self) {
        self.pace.stir();
    }

    /// A bytes object to receive into, with room for at least `size` bytes.
    #[inline(always)]
    pub fn blank_bytes(&self, py: Python<'_>, size: usize) -> PyResult<Blank> {
        self.received.borrow_mut().take(py, size)
    }

    /// A bytes object of what was received into it.
    #[inline(always)]
    pub fn hand_out(&self, blank: Blank, length: usize) -> Object {
        self.received.borrow_mut().hand_out(blank, length)
    }

    /// Takes back a bytes object that nothing was received into.
    pub fn put_back(&self, blank: Blank) {
        self.received.borrow_mut().put_back(blank);
    }

    /// Lends the memory for datagrams to `f`.
    pub fn with_batch<R>(&self, f: impl FnOnce(&mut Batch) -> R) -> R {
        let mut batch = self.batch.take().unwrap_or_default();
        let result = f(&mut batch);
        self.batch.set(Some(batch));
        result
    }

    /// Lends the receive buffer to `f`.
    pub fn with_buffer<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = self.buffer.take().unwrap_or_else(|| vec![0; RECEIVE_BUFFER].into_boxed_slice());
        let result = f(&mut buffer);
        self.buffer.set(Some(buffer));
        result
    }

    // --- The end ---

    /// Sends what can be sent and drops everything: handles, timers, watchers, the poller.
    pub fn close(&self, py: Python<'_>) -> PyResult<()> {
        let flushed = self.flush(py);
        let registry = self.registry.borrow_mut().take();
        let ready = self.ready.take();
        let timers = self.schedule.timers.borrow_mut().drain();
        let sent = self.inbox.collect();
        for timer in &timers {
            timer.set_fired();
        }
        // Dropping runs Python code: nothing is borrowed any more.
        drop((ready, timers, sent));
        if let Some(mut registry) = registry {
            drop(registry.drain());
        }
        drop(self.received.take());
        flushed
    }

    pub fn clear(&self) {
        let registry = self.registry.try_borrow_mut().ok().and_then(|mut registry| registry.take());
        let ready = self.ready.try_borrow_mut().map(|mut ready| std::mem::take(&mut *ready));
        let timers = self.schedule.timers.try_borrow_mut().map(|mut timers| timers.drain());
        let unsent = self.unsent.try_borrow_mut().map(|mut unsent| std::mem::take(&mut *unsent));
        drop((ready, timers, unsent, self.inbox.collect()));
        if let Some(mut registry) = registry {
            drop(registry.drain());
        }
    }

    pub fn traverse(&self, visitor: &mut Visitor) {
        if let Ok(ready) = self.ready.try_borrow() {
            ready.iter().for_each(|entry| entry.traverse(visitor));
        }
        if let Ok(timers) = self.schedule.timers.try_borrow() {
            for timer in timers.iter() {
                visitor.object(timer.as_object());
            }
        }
        if let Ok(unsent) = self.unsent.try_borrow() {
            for (object, _) in unsent.iter() {
                visitor.object(object);
            }
        }
        if let Ok(registry) = self.registry.try_borrow()
            && let Some(registry) = &*registry
        {
            registry.watches().for_each(|watch| watch.traverse(visitor));
        }
    }
}
