//! The thread that watches all loops that are to be watched, for callbacks that run long.
//!
//! It sleeps for a part of the shortest threshold, and looks at each loop's [`RunMonitor`] without the GIL. Only a callback that
//! has run for too long makes it take the GIL, which it may have to wait for: a C function that holds the GIL gives it away
//! when it returns, with the frame that called it still on the same line.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::cpython::interpreter::Interpreter;
use crate::cpython::module::import;
use crate::cpython::object::Object;
use crate::handle::boolean;
use crate::intern;
use crate::reactor::clock::{self, Tick};
use crate::reactor::run_monitor::{CallbackRun, RunMonitor};

/// Looks within a threshold.
const LOOKS: f64 = 4.0;
/// Between two looks are at most so many seconds, however long the threshold.
const LONGEST_PAUSE: f64 = 0.25;
/// A look that comes so many seconds too late means that the process was stopped: nothing can be said of that time.
const STOPPED: f64 = 0.5;
/// After so many thresholds a callback that still runs is looked at again.
const AGAIN: f64 = 10.0;

/// A loop that is watched.
struct Watched {
    run_monitor: Weak<RunMonitor>,
    /// Which one it is, for `hotloop._observing.watching`.
    id: usize,
    seen: Option<Seen>,
}

/// A callback that was running at the last look.
#[derive(Clone, Copy)]
struct Seen {
    turn: CallbackRun,
    /// When it was first seen, in ticks, and the processor time of its thread by then.
    at: u64,
    processor: Option<f64>,
    /// Since when it counts: not while the process was stopped.
    since: u64,
    /// How many times it was told of.
    told: u32,
}

#[derive(Default)]
struct Watchdog {
    watched: Vec<Watched>,
    thread: Option<JoinHandle<()>>,
    stopping: bool,
    /// The process that the thread is in: a forked child has none.
    process: u32,
}

static WATCHDOG: Mutex<Option<Watchdog>> = Mutex::new(None);

/// For the thread that watches, which never has the GIL when it takes the lock.
fn watchdog() -> MutexGuard<'static, Option<Watchdog>> {
    WATCHDOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For threads that have the GIL: whoever has the lock may be forking, and want the GIL before the lock is free.
fn lock(py: Python<'_>) -> MutexGuard<'static, Option<Watchdog>> {
    loop {
        match WATCHDOG.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => py.detach(|| drop(watchdog())),
        }
    }
}

