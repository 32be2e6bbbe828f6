//! Messages from other threads to the loop's, and whether the loop has to be woken for them.
//!
//! It does not wake the poller, which costs a system call: it tells the caller when that is needed. The states of the loop's wait:
//!
//! ```text
//!    +---- begin_wait(false) -----------------------------+
//!    |                                                    v
//! UNPARKED ---- begin_wait(true) ----> SPINNING -park()-> PARKED
//!    ^                                    |               |
//!    +---- unpark(), by any thread -------+---------------+
//! ```
//!
//! - UNPARKED: the loop runs, or its wait was ended.
//! - SPINNING: the loop reads the state again and again. To end the wait costs no system call.
//! - PARKED: the loop waits for the poller. The thread that ends the wait must wake the poller.
//!
//! Invariant: no message is missed. The loop changes the state and then reads the queue; a sender changes the queue and then the
//! state. Both change the state by a swap that acquires and releases, so that the second of the two sees what the first wrote.
//!
//! The loop's thread calls `take_all`, `take`, `begin_wait` and `park`; any thread calls the others.

use std::collections::VecDeque;

use super::sync::Mutex;
use super::sync::atomic::{AtomicBool, AtomicU8, Ordering};

pub struct InjectQueue<T> {
    messages: Mutex<VecDeque<T>>,
    /// Set with each message and by [`InjectQueue::notify`]. The loop reads it without the lock.
    nonempty: AtomicBool,
    pub parker: Parker,
}

impl<T> Default for InjectQueue<T> {
    fn default() -> Self {
        InjectQueue {
            messages: Mutex::new(VecDeque::new()),
            nonempty: AtomicBool::new(false),
            parker: Parker::default(),
        }
    }
}

impl<T> InjectQueue<T> {
    /// Appends a message and ends the loop's wait. True if the caller must wake the poller. Without memory, the message is returned.
    pub fn push(&self, message: T) -> Result<bool, T> {
        let mut messages = self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // While it is locked: room that was made before can be another sender's by now.
        if messages.try_reserve(1).is_err() {
            return Err(message);
        }
        messages.push_back(message);
        self.nonempty.store(true, Ordering::Relaxed);
        drop(messages);
        Ok(self.parker.unpark())
    }

    /// Ends the loop's wait without a message; before a wait, keeps it from beginning. True if the caller must wake the poller.
    #[must_use]
    pub fn notify(&self) -> bool {
        self.nonempty.store(true, Ordering::Relaxed);
        self.parker.unpark()
    }

    pub fn count(&self) -> usize {
        self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).len()
    }

    pub fn has_entries(&self) -> bool {
        self.nonempty.load(Ordering::Relaxed)
    }

    /// Takes all messages, oldest first.
    pub fn take_all(&self) -> VecDeque<T> {
        let mut messages = self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.nonempty.store(false, Ordering::Relaxed);
        std::mem::take(&mut messages)
    }

    /// Calls `f` with up to `count` messages, oldest first, and needs no memory. The loop does not wait until it has taken the others.
    pub fn take(&self, count: usize, f: impl FnMut(T)) {
        let mut messages = self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let count = count.min(messages.len());
        messages.drain(..count).for_each(f);
        self.nonempty.store(!messages.is_empty(), Ordering::Relaxed);
    }

    /// Visits all messages, unless another thread holds the lock.
    pub fn try_for_each(&self, visit: impl FnMut(&T)) {
        if let Ok(messages) = self.messages.try_lock() {
            messages.iter().for_each(visit);
        }
    }

    /// Begins a wait, spinning or parked. False if a message has arrived: the loop must not wait then.
    #[must_use]
    pub fn begin_wait(&self, spinning: bool) -> bool {
        self.parker.begin(spinning);
        if self.nonempty.load(Ordering::Relaxed) {
            self.parker.unpark();
            return false;
        }
        true
    }
}

/// The state of the loop's wait.
#[derive(Default)]
pub struct Parker {
    state: AtomicU8,
    /// Spins in a row without a poll. The loop's thread alone uses it.
    without_poll: AtomicU8,
}

const UNPARKED: u8 = 0;
const SPINNING: u8 = 1;
const PARKED: u8 = 2;

impl Parker {
    fn begin(&self, spinning: bool) {
        // A store would not acquire what the sender released that ended the previous wait.
        self.state.swap(if spinning { SPINNING } else { PARKED }, Ordering::AcqRel);
    }

    /// Ends the loop's wait. True if the caller must wake the poller.
    pub fn unpark(&self) -> bool {
        self.state.swap(UNPARKED, Ordering::AcqRel) == PARKED
    }

    /// Records whether a spin polled. Returns how many in a row did not.
    pub fn count_without_poll(&self, polled: bool) -> u8 {
        let without_poll =
            if polled { 0 } else { self.without_poll.load(Ordering::Relaxed).saturating_add(1) };
        self.without_poll.store(without_poll, Ordering::Relaxed);
        without_poll
    }

    /// Records that the poller could not be woken: the next [`Parker::unpark`] asks for it again. If the loop is not waiting, that
    /// is one wake-up too many.
    pub fn wake_failed(&self) {
        let _ = self.state.compare_exchange(UNPARKED, PARKED, Ordering::AcqRel, Ordering::Relaxed);
    }

    pub fn is_unparked(&self) -> bool {
        self.state.load(Ordering::Acquire) == UNPARKED
    }

    /// Goes from the spin to the wait for the poller. False if the wait was ended.
    #[must_use]
    pub fn park(&self) -> bool {
        self.state.compare_exchange(SPINNING, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_message_to_a_parked_loop_wakes_it() {
        let queue = InjectQueue::default();
        assert!(!queue.push(1).unwrap(), "a loop that runs needs no wake-up");
        assert!(!queue.begin_wait(false), "a loop with messages does not wait");
        assert_eq!(queue.take_all(), [1]);
        assert!(queue.begin_wait(false));
        assert!(queue.push(2).unwrap());
        assert!(!queue.push(3).unwrap());
        queue.parker.unpark();
        assert_eq!(queue.take_all(), [2, 3]);
        assert!(!queue.has_entries());
        assert!(!queue.notify());
        assert!(!queue.begin_wait(false), "a loop that was notified does not wait");
        assert!(queue.take_all().is_empty());
        assert!(queue.begin_wait(false));
        assert!(queue.notify());
    }

    #[test]
    fn a_loop_does_not_wait_before_it_has_taken_all_messages() {
        let queue = InjectQueue::default();
        (0..5).for_each(|message| assert!(!queue.push(message).unwrap()));
        let mut taken = Vec::new();
        for count in [0, 2, 2, 2] {
            assert!(!queue.begin_wait(false));
            queue.take(count, |message| taken.push(message));
        }
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        assert!(queue.begin_wait(false));
    }
}
