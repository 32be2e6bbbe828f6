//! Looking at the clock and the descriptors, and waiting for them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;

use super::{Core, ReadyEntry, report_error};
use crate::cpython::errors::os_error;
use crate::cpython::object::{Object, has_other_threads, tuple};
use crate::intern;
use crate::reactor::clock::{self, Instant};
use crate::reactor::kernel::Wait;
use crate::reactor::poller;
use crate::reactor::spin::spin_for_wakeup;

/// Seconds after which a poll that does not wait gives other threads a chance to run. One that wants the GIL waits for as
/// long as the loop is busy otherwise, or for the interpreter's switch interval.
const RELEASE_INTERVAL: f64 = 200e-6;

/// For so many seconds then, since a thread needs that long to wake up.
const HANDOVER: f64 = 50e-6;
/// Seconds of a processor that tell of other threads that run, and not of one that took a message.
const OTHERS_RUN: f64 = 2e-6;

/// In place of a wait, while there is nothing to wait on, or a wait ends at once and there is no way to mend that.
const PAUSE: Duration = Duration::from_millis(1);

/// A timer is due when this much is left, in seconds: the step of the clock, as in asyncio.
const CLOCK_RESOLUTION: f64 = 1e-9;

/// A wait is at most this long, as asyncio's: select() and its kin have limits.
const LONGEST_WAIT: f64 = 24.0 * 3600.0;

/// The time as the event loop's own time() tells it.
#[cold]
fn overridden_time(py: Python<'_>, event_loop: &Object) -> PyResult<f64> {
    event_loop.call_method(py, intern!(py, "time"), &[])?.bind(py).extract()
}

impl Core {
    /// The time in ticks, if this iteration needs neither the clock nor the descriptors.
    pub(super) fn try_skip_poll(&self) -> Option<u64> {
        if self.has_overridden_clock() {
            return None;
        }
        let deadline = self.schedule.timers.borrow().next_deadline();
        self.poll_policy.try_skip_poll(deadline)
    }

    /// Takes in what is ready, and what is due. Returns the time.
    #[inline(never)]
    pub(super) fn poll_and_collect_due(
        &self,
        py: Python<'_>,
        event_loop: &Object,
        callbacks_wait: bool,
    ) -> PyResult<Instant> {
        let mut now = Instant::now();
        if !callbacks_wait {
            self.metrics.end_iteration(now.ticks, &self.poll_policy.tick);
            let timeout = self.time_left(py, event_loop, now.seconds)?;
            self.poll(py, event_loop, now, timeout)?;
            now = self.poll_policy.instant();
            self.metrics.set_first_moment(now.ticks);
        } else if self.poll_policy.poll_is_due(now.seconds) {
            let queued = self.ready_length();
            self.poll(py, event_loop, now, Some(Duration::ZERO))?;
            if self.ready_length() > queued {
                self.metrics.set_moment(now.ticks, queued);
            }
        }
        let due = if self.has_overridden_clock() { overridden_time(py, event_loop)? } else { now.seconds };
        self.queue_due_timers(due, now.ticks);
        Ok(now)
    }

    /// How long to wait for the next timer; None if there is none.
    fn time_left(&self, py: Python<'_>, event_loop: &Object, now: f64) -> PyResult<Option<Duration>> {
        let Some(deadline) = self.schedule.timers.borrow().next_deadline() else { return Ok(None) };
        let now = if self.has_overridden_clock() { overridden_time(py, event_loop)? } else { now };
        let left = deadline - now;
        // A foreign clock can say anything, NaN included.
        Ok(Some(Duration::from_secs_f64(if left > 0.0 { left.min(LONGEST_WAIT) } else { 0.0 })))
    }

