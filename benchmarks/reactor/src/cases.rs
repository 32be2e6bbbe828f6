//! The cases: each is set up once and done any number of times.
//!
//! mio's registrations are edge-triggered, hotloop's level-triggered. A case therefore reads each ready descriptor empty, and its peer
//! makes it ready again: an edge for mio, a level for hotloop.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sides::{Reactor, Wake};

pub const NAMES: [&str; 11] = [
    "ready_1_of_1",
    "ready_64_of_64",
    "ready_100_of_10000",
    "wake_same_thread",
    "wake_round_trip",
    "wait_zero",
    "wait_zero_of_10000",
    "wait_1_ms",
    "register",
    "register_among_10000",
    "change_interest",
];

/// Sets up a case. Each call of the closure does it once. None if there is no case of this name.
pub fn case<R: Reactor + 'static>(name: &str) -> Option<Box<dyn FnMut()>> {
    Some(match name {
        "ready_1_of_1" => ready::<R>(1, 1),
        "ready_64_of_64" => ready::<R>(64, 64),
        "ready_100_of_10000" => ready::<R>(100, 10_000),
        "wake_same_thread" => wake_same_thread::<R>(),
        "wake_round_trip" => wake_round_trip::<R>(),
        "wait_zero" => wait::<R>(Duration::ZERO, 1),
        "wait_zero_of_10000" => wait::<R>(Duration::ZERO, 10_000),
        // mio waits whole milliseconds.
        "wait_1_ms" => wait::<R>(Duration::from_millis(1), 1),
        "register" => register::<R>(0),
        "register_among_10000" => register::<R>(10_000),
        "change_interest" => change_interest::<R>(),
        _ => return None,
    })
}

/// Descriptors that are never ready: duplicates of one, since pairs would need twice as many.
struct Silent {
    _pair: (UnixStream, UnixStream),
    _duplicates: Vec<OwnedFd>,
}

impl Silent {
    fn registered<R: Reactor>(reactor: &mut R, count: usize) -> Silent {
        let pair = UnixStream::pair().expect("a pair of sockets");
        let duplicate = || OwnedFd::from(pair.0.try_clone().expect("one more descriptor: see ulimit -n"));
        let duplicates: Vec<_> = (0..count).map(|_| duplicate()).collect();
        for fd in &duplicates {
            reactor.register(fd.as_raw_fd(), usize::MAX).expect("to be registered");
        }
        Silent { _pair: pair, _duplicates: duplicates }
    }
}

/// A wait; a byte read from each of the `active` descriptors, and written to its peer.
fn ready<R: Reactor + 'static>(active: usize, registered: usize) -> Box<dyn FnMut()> {
    let mut reactor = R::new().expect("a reactor");
    let silent = Silent::registered(&mut reactor, registered - active);
    let mut pairs: Vec<_> = (0..active).map(|_| UnixStream::pair().expect("a pair of sockets")).collect();
    for (number, (here, there)) in pairs.iter_mut().enumerate() {
        reactor.register(here.as_raw_fd(), number).expect("to be registered");
        there.write_all(b"x").expect("room");
    }
    Box::new(move || {
        let _ = &silent;
        let mut seen = 0;
        while seen < active {
            let on_readable = |number: usize| {
                let (here, there) = &mut pairs[number];
                here.read_exact(&mut [0]).expect("a byte");
                there.write_all(b"x").expect("room");
                seen += 1;
            };
            reactor.wait(None, on_readable).expect("to wait");
        }
    })
}

fn wake_same_thread<R: Reactor + 'static>() -> Box<dyn FnMut()> {
    let mut reactor = R::new().expect("a reactor");
    let waker = reactor.waker();
    Box::new(move || {
        waker.wake().expect("to wake");
        reactor.wait(None, |_| ()).expect("to wait");
    })
}

/// Another thread, which answers each wake-up with one.
struct Echo<W: Wake> {
    waker: W,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<W: Wake> Echo<W> {
    fn start<R: Reactor<Waker = W> + 'static>(answer: W) -> Echo<W> {
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut reactor = R::new().expect("a reactor");
            sender.send(reactor.waker()).expect("to be waited for");
            while !is_done.load(Ordering::SeqCst) {
                reactor.wait(None, |_| ()).expect("to wait");
                answer.wake().expect("to wake");
            }
        });
        let waker = receiver.recv().expect("the thread's waker");
        Echo { waker, done, thread: Some(thread) }
    }
}

impl<W: Wake> Drop for Echo<W> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        self.waker.wake().expect("to wake");
        self.thread.take().expect("ended once").join().expect("the thread to end well");
    }
}

fn wake_round_trip<R: Reactor + 'static>() -> Box<dyn FnMut()> {
    let mut reactor = R::new().expect("a reactor");
    let echo = Echo::start::<R>(reactor.waker());
    Box::new(move || {
        echo.waker.wake().expect("to wake");
        reactor.wait(None, |_| ()).expect("to wait");
    })
}

/// A wait without an event.
fn wait<R: Reactor + 'static>(timeout: Duration, registered: usize) -> Box<dyn FnMut()> {
    let mut reactor = R::new().expect("a reactor");
    let silent = Silent::registered(&mut reactor, registered);
    Box::new(move || {
        let _ = &silent;
        reactor.wait(Some(timeout), |_| unreachable!("nothing happens")).expect("to wait");
    })
}

/// A descriptor registered and deregistered, with `others` registered.
fn register<R: Reactor + 'static>(others: usize) -> Box<dyn FnMut()> {
    let mut reactor = R::new().expect("a reactor");
    let silent = Silent::registered(&mut reactor, others);
    let pair = UnixStream::pair().expect("a pair of sockets");
    Box::new(move || {
        let _ = &silent;
        let key = reactor.register(pair.0.as_raw_fd(), 0).expect("to be registered");
        reactor.deregister(key).expect("to be deregistered");
    })
}

/// An interest in writing added and removed.
fn change_interest<R: Reactor + 'static>() -> Box<dyn FnMut()> {
    let mut reactor = R::new().expect("a reactor");
    let pair = UnixStream::pair().expect("a pair of sockets");
    let key = reactor.register(pair.0.as_raw_fd(), 0).expect("to be registered");
    Box::new(move || {
        let _ = &pair;
        reactor.change(key, true).expect("to be changed");
        reactor.change(key, false).expect("to be changed");
    })
}
