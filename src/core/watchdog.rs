//! The watchdog: one thread that watches all watched loops for callbacks and iterations that run long.
//!
//! It sleeps for a part of the shortest threshold, and then reads each loop's [`RunMonitor`] without the GIL. While it finds the
//! same run again it looks more often at what the loop's thread does, for [`super::late`]. A callback or an iteration that has run
//! for too long makes it wait for the GIL, to report what the loop is doing. A C function that holds the GIL releases it
//! when it returns, while its caller's frame is still on the same line.
//!
//! Invariant: no Python code runs while [`WATCHDOG`] is locked. Called by the Loop's methods and around forks.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use super::gil;
use crate::cpython::frames::frames_of;
use crate::cpython::interpreter::Interpreter;
use crate::cpython::module::import;
use crate::cpython::object::{Object, boolean};
use crate::intern;
use crate::reactor::breakdown::Observation;
use crate::reactor::clock::{self, Tick};
use crate::reactor::run_monitor::{Run, RunMonitor};
use crate::reactor::thread_state;

/// How often monitors are read within a threshold.
const CHECKS: f64 = 4.0;
/// The longest time between two checks, in seconds.
const LONGEST_PAUSE: f64 = 0.25;
/// Seconds between two samples of what the thread of a run does that was seen twice,
const SAMPLE_INTERVAL: f64 = 5e-3;
/// or this part of the time since it was first seen, if that is longer.
const SAMPLE_PART: f64 = 0.02;
/// If a check is this many seconds late, the process was stopped, and callbacks are timed anew.
const STOPPED: f64 = 0.5;
/// A callback that still runs after this many thresholds is reported again.
const AGAIN: f64 = 10.0;

struct Watched {
    run_monitor: Weak<RunMonitor>,
    /// The loop's number in `hotloop._observing.watching`.
    id: usize,
    callback: Option<Seen>,
    iteration: Option<Seen>,
}

/// A run that was under way at the last check.
#[derive(Clone, Copy)]
struct Seen {
    run: Run,
    /// When it was first seen, in ticks.
    at: u64,
    /// When it began, or when the process went on after it was stopped.
    since: u64,
    /// Whether it was found again.
    again: bool,
    reports: u32,
}

impl Seen {
    /// Notes what is under way in `place`. Returns it if it was at the last check, too.
    fn update(place: &mut Option<Seen>, run: Option<Run>, now: u64, was_stopped: bool) -> Option<&mut Seen> {
        if was_stopped || place.map(|seen| seen.run) != run {
            let since = |run: Run| if was_stopped { now } else { run.began };
            *place = run.map(|run| Seen { run, at: now, since: since(run), again: false, reports: 0 });
            return None;
        }
        let seen = place.as_mut()?;
        seen.again = true;
        Some(seen)
    }
}

/// What is to be reported.
enum Report {
    /// A callback runs for long; the second time if it has run for [`AGAIN`] thresholds.
    Callback { run: Run, again: bool },
    /// An iteration does, without such a callback.
    Iteration { run: Run },
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
    let learns = with_watchdog(py, |watchdog| {
        let state = of_this_process(watchdog);
        state.watched.retain(|watched| watched.id != id && watched.run_monitor.strong_count() > 0);
        state.watched.push(Watched {
            run_monitor: Arc::downgrade(run_monitor),
            id,
            callback: None,
            iteration: None,
        });
        // The interpreter is ending, and another thread goes on meanwhile.
        if state.stopping {
            return false;
        }
        let learns = gil::want();
        match &state.thread {
            Some(thread) => thread.thread().unpark(),
            None => {
                let interpreter = Interpreter::of(py);
                let thread = std::thread::Builder::new().name("hotloop-watchdog".to_owned());
                let spawned = thread.spawn(move || run(interpreter));
                // Without a thread the loop is not watched, and the program goes on.
                state.thread = spawned.ok();
            }
        }
        learns && state.thread.is_some()
    });
    if learns {
        gil::learn(py);
    }
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
        // SAFETY: the thread is joined before the interpreter ends (see `stop`).
        unsafe { gil::wait_if_wanted(interpreter) };
        let Some(pause) = pause(&tick) else { return };
        let start = Instant::now();
        std::thread::park_timeout(Duration::from_secs_f64(pause));
        let was_stopped = start.elapsed().as_secs_f64() > pause + STOPPED;
        tick.learn(clock::Instant::now());
        for (run_monitor, id, found) in check(&tick, was_stopped) {
            report(interpreter, &run_monitor, id, &found, &tick);
        }
    }
}

/// Seconds until the next check. None if the thread is to end.
fn pause(tick: &Tick) -> Option<f64> {
    let mut guard = watchdog();
    let state = guard.as_mut()?;
    state.watched.retain(|watched| watched.run_monitor.strong_count() > 0);
    if state.stopping || state.watched.is_empty() {
        // watch() starts another.
        state.thread = None;
        return None;
    }
    let now = clock::ticks();
    let pauses = state.watched.iter().filter_map(|watched| {
        let pause = watched.run_monitor.upgrade()?.threshold() / CHECKS;
        let seen = watched.callback.or(watched.iteration).filter(|seen| seen.again);
        Some(seen.map_or(pause, |seen| {
            let observed = tick.seconds(now.wrapping_sub(seen.at));
            pause.min(SAMPLE_INTERVAL.max(observed * SAMPLE_PART))
        }))
    });
    Some(pauses.fold(LONGEST_PAUSE, f64::min))
}

