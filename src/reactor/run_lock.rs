//! Keeps other threads from a handle while its callback runs.
//!
//! One thread at a time owns the lock. It can take it again, since a callback may call methods of its own handle.

use std::time::Duration;

use super::sync::{Condvar, Mutex, MutexGuard};

/// The longest wait: the caller then handles signals.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// The lock of one handle. The caller numbers the threads.
#[derive(Default)]
pub struct RunLock {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// The owner: the thread that runs the callback.
    thread: Option<u64>,
    waiters: u32,
}

impl State {
    fn is_elsewhere(&self, thread: u64) -> bool {
        self.thread.is_some_and(|running| running != thread)
    }
}

impl RunLock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether the callback runs in another thread.
    pub fn is_elsewhere(&self, thread: u64) -> bool {
        self.state().is_elsewhere(thread)
    }

    /// Waits until the callback does not run in another thread, for [`LONGEST_WAIT`] at the most. It may run again by the time
    /// that this returns.
    pub fn wait(&self, thread: u64) {
        let mut state = self.state();
        if !state.is_elsewhere(thread) {
            return;
        }
        state.waiters += 1;
        let waited = self.done.wait_timeout(state, LONGEST_WAIT);
        (state, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        state.waiters -= 1;
    }

    /// Makes this thread the owner until the [`Run`] is dropped; None if another thread is.
    #[must_use]
    pub fn try_begin(&self, thread: u64) -> Option<Run<'_>> {
        let mut state = self.state();
        if state.is_elsewhere(thread) {
            return None;
        }
        let former = state.thread.replace(thread);
        Some(Run { lock: self, former })
    }
}

/// Ownership of the lock while a callback runs.
pub struct Run<'lock> {
    lock: &'lock RunLock,
    /// The previous owner: this thread, if the runs are nested.
    former: Option<u64>,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut state = self.lock.state();
        state.thread = self.former;
        if state.waiters > 0 && self.former.is_none() {
            self.lock.done.notify_all();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_waits_for_other_threads_only() {
        let lock = RunLock::default();
        let outer = lock.try_begin(1).unwrap();
        assert!(lock.is_elsewhere(2) && !lock.is_elsewhere(1));
        assert!(lock.try_begin(2).is_none());
        let inner = lock.try_begin(1).unwrap();
        lock.wait(1);
        drop(inner);
        assert!(lock.is_elsewhere(2), "the outer run goes on");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| lock.wait(2));
            drop(outer);
            waiter.join().unwrap();
        });
        assert!(lock.try_begin(2).is_some());
    }

    #[test]
    fn a_panic_ends_the_run() {
        let lock = RunLock::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _run = lock.try_begin(1);
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        lock.wait(2);
    }
}
