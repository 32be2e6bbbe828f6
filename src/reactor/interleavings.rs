//! What threads do to one another: loom runs each of these tests once for each interleaving, and for each value that the
//! memory model lets a reader see.
//!
//!     RUSTFLAGS='--cfg loom' cargo test --release --no-default-features --lib interleavings

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::clock::simulated;
use super::inject_queue::InjectQueue;
use super::kernel::Kernel;
use super::poller::{Events, Interest};
use super::run_lock::RunLock;
use super::run_monitor::RunMonitor;
use super::spin::spin_for_wakeup;

/// A poller that nothing but its waker wakes.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn wake(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_all();
    }

    /// Returns when it has rung. If it never does, loom says that there is a deadlock.
    fn sleep(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

impl Kernel for Bell {
    fn renew(&self) -> io::Result<Bell> {
        Ok(Bell::default())
    }

    fn is_inherited(&self) -> bool {
        false
    }

    fn is_intact(&self) -> bool {
        true
    }

    fn is_own(&self, _: RawFd) -> bool {
        false
    }

    fn abandon(&self) {}

    fn add(&self, _: RawFd, _: usize, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn modify(&self, _: RawFd, _: usize, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn delete(&self, _: RawFd) -> io::Result<()> {
        Ok(())
    }

    fn mask_priority(&self, _: RawFd, _: usize, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn wait(&self, _: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        match timeout {
            None => self.sleep(),
            Some(_) => *self.rung.lock().unwrap() = false,
        }
        Ok(())
    }

    fn yield_now(&self) {
        thread::yield_now();
    }
}

struct Loop {
    injected: InjectQueue<u32>,
    bell: Bell,
}

impl Loop {
    fn send(&self, message: u32) {
        if self.injected.push(message) {
            self.bell.wake();
        }
    }

    /// Waits as the event loop does, and returns the messages.
    fn wait(&self, spins: bool) -> Vec<u32> {
        if self.injected.begin_wait(spins) {
            let mut ready = Events::default();
            let is_over =
                spins && spin_for_wakeup(&self.injected.sleep, &self.bell, &mut ready).unwrap().is_over;
            if !is_over {
                self.bell.wait(&mut ready, None).unwrap();
            }
        }
        self.injected.sleep.end();
        self.injected.take_all()
    }
}

/// Has `senders` threads send `messages` each to a loop that waits until it has all of them.
fn deliver(senders: u32, messages: u32, spins: bool) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        simulated::start(40_000);
        let shared = Arc::new(Loop { injected: InjectQueue::default(), bell: Bell::default() });
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
fn no_delivery_is_slept_through() {
    deliver(1, 2, false);
    deliver(2, 1, false);
}

#[test]
fn no_delivery_is_dozed_through() {
    deliver(1, 2, true);
}

#[test]
fn a_turn_that_is_seen_is_whole() {
    /// When a turn begins, by its number.
    fn began(number: u64) -> u64 {
        100 * number
    }
    loom::model(|| {
        let run_monitor = Arc::new(RunMonitor::default());
        let watcher = {
            let run_monitor = Arc::clone(&run_monitor);
            thread::spawn(move || {
                let turn = run_monitor.under_way();
                if let Some(turn) = turn {
                    assert_eq!(turn.began, began(turn.number), "of another turn");
                    run_monitor.notice(turn);
                }
                turn
            })
        };
        let mut told = None;
        for number in [1, 3, 5] {
            run_monitor.begin(began(number));
            if let Some(turn) = run_monitor.end() {
                assert_eq!((turn.number, turn.began), (number, began(number)));
                assert_eq!(told.replace(turn), None, "a turn is told of once");
            }
        }
        let noticed = watcher.join().unwrap();
        assert!(told.is_none() || told == noticed);
    });
}

#[test]
fn whoever_waits_for_a_run_sees_all_of_it() {
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
