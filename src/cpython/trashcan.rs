//! Destroying long chains of objects without a deep stack.
//!
//! A handle can be the only one that refers to another, which refers to a third: a million of them, each destroyed within
//! the destruction of the one before, would overflow the stack. So beyond a depth, instances are put aside, and the
//! innermost destruction that is still within it destroys them one after another. The interpreter does the same for
//! its containers, by means that are private and differ from version to version.
//!
//! A destructor may give up the GIL for long, or fork. So each thread destroys its own instances: the depth that all
//! threads share, which is counted without a look-up of the thread, only says when each counts its own.

use std::cell::{Cell, RefCell};

use pyo3::ffi;

/// Destructions within each other, of all threads together, before each thread counts its own. Between any two there can
/// be as many of the interpreter's own containers.
const SHARED: u32 = 16;
/// Those of a thread beyond that, at the most.
const DEEPEST: u32 = 16;

pub type Destroy = unsafe fn(*mut ffi::PyObject);

/// A forked child has no part of its parent's other threads but what they had counted.
#[cfg(not(Py_GIL_DISABLED))]
struct Depth(Cell<u32>);

// SAFETY: touched only under the GIL, which a thread that destroys objects holds.
#[cfg(not(Py_GIL_DISABLED))]
unsafe impl Sync for Depth {}

#[cfg(not(Py_GIL_DISABLED))]
static DEPTH: Depth = Depth(Cell::new(0));

#[cfg(not(Py_GIL_DISABLED))]
fn with_depth<R>(f: impl FnOnce(&Cell<u32>) -> R) -> R {
    f(&DEPTH.0)
}

// Without the GIL, each thread has its own from the first.
#[cfg(Py_GIL_DISABLED)]
thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

#[cfg(Py_GIL_DISABLED)]
fn with_depth<R>(f: impl FnOnce(&Cell<u32>) -> R) -> R {
    DEPTH.with(f)
}

struct Trashcan {
    depth: Cell<u32>,
    aside: RefCell<Vec<(*mut ffi::PyObject, Destroy)>>,
}

thread_local! {
    static TRASHCAN: Trashcan = const { Trashcan { depth: Cell::new(0), aside: RefCell::new(Vec::new()) } };
}

/// Begins a destruction. False if there are many within each other: then [`run_deep`] is to do it.
#[must_use]
pub fn begin() -> bool {
    with_depth(|shared| {
        let depth = shared.get();
        if depth >= SHARED {
            return false;
        }
        shared.set(depth + 1);
        true
    })
}

/// Ends one that has begun.
pub fn end() {
    with_depth(|shared| shared.set(shared.get() - 1));
}

/// Destroys an instance, now or a little later.
///
/// # Safety
/// The GIL is held. The instance is one that `destroy` can be called with, which will be done once.
#[cold]
pub unsafe fn run_deep(instance: *mut ffi::PyObject, destroy: Destroy) {
    let within = TRASHCAN.try_with(|trashcan| {
        let depth = trashcan.depth.get() + 1;
        if depth > DEEPEST {
            let mut aside = trashcan.aside.borrow_mut();
            if aside.try_reserve(1).is_ok() {
                aside.push((instance, destroy));
                return;
            }
            // There is no memory for many at once. A chain is put aside one by one, for which there is room.
        }
        trashcan.depth.set(depth);
        // SAFETY: as the caller says.
        unsafe { destroy(instance) };
        if depth == DEEPEST {
            // SAFETY: the instances were put aside by this function.
            unsafe { empty(trashcan) };
        }
        trashcan.depth.set(depth - 1);
    });
    if within.is_err() {
        // The thread has ended but for what it destroys.
        // SAFETY: as the caller says.
        unsafe { destroy(instance) };
    }
}

/// # Safety
/// The GIL is held.
#[cold]
unsafe fn empty(trashcan: &Trashcan) {
    loop {
        // What is destroyed may put more aside: nothing is borrowed meanwhile.
        let Some((instance, destroy)) = trashcan.aside.borrow_mut().pop() else { return };
        // SAFETY: it was put aside to be destroyed once.
        unsafe { destroy(instance) };
    }
}