/// Reads all monitors, and returns what is to be reported.
fn check(tick: &Tick, was_stopped: bool) -> Vec<(Arc<RunMonitor>, usize, Report)> {
    let mut found = Vec::new();
    let mut guard = watchdog();
    let Some(state) = guard.as_mut() else { return found };
    for watched in &mut state.watched {
        let Some(run_monitor) = watched.run_monitor.upgrade() else { continue };
        let now = clock::ticks();
        let (callback, iteration) = (run_monitor.callbacks.under_way(), run_monitor.iterations.under_way());
        let callback_seen = Seen::update(&mut watched.callback, callback, now, was_stopped);
        let iteration_seen = Seen::update(&mut watched.iteration, iteration, now, was_stopped);
        observe(&run_monitor, now, callback, iteration);
        let ran = |seen: &Seen| tick.seconds(now.wrapping_sub(seen.since));
        let threshold = run_monitor.threshold();
        if let Some(seen) = callback_seen {
            let due = threshold * if seen.reports == 0 { 1.0 } else { AGAIN };
            if ran(seen) >= due && seen.reports < 2 {
                seen.reports += 1;
                run_monitor.callbacks.notice(seen.run);
                let again = seen.reports == 2;
                found.push((Arc::clone(&run_monitor), watched.id, Report::Callback { run: seen.run, again }));
                // The iteration has been under way for at least as long.
                if let Some(run) = iteration {
                    run_monitor.iterations.notice(run);
                }
                if let Some(iteration) = &mut watched.iteration {
                    iteration.reports = 1;
                }
                continue;
            }
        }
        if let Some(seen) = iteration_seen
            && seen.reports == 0
            && ran(seen) >= threshold
        {
            seen.reports = 1;
            run_monitor.iterations.notice(seen.run);
            found.push((run_monitor, watched.id, Report::Iteration { run: seen.run }));
        }
    }
    found
}

/// Looks at what the thread does of the runs that are under way.
fn observe(run_monitor: &RunMonitor, now: u64, callback: Option<Run>, iteration: Option<Run>) {
    let thread = run_monitor.thread();
    let (mut times, mut sample) = (None, None);
    let mut observations = run_monitor.observations();
    let observations = &mut *observations;
    for (observation, run) in
        [(&mut observations.callback, callback), (&mut observations.iteration, iteration)]
    {
        // What has ended is the loop's thread's to take.
        let Some(run) = run else { continue };
        let observation = match observation {
            Some(observation) if observation.run == run && observation.thread == thread => observation,
            place => {
                let times = *times.get_or_insert_with(|| thread_state::times(thread));
                place.insert(Observation::new(run, thread, now, times))
            }
        };
        observation.add(now, *sample.get_or_insert_with(|| gil::sample(thread)));
    }
}

/// Has `hotloop._observing.watching` look at what the loop is doing.
fn report(interpreter: Interpreter, run_monitor: &RunMonitor, id: usize, found: &Report, tick: &Tick) {
    let report = |py: Python<'_>| {
        let (run, runs) = match *found {
            Report::Callback { run, .. } => (run, &run_monitor.callbacks),
            Report::Iteration { run } => (run, &run_monitor.iterations),
        };
        let is_under_way = || runs.under_way() == Some(run);
        // It may have ended during the wait for the GIL.
        if !is_under_way() {
            return;
        }
        let observe = || -> PyResult<Object> {
            let frames = if cfg!(Py_GIL_DISABLED) {
                // SAFETY: the thread is in a run, which ends before the thread does.
                unsafe { frames_of(py, run_monitor.interpreter_state(), is_under_way)? }
            } else {
                None
            };
            let frames = frames.unwrap_or_else(|| Object::none(py));
            let id = Object::from_size(py, id)?;
            let number = Object::from_size(py, run.number as usize)?;
            let module = Object::from(import(py, "hotloop._observing.watching")?);
            match *found {
                Report::Callback { run, again } => {
                    let ran = tick.seconds(clock::ticks().wrapping_sub(run.began));
                    let ran = Object::from_float(py, ran)?;
                    let arguments = [&id, &number, &ran, &boolean(py, again), &frames];
                    module.call_method(py, intern!(py, "observe"), &arguments)
                }
                Report::Iteration { .. } => {
                    module.call_method(py, intern!(py, "observe_iteration"), &[&id, &number, &frames])
                }
            }
        };
        if let Err(error) = observe() {
            error.write_unraisable(py, None);
        }
    };
    // Without memory to attach, the callback is reported when it is over.
    // SAFETY: the thread is joined before the interpreter ends (see `stop`).
    unsafe { interpreter.try_attach(report) };
}