    /// Waits for descriptors and queues what became ready. Signals that arrive are handled.
    #[inline(never)]
    fn poll(
        &self,
        py: Python<'_>,
        event_loop: &Object,
        now: Instant,
        timeout: Option<Duration>,
    ) -> PyResult<()> {
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
        // What signal handlers and other threads have scheduled meanwhile comes before what became ready.
        let handled = if events.interrupted || waited { py.check_signals() } else { Ok(()) };
        if self.injected.has_entries() {
            if waited {
                self.metrics.set_first_moment(self.poll_policy.instant().ticks);
            }
            self.take_injected();
        }
        // If a handler raised, the kernel tells of the descriptors again.
        let in_vain = handled.is_ok() && result.is_ok() && self.dispatch_events(py, &events);
        self.events.set(Some(events));
        handled?;
        if in_vain {
            py.detach(|| std::thread::sleep(PAUSE));
        }
        match result {
            Ok(()) => {
                self.wait_failed.set(false);
                Ok(())
            }
            Err(error) => self.recover(py, event_loop, error),
        }
    }

    /// Looks at the descriptors without waiting. Other threads that want to run get the GIL now and then.
    fn poll_nonblocking(&self, py: Python<'_>, now: f64, events: &mut poller::Events) -> io::Result<()> {
        let release =
            now - self.released.get() >= RELEASE_INTERVAL && has_other_threads(py) && self.others_run(now);
        let poller = match &mut *self.registry.borrow_mut() {
            None => None,
            Some(registry) => {
                registry.refresh_poller()?;
                if release {
                    Some(Arc::clone(registry.poller()))
                } else {
                    registry.poller().wait(events, Some(Duration::ZERO))?;
                    None
                }
            }
        };
        if let Some(poller) = poller {
            py.detach(|| {
                // Whoever waits for the GIL has to wake up first. One that finds it taken again would begin to wait anew, and
                // never ask for it.
                let end = clock::now() + HANDOVER;
                while clock::now() < end {
                    std::thread::yield_now();
                }
                poller.wait(events, Some(Duration::ZERO))
            })?;
        }
        self.poll_policy.end_poll(events.is_empty());
        Ok(())
    }

    /// Whether other threads have used a processor since the last time that this was asked: those that wait for the GIL do,
    /// each time that the interpreter's switch interval is over, and those that wait for work don't.
    fn others_run(&self, now: f64) -> bool {
        self.released.set(now);
        let others = clock::processor_time_of_others();
        others - self.others_ran.replace(others) > OTHERS_RUN
    }

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
                // A callback has closed the event loop: nothing will ever be ready.
                self.set_stopping(true);
                return Ok(());
            }
        };
        let spins = self.spin.should_spin(timeout);
        if !self.injected.begin_wait(spins) {
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
                let passed = Duration::from_secs_f64(spin.seconds);
                timeout = timeout.map(|timeout| timeout.saturating_sub(passed));
            }
            poller.wait(events, timeout)
        });
        let woken = parker.is_unparked();
        parker.unpark();
        self.poll_policy.end_wait();
        let polled = self.poll_policy.polled();
        self.released.set(polled);
        let seconds = polled - now;
        self.metrics.count_wait(seconds, woken);
        self.spin.record_wait(seconds, woken);
        if let Some(seconds) = spun {
            self.spin.record_spin(seconds);
        }
        result
    }

    /// Waits as the program has it, which may run anything, until the poller has something to tell. False if there is no
    /// poller of this process to wait by.
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
        if !self.injected.begin_wait(false) {
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

    /// Goes on after a wait that failed, with another poller if the present one is of no use. If there can be none, which is
    /// reported once, the next poll tries again.
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
            // The next wait would fail at once, too.
            py.detach(|| std::thread::sleep(PAUSE));
        }
        Ok(())
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
        // Without memory for more, the rest is due in the next iteration.
        while ready.try_reserve(1).is_ok()
            && let Some(timer) = timers.pop_due(now + CLOCK_RESOLUTION)
        {
            timer.set_fired();
            late.add(timer.when(), |batch| self.metrics.add_timers(batch, &self.poll_policy.tick));
            ready.push_back(ReadyEntry::Timer(timer));
        }
        self.metrics.add_last_timers(late, others, &self.poll_policy.tick);
    }
}
