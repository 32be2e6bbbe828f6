//! Which thread may touch an event loop's state, where several run at a time.
//!
//! ```text
//!            enter()                     run()
//!   nobody ----------> a thread calls --------> a thread runs the loop
//!      ^                    |    ^                      |
//!      +--- dropped --------+    +------ dropped -------+
//! ```
//!
//! A thread that owns the loop enters it again at no cost. While another one runs it, [`Owner::enter`] fails at once; while another
//! one calls, it waits, since calls are short.
//!
//! Invariant: there is one owner at a time, and it sees what the one before it wrote.

use super::sync::atomic::{
    AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

/// Added to the number of a thread that calls. Threads' numbers are addresses of aligned memory.
const CALLS: usize = 1;
/// A call that holds up another for longer than this many waits may wait for it.
#[cfg(not(all(loom, test)))]
const WAITS: u32 = 20_000;
#[cfg(all(loom, test))]
const WAITS: u32 = 2;

/// The thread that owns a loop, if there is one. The two counts are the owner's. They don't end in the order in which they began where
/// greenlets switch in between.
#[derive(Default)]
pub struct Owner {
    /// The owner's number if it runs the loop, with [`CALLS`] if it calls. 0 for none.
    thread: AtomicUsize,
    calls: AtomicUsize,
    runs: AtomicUsize,
}

/// Ownership, until it is dropped.
pub struct Entered<'a> {
    /// What is one less then; None for a call of the thread that runs the loop.
    counted: Option<(&'a Owner, &'a AtomicUsize)>,
}

impl Owner {
    /// Makes `thread`, the calling one, the owner for a call. None if another thread is. `pause` waits a moment; it is told how often
    /// it was called.
    #[inline(always)]
    pub fn enter(&self, thread: usize, pause: impl Fn(u32)) -> Option<Entered<'_>> {
        // The thread's own number is there only if the thread has written it.
        if self.thread.load(Relaxed) == thread {
            Some(Entered { counted: None })
        } else {
            self.claim(thread, WAITS, pause)
        }
    }

    /// As [`Owner::enter`], without waiting for another thread's call.
    #[inline(always)]
    pub fn try_enter(&self, thread: usize) -> Option<Entered<'_>> {
        if self.thread.load(Relaxed) == thread {
            Some(Entered { counted: None })
        } else {
            self.claim(thread, 1, |_| ())
        }
    }

    #[cold]
    fn claim(&self, thread: usize, attempts: u32, pause: impl Fn(u32)) -> Option<Entered<'_>> {
        let calls = thread | CALLS;
        for waits in 0..attempts {
            match self.thread.compare_exchange(0, calls, Acquire, Relaxed) {
                Ok(_) => return Some(self.count(&self.calls)),
                Err(owner) if owner == calls => return Some(self.count(&self.calls)),
                Err(owner) if owner & CALLS == 0 => return None,
                Err(_) => pause(waits),
            }
        }
        None
    }

    /// As [`Owner::enter`], to run the loop.
    pub fn run(&self, thread: usize, pause: impl Fn(u32)) -> Option<Entered<'_>> {
        let _entered = self.enter(thread, pause)?;
        self.thread.store(thread, Relaxed);
        Some(self.count(&self.runs))
    }

    fn count<'a>(&'a self, count: &'a AtomicUsize) -> Entered<'a> {
        count.store(count.load(Relaxed) + 1, Relaxed);
        Entered { counted: Some((self, count)) }
    }

    #[cold]
    fn end(&self, count: &AtomicUsize) {
        count.store(count.load(Relaxed) - 1, Relaxed);
        if self.runs.load(Relaxed) == 0 {
            let owner = if self.calls.load(Relaxed) == 0 { 0 } else { self.thread.load(Relaxed) | CALLS };
            self.thread.store(owner, Release);
        }
    }
}

impl Drop for Entered<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some((owner, count)) = self.counted {
            owner.end(count);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn never(_: u32) {
        panic!("there is nothing to wait for");
    }

    #[test]
    fn a_thread_enters_again_and_others_do_not_while_it_runs() {
        let owner = Owner::default();
        let outer = owner.enter(16, never).unwrap();
        let run = owner.run(16, never).unwrap();
        assert!(owner.enter(32, never).is_none() && owner.run(32, never).is_none());
        let nested = owner.run(16, never).unwrap();
        drop(nested);
        drop(owner.enter(16, never).unwrap());
        assert!(owner.enter(32, never).is_none());
        drop(run);
        let waits = std::cell::Cell::new(0);
        assert!(owner.enter(32, |_| waits.set(waits.get() + 1)).is_none(), "the first still calls");
        assert_eq!(waits.get(), WAITS);
        assert!(owner.try_enter(32).is_none());
        drop(owner.try_enter(16).unwrap());
        drop(outer);
        drop(owner.try_enter(32).unwrap());
        drop(owner.run(32, never).unwrap());
        drop(owner.enter(16, never).unwrap());
    }

    #[test]
    fn calls_and_runs_end_in_any_order() {
        let owner = Owner::default();
        let call = owner.enter(16, never).unwrap();
        let run = owner.run(16, never).unwrap();
        drop(call);
        assert!(owner.enter(32, never).is_none(), "the first runs the loop");
        let call = owner.enter(16, never).unwrap();
        drop((run, call));
        let [first, second] = [owner.enter(32, never).unwrap(), owner.enter(32, never).unwrap()];
        drop(first);
        assert!(owner.enter(16, |_| ()).is_none(), "the other calls");
        drop(second);
        drop(owner.enter(16, never).unwrap());
    }
}