/// A thread that forks, perhaps in a function that Python calls before or after another fork.
struct Forking {
    forks: u32,
    /// Held all the time: a child whose parent's watchdog was in it would find it locked for ever.
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

/// It has, and this is the parent or the child.
pub fn end_fork(_py: Python<'_>) {
    FORKING.with_borrow_mut(|forking| {
        forking.forks = forking.forks.saturating_sub(1);
        if forking.forks == 0 {
            forking.guard = None;
        }
    });
}

/// Lends `f` the state, which the calling thread has locked already if it forks. No Python code may run in it.
fn with_watchdog<R>(py: Python<'_>, f: impl FnOnce(&mut Option<Watchdog>) -> R) -> R {
    if FORKING.with_borrow(|forking| forking.guard.is_none()) {
        return f(&mut lock(py));
    }
    FORKING.with_borrow_mut(|forking| match &mut forking.guard {
        Some(guard) => f(guard),
        None => unreachable!("it was there"),
    })
}

/// Watches a loop from now on.
pub fn watch(py: Python<'_>, run_monitor: &Arc<RunMonitor>, id: usize) {
    with_watchdog(py, |watchdog| {
        let process = std::process::id();
        let state = watchdog.get_or_insert_default();
        if state.process != process {
            // What the parent watched is not running here.
            std::mem::forget(std::mem::take(state));
            state.process = process;
        }
        state.watched.retain(|watched| watched.id != id && watched.run_monitor.strong_count() > 0);
        state.watched.push(Watched { run_monitor: Arc::downgrade(run_monitor), id, seen: None });
        state.stopping = false;
        match &state.thread {
            Some(thread) => thread.thread().unpark(),
            None => {
                let interpreter = Interpreter::of(py);
                let thread = std::thread::Builder::new().name("hotloop-watchdog".to_owned());
                let spawned = thread.spawn(move || run(interpreter));
                // Without a thread nobody watches, which is no reason to stop the program.
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

/// Ends the thread. The interpreter must not end before it.
pub fn stop(py: Python<'_>) {
    let thread = with_watchdog(py, |watchdog| {
        let state = watchdog.as_mut()?;
        state.stopping = true;
        if state.process != std::process::id() {
            return None;
        }
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
        for (run_monitor, id, seen, again) in look(&tick, was_stopped) {
            tell(interpreter, &run_monitor, id, seen, again, &tick);
        }
    }
}

/// How long to wait for the next look, in seconds; None if the thread is to end.
fn pause() -> Option<f64> {
    let mut guard = watchdog();
    let state = guard.as_mut()?;
    state.watched.retain(|watched| watched.run_monitor.strong_count() > 0);
    if state.stopping || state.watched.is_empty() {
        // The next loop that is to be watched starts another.
        state.thread = None;
        return None;
    }
    let thresholds =
        state.watched.iter().filter_map(|watched| Some(watched.run_monitor.upgrade()?.threshold()));
    Some((thresholds.fold(f64::INFINITY, f64::min) / LOOKS).min(LONGEST_PAUSE))
}

/// Looks at all loops, and returns what is to be told: of which callbacks, and whether again.
fn look(tick: &Tick, was_stopped: bool) -> Vec<(Arc<RunMonitor>, usize, Seen, bool)> {
    let mut found = Vec::new();
    let mut guard = watchdog();
    let Some(state) = guard.as_mut() else { return found };
    let now = clock::ticks();
    for watched in &mut state.watched {
        let Some(run_monitor) = watched.run_monitor.upgrade() else { continue };
        let Some(turn) = run_monitor.under_way() else {
            watched.seen = None;
            continue;
        };
        let seen = match &mut watched.seen {
            Some(seen) if seen.turn == turn && !was_stopped => seen,
            place => {
                let since = if was_stopped { now } else { turn.began };
                *place =
                    Some(Seen { turn, at: now, processor: run_monitor.processor_time(), since, told: 0 });
                continue;
            }
        };
        let ran = tick.seconds(now.wrapping_sub(seen.since));
        let due = run_monitor.threshold() * if seen.told == 0 { 1.0 } else { AGAIN };
        if ran >= due && seen.told < 2 {
            seen.told += 1;
            run_monitor.notice(turn);
            found.push((run_monitor, watched.id, *seen, seen.told == 2));
        }
    }
    found
}

/// Has Python look at what the callback is doing.
fn tell(interpreter: Interpreter, run_monitor: &RunMonitor, id: usize, seen: Seen, again: bool, tick: &Tick) {
    let tell = |py: Python<'_>| {
        // Waiting for the GIL can have taken long enough for the callback to end.
        if run_monitor.under_way() != Some(seen.turn) {
            return;
        }
        let now = clock::ticks();
        let ran = tick.seconds(now.wrapping_sub(seen.turn.began));
        let observed = tick.seconds(now.wrapping_sub(seen.at));
        let observe = || -> PyResult<Object> {
            let processor = match seen.processor {
                Some(seconds) => Object::from_float(py, seconds)?,
                None => Object::none(py),
            };
            let arguments = [
                &Object::from_size(py, id)?,
                &Object::from_size(py, seen.turn.number as usize)?,
                &Object::from_float(py, ran)?,
                &Object::from_float(py, observed)?,
                &processor,
                &boolean(py, again),
            ];
            let module = Object::from(import(py, "hotloop._observing.watching")?);
            module.call_method(py, intern!(py, "observe"), &arguments)
        };
        if let Err(error) = observe() {
            error.write_unraisable(py, None);
        }
    };
    // Without memory, nobody is told now: the block is told of when it is over.
    // SAFETY: the thread is joined before the interpreter ends (see `stop`).
    unsafe { interpreter.try_attach(tell) };
}
