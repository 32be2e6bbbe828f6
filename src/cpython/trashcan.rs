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

// GIL: a thread that destroys objects holds it. A forked child has no part of its parent's other threads but what they had counted.
struct Depth(Cell<u32>);

// SAFETY: touched only under the GIL.
unsafe impl Sync for Depth {}

static DEPTH: Depth = Depth(Cell::new(0));

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
    let depth = DEPTH.0.get();
    if depth >= SHARED {
        return false;
    }
    DEPTH.0.set(depth + 1);
    true
}

/// Ends one that has begun.
pub fn end() {
    DEPTH.0.set(DEPTH.0.get() - 1);
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
            trashcan.aside.borrow_mut().push((instance, destroy));
            return;
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
