//! Polling: what became ready, which timers are due, and how long to wait for either.
//!
//! Called by [`Core::iterate`]. The GIL is released while a poll waits, and now and then in one that does not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;

use super::recorder::{WAITED, WOKEN};
use super::{Core, ReadyEntry, report_error};
use crate::cpython::errors::os_error;
use crate::cpython::object::{Object, has_other_threads, tuple};
use crate::intern;
use crate::reactor::clock::{self, Instant};
use crate::reactor::handover::HANDOVER;
use crate::reactor::kernel::Wait;
use crate::reactor::poller;
use crate::reactor::spin::spin_for_wakeup;

/// How long to sleep where the next wait would fail, or end, at once.
const PAUSE: Duration = Duration::from_millis(1);

/// A timer is due when it has this many seconds left, as in asyncio.
const CLOCK_RESOLUTION: f64 = 1e-9;

/// A wait has at most this many seconds, as in asyncio: select() and epoll_wait() have limits.
const LONGEST_WAIT: f64 = 24.0 * 3600.0;

#[cold]
fn overridden_time(py: Python<'_>, event_loop: &Object) -> PyResult<f64> {
    event_loop.call_method(py, intern!(py, "time"), &[])?.bind(py).extract()
}

impl Core {
    /// If this iteration can go without a poll and without the clock, returns the time in ticks.
    pub(super) fn try_skip_poll(&self) -> Option<u64> {
        if self.overridden_clock.get() {
            return None;
        }
        let deadline = self.schedule.timers.borrow().next_deadline();
        self.poll_policy.try_skip_poll(deadline)
    }

    /// Polls, and queues what is ready and the timers that are due. Returns the time.
    #[inline(never)]
    pub(super) fn poll_and_collect_due(
        &self,
        py: Python<'_>,
        event_loop: &Object,
        callbacks_wait: bool,
    ) -> PyResult<Instant> {
        let mut now = Instant::now();
        if !callbacks_wait {
            self.metrics.iteration_ended(now.ticks, &self.poll_policy.tick);
            let timeout = self.time_left(py, event_loop, now.seconds)?;
            let timeout = self.tls_buffers.due.limit(now.seconds, timeout);
            let timeout = self.acceptors.due.limit(now.seconds, timeout);
            let timeout = self.until_gates(now.seconds, timeout);
            self.poll(py, event_loop, now, timeout, callbacks_wait)?;
            now = self.poll_policy.instant();
        } else if self.poll_policy.poll_is_due(now.seconds) {
            let queue_end = self.ready.borrow().end();
            self.poll(py, event_loop, now, Some(Duration::ZERO), callbacks_wait)?;
            if self.ready.borrow().end() > queue_end {
                self.metrics.delays.clock_read(now.ticks, queue_end);
            }
        }
        self.release_tls_buffers(now.seconds);
        self.renew_acceptors(now.seconds);
        self.queue_due_timers(self.loop_time(py, event_loop, now.seconds)?, now.ticks);
        self.move_gates(now.seconds);
        Ok(now)
    }

    /// `now`, or the time by the loop's time() if that is overridden.
    #[inline(always)]
    fn loop_time(&self, py: Python<'_>, event_loop: &Object, now: f64) -> PyResult<f64> {
        if self.overridden_clock.get() { overridden_time(py, event_loop) } else { Ok(now) }
    }

    /// How long to wait for the next timer, if there is one.
    fn time_left(&self, py: Python<'_>, event_loop: &Object, now: f64) -> PyResult<Option<Duration>> {
        let Some(deadline) = self.schedule.timers.borrow().next_deadline() else { return Ok(None) };
        let left = deadline - self.loop_time(py, event_loop, now)?;
        // An overridden clock can say anything, NaN included.
        Ok(Some(Duration::from_secs_f64(if left > 0.0 { left.min(LONGEST_WAIT) } else { 0.0 })))
    }

