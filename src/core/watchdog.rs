//! The watchdog: one thread that watches all watched loops for callbacks that run long.
//!
//! It sleeps for a part of the shortest threshold, and then reads each loop's [`RunMonitor`] without the GIL. A callback that has run
//! for too long makes it wait for the GIL, to report what the callback is doing. A C function that holds the GIL releases it
//! when it returns, while its caller's frame is still on the same line.
//!
//! Invariant: no Python code runs while [`WATCHDOG`] is locked. Called by the Loop's methods and around forks.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::cpython::interpreter::Interpreter;
use crate::cpython::module::import;
use crate::cpython::object::{Object, boolean};
use crate::intern;
use crate::reactor::clock::{self, Tick};
use crate::reactor::run_monitor::{CallbackRun, RunMonitor};

/// How often monitors are read within a threshold.
const CHECKS: f64 = 4.0;
/// The longest time between two checks, in seconds.
const LONGEST_PAUSE: f64 = 0.25;
/// If a check is this many seconds late, the process was stopped, and callbacks are timed anew.
const STOPPED: f64 = 0.5;
/// A callback that still runs after this many thresholds is reported again.
const AGAIN: f64 = 10.0;

struct Watched {
    run_monitor: Weak<RunMonitor>,
    /// The loop's number in `hotloop._observing.watching`.
    id: usize,
    seen: Option<Seen>,
}

/// A callback that was running at the last check.
#[derive(Clone, Copy)]
struct Seen {
    run: CallbackRun,
    /// When it was first seen, in ticks.
    at: u64,
    /// The processor time of its thread by then.
    processor: Option<f64>,
    /// When it began, or when the process went on after it was stopped.
    since: u64,
    reports: u32,
}

#[derive(Default)]
struct Watchdog {
    watched: Vec<Watched>,
    thread: Option<JoinHandle<()>>,
    stopping: bool,
    /// The process of the thread, which a forked child does not have.
    process: u32,
}

static WATCHDOG: Mutex<Option<Watchdog>> = Mutex::new(None);

/// Locks the state. Not to be called with the GIL: see [`lock`].
fn watchdog() -> MutexGuard<'static, Option<Watchdog>> {
    WATCHDOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks the state in a thread that has the GIL. It is released during a wait: a thread that forks has the lock, and can need the
/// GIL before it unlocks.
fn lock(py: Python<'_>) -> MutexGuard<'static, Option<Watchdog>> {
    loop {
        match WATCHDOG.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => py.detach(|| drop(watchdog())),
        }
    }
}

/// The forks of a thread: a function that Python calls around a fork can fork, too.
struct Forking {
    forks: u32,
    /// Locked over the fork. Otherwise the watchdog could have the lock then, and it would stay locked in the child.
    guard: Option<MutexGuard<'static, Option<Watchdog>>>,
}

thread_local! {
    static FORKING: RefCell<Forking> = const { RefCell::new(Forking { forks: 0, guard: None }) };
}

/// The calling thread is about to fork.
pub fn begin_fork(py: Python<'_>) {
    // Waiting can run Python code: nothing is borrowed meanwhile.
    let guard = if FORKING.with_borrow(|forking| forking.guard.is_none()) { Some(lock(py)) } else { None };
    FORKING.with_borrow_mut(|forking| {
        forking.forks += 1;
        forking.guard = forking.guard.take().or(guard);
    });
}

/// The calling thread has forked, or is the child's.
pub fn end_fork(_py: Python<'_>) {
    FORKING.with_borrow_mut(|forking| {
        forking.forks = forking.forks.saturating_sub(1);
        if forking.forks == 0 {
            forking.guard = None;
        }
    });
}

/// Calls `f` with the locked state. A thread that forks has locked it already. `f` must not run Python code.
fn with_watchdog<R>(py: Python<'_>, f: impl FnOnce(&mut Option<Watchdog>) -> R) -> R {
    if FORKING.with_borrow(|forking| forking.guard.is_none()) {
        return f(&mut lock(py));
    }
    FORKING.with_borrow_mut(|forking| match &mut forking.guard {
        Some(guard) => f(guard),
        None => unreachable!("it was there"),
    })
}

/// The state, which a forked child begins anew: the parent's loops are not running in it.
fn of_this_process(watchdog: &mut Option<Watchdog>) -> &mut Watchdog {
    let process = std::process::id();
    let state = watchdog.get_or_insert_default();
    if state.process != process {
        std::mem::forget(std::mem::take(state));
        state.process = process;
    }
    state
}

