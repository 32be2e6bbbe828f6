//! Work handed over by other threads, and the wake-up that makes the loop see it.
//!
//! A wake-up costs a system call only while the loop is asleep. The loop says so before it waits, and looks at the
//! injected once more after it said so; a sender delivers first and looks at the state then. Both replace the state in one
//! step, so that one of them comes second and has acquired what the first released: no delivery is slept through.

use super::sync::Mutex;
use super::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Messages from other threads.
pub struct InjectQueue<T> {
    messages: Mutex<Vec<T>>,
    /// Whether `messages` may have something: lets the loop look without taking the lock.
    nonempty: AtomicBool,
    pub sleep: Sleep,
}

impl<T> Default for InjectQueue<T> {
    fn default() -> Self {
        InjectQueue {
            messages: Mutex::new(Vec::new()),
            nonempty: AtomicBool::new(false),
            sleep: Sleep::default(),
        }
    }
}

impl<T> InjectQueue<T> {
    /// Delivers a message. True if the loop is asleep and the caller must wake it.
    #[must_use]
    pub fn push(&self, message: T) -> bool {
        let mut messages = self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        messages.push(message);
        self.nonempty.store(true, Ordering::Relaxed);
        drop(messages);
        self.sleep.end()
    }

    /// Has the loop not wait before it has looked at what there is to do, whoever has queued that where. True as above.
    #[must_use]
    pub fn notify(&self) -> bool {
        self.nonempty.store(true, Ordering::Relaxed);
        self.sleep.end()
    }

    /// Makes room for another message. False if there is no memory.
    #[must_use]
    pub fn reserve(&self) -> bool {
        let mut messages = self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        messages.try_reserve(1).is_ok()
    }

    /// How many messages there are.
    pub fn count(&self) -> usize {
        self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).len()
    }

    pub fn has_entries(&self) -> bool {
        self.nonempty.load(Ordering::Relaxed)
    }

    /// Takes all messages, oldest first.
    pub fn take_all(&self) -> Vec<T> {
        let mut messages = self.messages.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.nonempty.store(false, Ordering::Relaxed);
        std::mem::take(&mut messages)
    }

    /// Looks at all messages, unless another thread is delivering one.
    pub fn try_for_each(&self, visit: impl FnMut(&T)) {
        if let Ok(messages) = self.messages.try_lock() {
            messages.iter().for_each(visit);
        }
    }

    /// Announces that the loop is about to wait: asleep, or spinning at first. False if a message has arrived, so that it
    /// must not.
    #[must_use]
    pub fn begin_wait(&self, spinning: bool) -> bool {
        self.sleep.begin(spinning);
        if self.nonempty.load(Ordering::Relaxed) {
            self.sleep.end();
            return false;
        }
        true
    }
}

/// Whether the loop sleeps, for those who want it awake.
#[derive(Default)]
pub struct Sleep {
    state: AtomicU8,
    /// Dozes in a row that ended without a look at the descriptors. It is the loop's own; atomic, because it stands here.
    without_poll: AtomicU8,
}

const AWAKE: u8 = 0;
/// Waiting, but looking at the state all the time: nobody need wake it.
const SPINNING: u8 = 1;
const PARKED: u8 = 2;

impl Sleep {
    fn begin(&self, spinning: bool) {
        // Not a mere store: that would not see what the sender released that has ended the sleep before this one.
        self.state.swap(if spinning { SPINNING } else { PARKED }, Ordering::AcqRel);
    }

    /// Ends the loop's sleep. True if it is asleep and the caller must wake it.
    pub fn end(&self) -> bool {
        self.state.swap(AWAKE, Ordering::AcqRel) == PARKED
    }

    /// Notes whether there was a look at the descriptors, and returns how many dozes in a row ended without one.
    pub fn count_without_poll(&self, looked: bool) -> u8 {
        let without_poll =
            if looked { 0 } else { self.without_poll.load(Ordering::Relaxed).saturating_add(1) };
        self.without_poll.store(without_poll, Ordering::Relaxed);
        without_poll
    }

    /// What [`Sleep::end`] has asked for could not be done: whoever comes next is to try again. If the loop is awake all the
    /// same, that is one wake-up too many.
    pub fn wake_failed(&self) {
        let _ = self.state.compare_exchange(AWAKE, PARKED, Ordering::AcqRel, Ordering::Relaxed);
    }

    pub fn is_awake(&self) -> bool {
        self.state.load(Ordering::Acquire) == AWAKE
    }

    /// From now on, the loop has to be woken. False if somebody has ended the doze.
    #[must_use]
    pub fn park(&self) -> bool {
        self.state.compare_exchange(SPINNING, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::reactor::poller::{Events, Poller};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn only_the_first_delivery_to_a_sleeper_wakes_it() {
        let injected = InjectQueue::default();
        assert!(!injected.push(1), "an awake loop needs no wake-up");
        assert!(!injected.begin_wait(false), "a loop with mail does not sleep");
        assert_eq!(injected.take_all(), [1]);
        assert!(injected.begin_wait(false));
        assert!(injected.push(2));
        assert!(!injected.push(3));
        injected.sleep.end();
        assert_eq!(injected.take_all(), [2, 3]);
        assert!(!injected.has_entries());
        assert!(!injected.notify());
        assert!(!injected.begin_wait(false), "a loop that was roused does not sleep");
        assert!(injected.take_all().is_empty());
        assert!(injected.begin_wait(false));
        assert!(injected.notify());
    }

    #[test]
    fn no_delivery_is_slept_through() {
        const MESSAGES: u32 = 20_000;
        let shared = Arc::new((InjectQueue::default(), Poller::new(false).unwrap()));
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    for message in 0..MESSAGES {
                        if shared.0.push(message) {
                            shared.1.wake().unwrap();
                        }
                    }
                })
            })
            .collect();
        let mut received = 0;
        let mut ready = Events::default();
        while received < 2 * MESSAGES {
            if shared.0.begin_wait(false) {
                let start = std::time::Instant::now();
                shared.1.wait(&mut ready, Some(Duration::from_secs(20))).unwrap();
                assert!(start.elapsed() < Duration::from_secs(10), "a delivery was slept through");
            }
            shared.0.sleep.end();
            received += shared.0.take_all().len() as u32;
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }
}