    /// Polls and queues what became ready; runs the handlers of signals that arrived.
    #[inline(never)]
    fn poll(
        &self,
        py: Python<'_>,
        event_loop: &Object,
        now: Instant,
        timeout: Option<Duration>,
        callbacks_wait: bool,
    ) -> PyResult<()> {
        let recorded =
            self.recorder.is_on().then(|| (self.ready.borrow().end(), self.metrics.counts.wakeups.get()));
        self.poll_policy.start_poll(now);
        let by_program = self.has_overridden_wait() && self.wait_by_program(py, timeout)?;
        let mut events = self.events.take().unwrap_or_default();
        let (result, waited) = match timeout {
            Some(Duration::ZERO) => (self.poll_nonblocking(py, now.seconds, &mut events), false),
            _ if by_program => {
                let result = self.poll_nonblocking(py, now.seconds, &mut events);
                self.poll_policy.end_wait();
                self.metrics.count_wait(self.poll_policy.polled() - now.seconds, false);
                (result, true)
            }
            _ => (self.wait(py, now.seconds, &mut events, timeout), true),
        };
        let ended = if recorded.is_some() { clock::ticks() } else { 0 };
        if waited && self.recorder.accounts.is_on() {
            self.recorder.accounts.waited(self.poll_policy.polled() - now.seconds);
        }
        if !callbacks_wait {
            self.metrics.delays.wait_ended(self.poll_policy.instant().ticks);
        }
        // Callbacks of signal handlers and other threads come before what became ready.
        let handled = if events.interrupted || waited { py.check_signals() } else { Ok(()) };
        self.take_injected();
        // If a signal handler raised, the next poll returns the events again.
        let in_vain = handled.is_ok() && result.is_ok() && self.dispatch_events(py, &mut events);
        self.sending.note_events(events.len());
        if let Some((queue_end, wakeups)) = recorded {
            let woken = self.metrics.counts.wakeups.get() > wakeups;
            let flags = if waited { WAITED } else { 0 } | if woken { WOKEN } else { 0 };
            let queue = [queue_end, self.ready.borrow().end()];
            self.recorder.note_poll(now.ticks, ended, queue, flags, events.len());
            self.note_counts(now);
        }
        self.events.set(Some(events));
        handled?;
        if in_vain {
            py.detach(|| std::thread::sleep(PAUSE));
        }
        if let Err(error) = result {
            return self.recover(py, event_loop, error);
        }
        self.wait_failed.set(false);
        Ok(())
    }

    /// Polls without waiting. Other threads that want to run get the GIL now and then.
    fn poll_nonblocking(&self, py: Python<'_>, now: f64, events: &mut poller::Events) -> io::Result<()> {
        let releases = self.handover.is_due(now) && has_other_threads(py) && self.others_want_to_run(now);
        let poller = match &mut *self.registry.borrow_mut() {
            None => None,
            Some(registry) => {
                registry.refresh_poller()?;
                if releases {
                    Some(Arc::clone(registry.poller()))
                } else {
                    registry.poller().wait(events, Some(Duration::ZERO))?;
                    None
                }
            }
        };
        if let Some(poller) = poller {
            py.detach(|| {
                // A thread that wakes up and finds the GIL taken again begins a new wait, and never requests it.
                let end = clock::now() + HANDOVER;
                while cfg!(not(Py_GIL_DISABLED)) && clock::now() < end {
                    std::thread::yield_now();
                }
                poller.wait(events, Some(Duration::ZERO))
            })?;
            if cfg!(not(Py_GIL_DISABLED)) {
                self.handover.end(clock::now(), clock::processor_time_of_others());
            }
        }
        self.poll_policy.end_poll(events.is_empty());
        Ok(())
    }

    /// Whether other threads may wait for the GIL. Without it, the collector of another thread may wait for this one to detach.
    fn others_want_to_run(&self, now: f64) -> bool {
        if cfg!(Py_GIL_DISABLED) {
            self.handover.waited(now);
            return true;
        }
        self.handover.begin(now, clock::processor_time_of_others())
    }

    /// False if another thread has queued a callback since it was decided to wait.
    fn begin_wait(&self, spinning: bool) -> bool {
        if !self.injected.begin_wait(spinning) {
            return false;
        }
        if !self.ready.borrow().is_empty() {
            self.injected.parker.unpark();
            return false;
        }
        true
    }

