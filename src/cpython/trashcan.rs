//! Destroying long chains of objects without a deep stack.
//!
//! A handle can be the only one that refers to another, which refers to a third: a million of them, each destroyed within
//! the destruction of the one before, would overflow the stack. So beyond a depth, instances are put aside, and the
//! innermost destruction that is still within it destroys them one after another. The interpreter does the same for
//! its containers; its means are private and differ from version to version.

use std::cell::{Cell, RefCell};

use pyo3::ffi;

/// Destructions within each other at the most. Between any two there can be as many of the interpreter's own containers.
const DEEPEST: u32 = 32;

pub type Destroy = unsafe fn(*mut ffi::PyObject);

struct Trashcan {
    depth: Cell<u32>,
    aside: RefCell<Vec<(*mut ffi::PyObject, Destroy)>>,
}

// GIL: whoever destroys objects holds it. A thread that gives it up within a destruction leaves its depth to others, who
// then put instances aside sooner.
struct Shared(Trashcan);

// SAFETY: touched only under the GIL.
unsafe impl Sync for Shared {}

static TRASHCAN: Shared = Shared(Trashcan { depth: Cell::new(0), aside: RefCell::new(Vec::new()) });

/// Begins a destruction. False if it is one too many within each other: then the instance is to be put aside.
#[inline(always)]
#[must_use]
pub fn begin() -> bool {
    let depth = TRASHCAN.0.depth.get();
    TRASHCAN.0.depth.set(depth + 1);
    depth < DEEPEST
}

/// Ends one.
#[inline(always)]
pub fn end() {
    let depth = TRASHCAN.0.depth.get();
    if depth == DEEPEST {
        empty();
    }
    TRASHCAN.0.depth.set(depth - 1);
}

/// Has an instance destroyed a little later, and ends the destruction that has begun.
///
/// # Safety
/// The GIL is held. The instance is one that `destroy` can be called with, which will be done once.
#[cold]
pub unsafe fn put_aside(instance: *mut ffi::PyObject, destroy: Destroy) {
    TRASHCAN.0.aside.borrow_mut().push((instance, destroy));
    TRASHCAN.0.depth.set(TRASHCAN.0.depth.get() - 1);
}

#[cold]
fn empty() {
    loop {
        // What is destroyed may put more aside: nothing is borrowed meanwhile.
        let Some((instance, destroy)) = TRASHCAN.0.aside.borrow_mut().pop() else { return };
        // SAFETY: it was put aside to be destroyed once, and whoever destroys an object holds the GIL.
        unsafe { destroy(instance) };
    }
}