/// Watches a loop from now on.
pub fn watch(py: Python<'_>, run_monitor: &Arc<RunMonitor>, id: usize) {
    with_watchdog(py, |watchdog| {
        let state = of_this_process(watchdog);
        state.watched.retain(|watched| watched.id != id && watched.run_monitor.strong_count() > 0);
        state.watched.push(Watched { run_monitor: Arc::downgrade(run_monitor), id, seen: None });
        match &state.thread {
            // The interpreter is ending, and another thread goes on meanwhile.
            _ if state.stopping => {}
            Some(thread) => thread.thread().unpark(),
            None => {
                let interpreter = Interpreter::of(py);
                let thread = std::thread::Builder::new().name("hotloop-watchdog".to_owned());
                let spawned = thread.spawn(move || run(interpreter));
                // Without a thread the loop is not watched, and the program goes on.
                state.thread = spawned.ok();
            }
        }
    });
}

/// Watches a loop no more.
pub fn unwatch(py: Python<'_>, id: usize) {
    with_watchdog(py, |watchdog| {
        if let Some(state) = watchdog {
            state.watched.retain(|watched| watched.id != id);
        }
    });
}

/// Ends the thread for good. The interpreter must not end before it.
pub fn stop(py: Python<'_>) {
    let thread = with_watchdog(py, |watchdog| {
        let state = of_this_process(watchdog);
        state.stopping = true;
        state.thread.take()
    });
    if let Some(thread) = thread {
        thread.thread().unpark();
        // It may be waiting for the GIL.
        py.detach(|| thread.join()).ok();
    }
}

fn run(interpreter: Interpreter) {
    let tick = Tick::default();
    loop {
        let Some(pause) = pause() else { return };
        let start = Instant::now();
        std::thread::park_timeout(Duration::from_secs_f64(pause));
        let was_stopped = start.elapsed().as_secs_f64() > pause + STOPPED;
        tick.learn(clock::Instant::now());
        for (run_monitor, id, seen) in check(&tick, was_stopped) {
            report(interpreter, &run_monitor, id, seen, &tick);
        }
    }
}

/// Seconds until the next check. None if the thread is to end.
fn pause() -> Option<f64> {
    let mut guard = watchdog();
    let state = guard.as_mut()?;
    state.watched.retain(|watched| watched.run_monitor.strong_count() > 0);
    if state.stopping || state.watched.is_empty() {
        // watch() starts another.
        state.thread = None;
        return None;
    }
    let thresholds =
        state.watched.iter().filter_map(|watched| Some(watched.run_monitor.upgrade()?.threshold()));
    Some((thresholds.fold(f64::INFINITY, f64::min) / CHECKS).min(LONGEST_PAUSE))
}

/// Reads all monitors, and returns the callbacks to report.
fn check(tick: &Tick, was_stopped: bool) -> Vec<(Arc<RunMonitor>, usize, Seen)> {
    let mut found = Vec::new();
    let mut guard = watchdog();
    let Some(state) = guard.as_mut() else { return found };
    let now = clock::ticks();
    for watched in &mut state.watched {
        let Some(run_monitor) = watched.run_monitor.upgrade() else { continue };
        let Some(run) = run_monitor.under_way() else {
            watched.seen = None;
            continue;
        };
        let seen = match &mut watched.seen {
            Some(seen) if seen.run == run && !was_stopped => seen,
            place => {
                let since = if was_stopped { now } else { run.began };
                let processor = run_monitor.processor_time();
                *place = Some(Seen { run, at: now, processor, since, reports: 0 });
                continue;
            }
        };
        let ran = tick.seconds(now.wrapping_sub(seen.since));
        let due = run_monitor.threshold() * if seen.reports == 0 { 1.0 } else { AGAIN };
        if ran >= due && seen.reports < 2 {
            seen.reports += 1;
            run_monitor.notice(run);
            found.push((run_monitor, watched.id, *seen));
        }
    }
    found
}

/// Has `hotloop._observing.watching` look at what the callback is doing.
fn report(interpreter: Interpreter, run_monitor: &RunMonitor, id: usize, seen: Seen, tick: &Tick) {
    let report = |py: Python<'_>| {
        // The callback may have ended during the wait for the GIL.
        if run_monitor.under_way() != Some(seen.run) {
            return;
        }
        let now = clock::ticks();
        let ran = tick.seconds(now.wrapping_sub(seen.run.began));
        let observed = tick.seconds(now.wrapping_sub(seen.at));
        let observe = || -> PyResult<Object> {
            let processor = match seen.processor {
                Some(seconds) => Object::from_float(py, seconds)?,
                None => Object::none(py),
            };
            let arguments = [
                &Object::from_size(py, id)?,
                &Object::from_size(py, seen.run.number as usize)?,
                &Object::from_float(py, ran)?,
                &Object::from_float(py, observed)?,
                &processor,
                &boolean(py, seen.reports == 2),
            ];
            let module = Object::from(import(py, "hotloop._observing.watching")?);
            module.call_method(py, intern!(py, "observe"), &arguments)
        };
        if let Err(error) = observe() {
            error.write_unraisable(py, None);
        }
    };
    // Without memory to attach, the callback is reported when it is over.
    // SAFETY: the thread is joined before the interpreter ends (see `stop`).
    unsafe { interpreter.try_attach(report) };
}