    /// Waits with the GIL released.
    fn wait(
        &self,
        py: Python<'_>,
        now: f64,
        events: &mut poller::Events,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let poller = match &mut *self.registry.borrow_mut() {
            Some(registry) => {
                registry.refresh_poller()?;
                Arc::clone(registry.poller())
            }
            None => {
                // A callback has closed the event loop.
                self.stopping.set(true);
                return Ok(());
            }
        };
        let spins = self.spin.should_spin(timeout);
        if !self.begin_wait(spins) {
            return self.poll_nonblocking(py, now, events);
        }
        let parker = &self.injected.parker;
        let mut spun = None;
        let result = py.detach(|| {
            let mut timeout = timeout;
            if spins {
                let spin = spin_for_wakeup(parker, &*poller, events)?;
                spun = Some(spin.seconds);
                if spin.is_over {
                    return Ok(());
                }
                let passed = Duration::from_secs_f64(spin.seconds.max(0.0));
                timeout = timeout.map(|timeout| timeout.saturating_sub(passed));
            }
            poller.wait(events, timeout)
        });
        let woken = parker.is_unparked();
        parker.unpark();
        self.poll_policy.end_wait();
        let polled = self.poll_policy.polled();
        self.handover.waited(polled);
        let seconds = polled - now;
        self.metrics.count_wait(seconds, woken);
        self.spin.record_wait(seconds, woken);
        if let Some(seconds) = spun {
            self.spin.record_spin(seconds);
        }
        result
    }

    /// Waits for the poller's descriptor by the program's select(). Returns false if this process cannot have a poller.
    #[cold]
    fn wait_by_program(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<bool> {
        let Some(wait) = self.overridden_wait.get() else { return Ok(false) };
        let fd = match &mut *self.registry.borrow_mut() {
            Some(registry) => match registry.refresh_poller() {
                Ok(()) => registry.poller().fd(),
                Err(_) => return Ok(false),
            },
            None => return Ok(false),
        };
        // While callbacks wait, it is for a moment, in which the other threads run.
        let begins = if timeout == Some(Duration::ZERO) {
            self.injected.begin_wait(false)
        } else {
            self.begin_wait(false)
        };
        if !begins {
            return Ok(true);
        }
        let wait = || {
            let timeout = match timeout {
                Some(timeout) => Object::from_float(py, timeout.as_secs_f64())?,
                None => Object::none(py),
            };
            let none = tuple(py, &[])?;
            let read = tuple(py, &[&Object::from_int(py, fd)?])?;
            wait.call(py, &[&read, &none, &none, &timeout]).map(drop)
        };
        let result = wait();
        self.injected.parker.unpark();
        result.map(|()| true)
    }

    /// Replaces the poller after a wait that failed, if need be. An error of that is reported once, and the next poll tries
    /// again.
    #[cold]
    fn recover(&self, py: Python<'_>, event_loop: &Object, error: io::Error) -> PyResult<()> {
        let recovered = match &mut *self.registry.borrow_mut() {
            Some(registry) => registry.recover(error),
            None => Ok(()),
        };
        let Err(error) = recovered else { return Ok(()) };
        if !self.wait_failed.replace(true) {
            report_error(py, event_loop, event_loop, os_error(py, error))?;
        }
        if self.ready_length() == 0 {
            py.detach(|| std::thread::sleep(PAUSE));
        }
        Ok(())
    }

    /// Queues the timers that are due at `now`, which is `ticks` by the system's clock and can be of an overridden one.
    fn queue_due_timers(&self, now: f64, ticks: u64) {
        let mut timers = self.schedule.timers.borrow_mut();
        let mut ready = self.ready.borrow_mut();
        let mut due = self.metrics.begin_timers(now, ticks, ready.end());
        if timers.is_empty() {
            return;
        }
        let tick = &self.poll_policy.tick;
        let headroom = self.headroom();
        // Without memory for more, the rest is due in the next iteration.
        while ready.reserve(1 + headroom)
            && let Some(timer) = timers.pop_due(now + CLOCK_RESOLUTION)
        {
            timer.set_fired();
            self.metrics.timer_due(&mut due, timer.when(), ready.end(), tick);
            if self.recorder.is_on() {
                self.recorder.note_timer(ticks, tick.ticks((now - timer.when()).max(0.0)), ready.end());
            }
            ready.push_back(ReadyEntry::Timer(timer));
        }
        self.metrics.end_timers(&due, &ready, tick);
    }
}
