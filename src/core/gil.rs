//! Telling whether a thread waits for the GIL, without the GIL.
//!
//! CPython has no measure of it. A thread that waits for the GIL is in futex(2), with a timeout, on a word of the GIL's condition
//! variable. Where that is, is learned once in a process: while a thread holds the GIL, the watchdog's waits for it, and the
//! former reads from /proc where. A forked child has it at the same address.
//!
//! Not known: with another C library than glibc, of which a condition variable waits elsewhere; where /proc can't be read; and
//! where a free-threaded build has its GIL enabled.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::cpython::interpreter::Interpreter;
use crate::cpython::module::import;
use crate::intern;
use crate::reactor::breakdown::{GilWaits, Sample};
use crate::reactor::thread_state::{self, ThreadState};

/// The word that a waiting thread was seen to wait for, rounded down to 8 bytes; 0 if it is not known. A condition variable of glibc
/// has two such words beside each other.
static WORDS: AtomicUsize = AtomicUsize::new(0);
/// Whether the watchdog's thread is to wait for the GIL, to be seen.
static WANTED: AtomicBool = AtomicBool::new(false);
/// The system's number of the thread that does; 0 while none does.
static WAITING: AtomicU64 = AtomicU64::new(0);

/// Two words.
const SIZE: usize = 8;
/// In the GIL, a mutex follows its condition variable, and then come the condition variable and the mutex of a thread that has
/// released it and waits until another one has it: that is a wait for the GIL, too.
#[cfg(target_os = "linux")]
const RELEASED: usize = size_of::<libc::pthread_cond_t>() + size_of::<libc::pthread_mutex_t>();
#[cfg(not(target_os = "linux"))]
const RELEASED: usize = 0;

/// How often a thread has to be found waiting for the same words, one after the other.
const SIGHTINGS: u32 = 4;
/// Seconds between them: shorter than the timeout of a wait for the GIL.
const BETWEEN: Duration = Duration::from_micros(100);
/// The GIL is held for so long at the most, to learn.
const PATIENCE: Duration = Duration::from_millis(50);

const CAN_LEARN: bool = cfg!(all(target_os = "linux", target_env = "gnu", not(Py_GIL_DISABLED)));

/// Asks the watchdog's thread to wait for the GIL, if something is to be learned. Returns whether it is.
pub fn want() -> bool {
    let wanted = CAN_LEARN && WORDS.load(Relaxed) == 0;
    WANTED.store(wanted, Relaxed);
    wanted
}

/// Learns where threads wait for the GIL, if the watchdog's thread comes to wait for it soon. The GIL is not released.
pub fn learn(_py: Python<'_>) {
    let deadline = Instant::now() + PATIENCE;
    let (mut words, mut sightings) = (0, 0);
    while sightings < SIGHTINGS && Instant::now() < deadline {
        std::thread::sleep(BETWEEN);
        let thread = WAITING.load(Relaxed);
        if thread == 0 {
            continue;
        }
        let found = match thread_state::state(thread) {
            None => break,
            // The locks that the thread takes on its way have no timeout.
            Some(ThreadState::Futex { address, has_timeout: true }) => address & !(SIZE - 1),
            Some(_) => 0,
        };
        sightings = if found != 0 && found == words { sightings + 1 } else { 0 };
        words = found;
    }
    WANTED.store(false, Relaxed);
    if sightings == SIGHTINGS {
        WORDS.store(words, Relaxed);
    }
}

/// Waits for the GIL if that is wanted. Called by the watchdog's thread.
///
/// # Safety
/// The interpreter has not ended.
pub unsafe fn wait_if_wanted(interpreter: Interpreter) {
    if WANTED.load(Relaxed) {
        WAITING.store(thread_state::current_thread(), Relaxed);
        // SAFETY: as the caller says.
        unsafe { interpreter.try_attach(|_| ()) };
        WAITING.store(0, Relaxed);
    }
}

/// What the thread does now. None if that is not known, or need not be.
pub fn sample(thread: u64) -> Option<Sample> {
    let words = WORDS.load(Relaxed);
    if words == 0 {
        return None;
    }
    Some(match thread_state::state(thread)? {
        ThreadState::Runnable => Sample::Runnable,
        ThreadState::Futex { address, .. } if is_gil(address, words) => Sample::WaitingForGil,
        ThreadState::Futex { .. } | ThreadState::Asleep => Sample::Asleep,
    })
}

/// Whether an address is of one of the GIL's words.
fn is_gil(address: usize, words: usize) -> bool {
    let offset = address.wrapping_sub(words);
    offset < SIZE || (RELEASED..RELEASED + SIZE).contains(&offset)
}

/// Whether waits for the GIL are told from others. Can run Python code.
pub fn waits(py: Python<'_>) -> GilWaits {
    if !cfg!(Py_GIL_DISABLED) {
        return if WORDS.load(Relaxed) == 0 { GilWaits::Unknown } else { GilWaits::Sampled };
    }
    let is_enabled = import(py, "sys")
        .and_then(|sys| sys.getattr(intern!(py, "_is_gil_enabled"))?.call0()?.extract::<bool>());
    if is_enabled.unwrap_or(true) { GilWaits::Unknown } else { GilWaits::Never }
}
