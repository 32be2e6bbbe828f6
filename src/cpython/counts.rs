//! Counting references.
//!
//! With the GIL, PyO3's functions are inlined. Without, they are calls; here is what C extensions have inlined: an object counts the
//! references of the thread that made it apart from the others.

use pyo3::ffi;

#[cfg(not(Py_GIL_DISABLED))]
pub use ffi::{Py_DECREF as decrement, Py_INCREF as increment};

#[cfg(Py_GIL_DISABLED)]
pub use free_threaded::{decrement, increment};

#[cfg(Py_GIL_DISABLED)]
mod free_threaded {
    use std::sync::atomic::Ordering::{Relaxed, SeqCst};

    use super::ffi;
    use crate::cpython::ownership::current_thread;

    /// The count of an immortal object.
    const IMMORTAL: u32 = u32::MAX;
    /// The lower bits of the shared count are flags.
    const SHARED_SHIFT: u32 = 2;

    unsafe extern "C" {
        fn _Py_MergeZeroLocalRefcount(object: *mut ffi::PyObject);
        fn _Py_DecRefShared(object: *mut ffi::PyObject);
    }

    /// Whether the thread's references are counted in `ob_ref_local`.
    ///
    /// # Safety
    /// The object lives.
    #[inline(always)]
    unsafe fn is_own(object: *mut ffi::PyObject) -> bool {
        // SAFETY: as the caller says. Another thread may set it to 0, never to this thread's number.
        unsafe { (&raw const (*object).ob_tid).read_volatile() == current_thread() }
    }

    /// # Safety
    /// The object lives, and the thread is attached.
    #[inline(always)]
    pub unsafe fn increment(object: *mut ffi::PyObject) {
        // SAFETY: as the caller says.
        unsafe {
            let local = (*object).ob_ref_local.load(Relaxed);
            if local == IMMORTAL {
                return;
            }
            if is_own(object) {
                (*object).ob_ref_local.store(local + 1, Relaxed);
            } else {
                (*object).ob_ref_shared.fetch_add(1 << SHARED_SHIFT, SeqCst);
            }
        }
    }

    /// # Safety
    /// The caller has a reference to the object, which it gives away, and the thread is attached.
    #[inline(always)]
    pub unsafe fn decrement(object: *mut ffi::PyObject) {
        // SAFETY: as the caller says.
        unsafe {
            let local = (*object).ob_ref_local.load(Relaxed);
            if local == IMMORTAL {
                return;
            }
            if !is_own(object) {
                return _Py_DecRefShared(object);
            }
            (*object).ob_ref_local.store(local - 1, Relaxed);
            if local == 1 {
                _Py_MergeZeroLocalRefcount(object);
            }
        }
    }
}
