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

type Destroy = unsafe fn(*mut ffi::PyObject);

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

/// Destroys an instance, now or a little later.
///
/// # Safety
/// The GIL is held. The instance is one that `destroy` can be called with, which will be done once.
#[inline(always)]
pub unsafe fn run(instance: *mut ffi::PyObject, destroy: Destroy) {
    let trashcan = &TRASHCAN.0;
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
    trashcan.depth.set(trashcan.depth.get() - 1);
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
