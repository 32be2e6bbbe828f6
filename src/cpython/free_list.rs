//! Memory of dead instances, kept for the next ones of their class.
//!
//! With the GIL, a list for each class. Without, each thread that runs an event loop has lists of its own, which it gives back when it
//! runs none any more: an instance goes to the list of the thread that destroys it.

use pyo3::ffi;

#[cfg(not(Py_GIL_DISABLED))]
pub use of_class::{FreeList, Keeping};
#[cfg(Py_GIL_DISABLED)]
pub use of_thread::{FreeList, Keeping};

/// What is needed of a class.
type Type = *mut ffi::PyTypeObject;
type Instance = *mut ffi::PyObject;

#[cfg(not(Py_GIL_DISABLED))]
mod of_class {
    use std::cell::UnsafeCell;

    use super::{Instance, Type, ffi};

    pub struct FreeList {
        instances: UnsafeCell<Vec<Instance>>,
        keep: usize,
    }

    // SAFETY: touched only under the GIL.
    unsafe impl Sync for FreeList {}

    impl FreeList {
        /// `keep`: how many instances at the most.
        pub const fn new(keep: usize) -> FreeList {
            FreeList { instances: UnsafeCell::new(Vec::new()), keep }
        }

        /// An instance with one reference, and without a value. None if none is kept.
        ///
        /// # Safety
        /// The class is the one that the list is for. The thread is attached.
        #[inline(always)]
        pub unsafe fn take(&self, class: Type) -> Option<Instance> {
            // SAFETY: the GIL is held, and guards the list; the memory is that of an instance of the class.
            unsafe {
                let instance = (*self.instances.get()).pop()?;
                Some(ffi::PyObject_Init(instance, class))
            }
        }

        /// Keeps the memory of an instance, or gives it back, and gives up its reference to the class.
        ///
        /// # Safety
        /// The instance is one of the class, has no references and no value, and is not tracked by the collector. The thread is attached.
        #[inline(always)]
        pub unsafe fn put(&self, instance: Instance, class: Type, can_keep: bool) {
            // SAFETY: the GIL is held, and guards the list.
            unsafe {
                let instances = &mut *self.instances.get();
                if instances.len() < self.keep && can_keep && instances.try_reserve(1).is_ok() {
                    instances.push(instance);
                } else if let Some(release) = (*class).tp_free {
                    release(instance.cast());
                }
                ffi::Py_DECREF(class.cast());
            }
        }
    }

    /// While it lives, the thread keeps instances.
    pub struct Keeping;

    impl Keeping {
        pub fn begin() -> Keeping {
            Keeping
        }
    }
}

#[cfg(Py_GIL_DISABLED)]
mod of_thread {
    use std::cell::UnsafeCell;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::{Instance, Type, ffi};
    use crate::cpython::ownership::current_thread;

    /// Classes of which instances are kept.
    const CLASSES: usize = 4;
    /// Instances of a class that a thread keeps.
    const KEEP: usize = 256;

    struct Kept {
        length: usize,
        instances: [Instance; KEEP],
    }

    struct OfThread {
        /// How many event loops the thread runs, one within the other.
        runs: usize,
        lists: [Kept; CLASSES],
    }

    thread_local! {
        // Without a destructor: a thread that ends runs no loop, and its lists are empty.
        static LISTS: UnsafeCell<OfThread> = const {
            UnsafeCell::new(OfThread {
                runs: 0,
                lists: [const { Kept { length: 0, instances: [std::ptr::null_mut(); KEEP] } }; CLASSES],
            })
        };
    }

    /// Calls `f` with the thread's lists. `f` must not run Python code.
    #[inline(always)]
    fn with_lists<R>(f: impl FnOnce(&mut OfThread) -> R) -> R {
        // SAFETY: `f` does not call this function, and no other thread reaches these lists.
        LISTS.with(|lists| f(unsafe { &mut *lists.get() }))
    }

    static NUMBERED: AtomicUsize = AtomicUsize::new(0);
    const NO_NUMBER: usize = usize::MAX;

    pub struct FreeList {
        keeps: bool,
        /// The number of the class in the lists of each thread.
        number: AtomicUsize,
    }

    impl FreeList {
        pub const fn new(keep: usize) -> FreeList {
            FreeList { keeps: keep > 0, number: AtomicUsize::new(NO_NUMBER) }
        }

        #[cold]
        fn take_number(&self) -> usize {
            let number = NUMBERED.fetch_add(1, Relaxed);
            match self.number.compare_exchange(NO_NUMBER, number, Relaxed, Relaxed) {
                Ok(_) => number,
                Err(number) => number,
            }
        }

        /// As with the GIL.
        ///
        /// # Safety
        /// As with the GIL.
        #[inline(always)]
        pub unsafe fn take(&self, _class: Type) -> Option<Instance> {
            if !self.keeps {
                return None;
            }
            let number = self.number.load(Relaxed);
            let instance = with_lists(|thread| {
                let kept = thread.lists.get_mut(number)?;
                kept.length = kept.length.checked_sub(1)?;
                Some(kept.instances[kept.length])
            })?;
            // What PyObject_Init() does but for the count of the class, which was not given up. Its lock is not held.
            // SAFETY: the memory of an instance, which nothing else refers to.
            unsafe {
                (*instance).ob_tid = current_thread();
                (*instance).ob_flags = 0;
                (*instance).ob_gc_bits = 0;
                (*instance).ob_ref_local.store(1, Relaxed);
                (*instance).ob_ref_shared.store(0, Relaxed);
            }
            Some(instance)
        }

        /// As with the GIL. The reference to the class is not given up: the class lives for good, and all threads would contend for its
        /// count.
        ///
        /// # Safety
        /// As with the GIL.
        #[inline(always)]
        pub unsafe fn put(&self, instance: Instance, class: Type, can_keep: bool) {
            if self.keeps && can_keep {
                let mut number = self.number.load(Relaxed);
                if number == NO_NUMBER {
                    number = self.take_number();
                }
                let is_kept = with_lists(|thread| {
                    let Some(kept) = thread.lists.get_mut(number) else { return false };
                    let has_room = thread.runs > 0 && kept.length < KEEP;
                    if has_room {
                        kept.instances[kept.length] = instance;
                        kept.length += 1;
                    }
                    has_room
                });
                if is_kept {
                    return;
                }
            }
            // SAFETY: as the caller says.
            unsafe { release(instance, class) };
        }
    }

    /// # Safety
    /// The memory is that of an instance of the class, or of a class that derives from it.
    unsafe fn release(instance: Instance, class: Type) {
        // SAFETY: as the caller says.
        unsafe {
            if let Some(release) = (*class).tp_free {
                release(instance.cast());
            }
        }
    }

    /// While it lives, the thread keeps instances.
    pub struct Keeping;

    impl Keeping {
        pub fn begin() -> Keeping {
            with_lists(|thread| thread.runs += 1);
            Keeping
        }
    }

    impl Drop for Keeping {
        fn drop(&mut self) {
            let is_last = with_lists(|thread| {
                thread.runs -= 1;
                thread.runs == 0
            });
            if !is_last {
                return;
            }
            // Giving memory back runs no Python code, but may come back here through the allocator of a debugger.
            while let Some(instance) = with_lists(|thread| {
                let kept = thread.lists.iter_mut().find(|kept| kept.length > 0)?;
                kept.length -= 1;
                Some(kept.instances[kept.length])
            }) {
                // SAFETY: the memory of an instance, whose class is still there.
                unsafe { release(instance, ffi::Py_TYPE(instance)) };
            }
        }
    }
}
