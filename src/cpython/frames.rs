//! The stack of another thread, on a free-threaded build.
//!
//! There, a thread runs on while another walks its frames, which it ends and whose memory it uses again: `sys._current_frames()` stops
//! the others only until it has returned the innermost ones. Here all threads are stopped until the walk is over.
//!
//! The functions that stop them are exported and not documented: where they are missing, no stack is known.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

use pyo3::ffi;
use pyo3::prelude::*;

use super::object::{Object, tuple, tuple_of};

/// What is kept of a frame: its code, its line and its globals.
type Frame = (Object, c_int, Object);

type OfInterpreter = unsafe extern "C" fn(*mut ffi::PyInterpreterState);

/// No stack that is worth a look is deeper: the innermost frames are kept.
const DEEPEST: usize = 100_000;

/// The functions that stop all threads of an interpreter, and have them go on.
fn stop_and_start() -> Option<(OfInterpreter, OfInterpreter)> {
    static FUNCTIONS: OnceLock<Option<(OfInterpreter, OfInterpreter)>> = OnceLock::new();
    let find = |name: &CStr| {
        // SAFETY: the name ends in a null byte.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        // SAFETY: since 3.13, functions of these names have this signature.
        (!found.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, OfInterpreter>(found) })
    };
    *FUNCTIONS.get_or_init(|| Some((find(c"_PyEval_StopTheWorld")?, find(c"_PyEval_StartTheWorld")?)))
}

/// The calling thread's state, for [`frames_of`].
pub fn thread_state(_py: Python<'_>) -> usize {
    // SAFETY: the thread is attached.
    unsafe { ffi::PyThreadState_Get() as usize }
}

/// The frames of a thread, the innermost first, as a tuple of tuples of code, line and globals. While all threads are stopped, and
/// before its state is used, `is_there` is called: it must return false if the thread can have ended. None then, and where
/// threads can't be stopped.
///
/// # Safety
/// `state` is the state of a thread if `is_there` returns true.
pub unsafe fn frames_of(
    py: Python<'_>,
    state: usize,
    is_there: impl FnOnce() -> bool,
) -> PyResult<Option<Object>> {
    let Some((stop, start)) = stop_and_start() else { return Ok(None) };
    // SAFETY: the thread is attached. Nothing between the calls runs Python code, waits for a lock that a stopped thread can have, or
    // unwinds. As the caller says, the state is a thread's.
    let frames = unsafe {
        let interpreter = ffi::PyInterpreterState_Get();
        stop(interpreter);
        let frames = if is_there() { Some(walk(py, state as *mut ffi::PyThreadState)) } else { None };
        start(interpreter);
        frames
    };
    let Some(frames) = frames else { return Ok(None) };
    let frame = |(code, line, globals): &Frame| {
        tuple(py, &[code, &Object::from_size(py, usize::try_from(*line).unwrap_or(0))?, globals])
    };
    let frames = frames.iter().map(frame).collect::<PyResult<Vec<_>>>()?;
    tuple_of(py, frames.iter()).map(Some)
}

/// The frames of a stopped thread.
///
/// # Safety
/// `state` is the state of a thread, and all threads but the calling one are stopped.
unsafe fn walk(py: Python<'_>, state: *mut ffi::PyThreadState) -> Vec<Frame> {
    let mut frames = Vec::new();
    // SAFETY: as the caller says. The functions return new references, or null without an exception, and a frame has code and globals.
    // The references to frames are dropped while the threads have others to them.
    unsafe {
        let mut frame = ffi::PyThreadState_GetFrame(state);
        while !frame.is_null() {
            if frames.len() < DEEPEST && frames.try_reserve(1).is_ok() {
                let code = Object::from_owned(py, ffi::PyFrame_GetCode(frame).cast());
                let globals = Object::from_owned(py, ffi::PyFrame_GetGlobals(frame));
                if let (Ok(code), Ok(globals)) = (code, globals) {
                    frames.push((code, ffi::PyFrame_GetLineNumber(frame), globals));
                }
            }
            let back = ffi::PyFrame_GetBack(frame);
            ffi::Py_DECREF(frame.cast());
            frame = back;
        }
    }
    frames
}
