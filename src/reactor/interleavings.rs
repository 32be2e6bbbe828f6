//! The reactor's protocols between threads. loom runs each of these tests once for each interleaving, and for each value that
//! the memory model lets a reader see.
//!
//!     RUSTFLAGS='--cfg loom' cargo test --release --no-default-features --lib interleavings

use std::io;
use std::time::Duration;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::clock::simulated;
use super::inject_queue::InjectQueue;
use super::kernel::Wait;
use super::owner::Owner;
use super::poller::Events;
use super::ring::{self, Ring};
use super::run_lock::RunLock;
use super::run_monitor::RunSequence;
use super::spin::spin_for_wakeup;

/// A kernel without descriptors, which can only be woken.
#[derive(Default)]
struct Wakeable {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wakeable {
    /// Returns when it is woken. If it never is, loom reports a deadlock.
    fn park(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.changed.wait(woken).unwrap();
        }
        *woken = false;
    }
}

impl Wait for Wakeable {
    fn wait(&self, _: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        match timeout {
            None => self.park(),
            Some(_) => *self.woken.lock().unwrap() = false,
        }
        Ok(())
    }

    fn wake(&self) -> io::Result<()> {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_all();
        Ok(())
    }

    fn yield_now(&self) {
        thread::yield_now();
    }
}

struct Loop {
    queue: InjectQueue<u32>,
    kernel: Wakeable,
}

impl Loop {
    fn send(&self, message: u32) {
        if self.queue.push(message).unwrap() {
            self.kernel.wake().unwrap();
        }
    }

    /// Waits as the event loop does, and returns the messages.
    fn wait(&self, spins: bool) -> Vec<u32> {
        if self.queue.begin_wait(spins) {
            let mut events = Events::default();
            let is_over =
                spins && spin_for_wakeup(&self.queue.parker, &self.kernel, &mut events).unwrap().is_over;
            if !is_over {
                self.kernel.wait(&mut events, None).unwrap();
            }
        }
        self.queue.parker.unpark();
        self.queue.take_all().into()
    }
}

/// Has `senders` threads send `messages` each to a loop that waits until it has all of them.
fn exchange(senders: u32, messages: u32, spins: bool) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        simulated::start(40_000);
        let shared = Arc::new(Loop { queue: InjectQueue::default(), kernel: Wakeable::default() });
        let threads: Vec<_> = (0..senders)
            .map(|sender| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    (0..messages).for_each(|message| shared.send(sender * messages + message));
                })
            })
            .collect();
        let mut received = Vec::new();
        while received.len() < (senders * messages) as usize {
            received.extend(shared.wait(spins));
        }
        for sender in 0..senders {
            let range = sender * messages..(sender + 1) * messages;
            let of_sender: Vec<_> =
                received.iter().copied().filter(|message| range.contains(message)).collect();
            assert_eq!(of_sender, range.collect::<Vec<_>>(), "each once, and in order");
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_parked_loop_misses_no_message() {
    exchange(1, 2, false);
    exchange(2, 1, false);
}

#[test]
fn a_spinning_loop_misses_no_message() {
    exchange(1, 2, true);
}

#[test]
fn a_run_that_is_seen_is_whole() {
    /// When a run begins, by its number.
    fn began(number: u64) -> u64 {
        100 * number
    }
    loom::model(|| {
        let monitor = Arc::new(RunSequence::default());
        let watcher = {
            let monitor = Arc::clone(&monitor);
            thread::spawn(move || {
                let run = monitor.under_way();
                if let Some(run) = run {
                    assert_eq!(run.began, began(run.number), "of another run");
                    monitor.notice(run);
                }
                run
            })
        };
        let mut reported = None;
        for number in [1, 3, 5] {
            monitor.begin(began(number));
            if let Some(run) = monitor.end() {
                assert_eq!((run.number, run.began), (number, began(number)));
                assert_eq!(reported.replace(run), None, "a run is reported once");
            }
        }
        let noticed = watcher.join().unwrap();
        assert!(reported.is_none() || reported == noticed);
    });
}

#[test]
fn a_thread_that_waits_for_a_run_sees_all_of_it() {
    const LOOP: u64 = 1;
    const OTHER: u64 = 2;
    loom::model(|| {
        let shared = Arc::new((RunLock::default(), AtomicU32::new(0), AtomicBool::new(false)));
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (lock, state, cancelled) = &*shared;
                let _run = loop {
                    match lock.try_begin(OTHER) {
                        Some(run) => break run,
                        None => lock.wait(OTHER),
                    }
                };
                assert_ne!(state.load(Relaxed), 1, "in the midst of a run");
                cancelled.store(true, Relaxed);
            })
        };
        let (lock, state, cancelled) = &*shared;
        let run = loop {
            match lock.try_begin(LOOP) {
                Some(run) => break run,
                None => lock.wait(LOOP),
            }
        };
        let was_cancelled = cancelled.load(Relaxed);
        state.store(1, Relaxed);
        // The callback asks about its own handle.
        drop(lock.try_begin(LOOP).expect("no thread waits for itself"));
        lock.wait(LOOP);
        assert_eq!(cancelled.load(Relaxed), was_cancelled, "cancelled while it ran");
        state.store(2, Relaxed);
        drop(run);
        other.join().unwrap();
    });
}

#[test]
fn a_loop_has_one_owner_at_a_time() {
    const LOOP: usize = 16;
    const OTHER: usize = 32;
    loom::model(|| {
        // loom reports a state that two threads touch at a time, or one after the other without having seen what it wrote.
        let shared = Arc::new((Owner::default(), UnsafeCell::new(0)));
        let count = |shared: &(Owner, UnsafeCell<u32>)| shared.1.with_mut(|state| unsafe { *state += 1 });
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let entered = shared.0.enter(OTHER, |_| thread::yield_now());
                if entered.is_some() {
                    count(&shared);
                    // A method that calls another.
                    let nested = shared.0.enter(OTHER, |_| unreachable!("the thread is the owner"));
                    assert!(nested.is_some());
                    drop(nested);
                    count(&shared);
                }
                entered.is_some()
            })
        };
        let called = shared.0.enter(LOOP, |_| thread::yield_now());
        let ran = called.is_some();
        if ran {
            count(&shared);
            let run = shared.0.run(LOOP, |_| unreachable!("the thread is the owner"));
            assert!(run.is_some());
            count(&shared);
            drop(run);
            count(&shared);
        }
        drop(called);
        let entered = other.join().unwrap();
        assert!(ran || entered, "one of them must get it");
        assert!(shared.0.enter(OTHER, |_| unreachable!("nobody is the owner")).is_some());
    });
}

#[test]
fn records_that_are_copied_while_others_are_written_are_whole() {
    loom::model(|| {
        let ring = Arc::new(Ring::new(2 * ring::SIZE).unwrap());
        let writer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || (1..=3).for_each(|number| ring.push([number; 4])))
        };
        let copied = ring.copy().unwrap();
        for (record, number) in copied.records().iter().zip(copied.first + 1..) {
            assert_eq!(*record, [number; 4]);
        }
        writer.join().unwrap();
        assert_eq!(ring.copy().unwrap().records(), [[3; 4]]);
    });
}
