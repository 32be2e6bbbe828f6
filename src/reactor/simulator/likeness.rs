//! The simulated kernel does what the real one does: the same calls, at random, to both.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use super::super::clock::simulated;
use super::super::registry::tests::{close_all, in_child};
use super::machine::{IN, Kind, Machine, OUT, Operation};
use super::random::Random;

const CALLS: u32 = 20_000;

fn check(result: i32) -> Result<i32, Option<i32>> {
    if result < 0 { Err(io::Error::last_os_error().raw_os_error()) } else { Ok(result) }
}

/// The calls on the real kernel, in a process whose descriptors are all its own.
mod real {
    use super::*;

    pub fn open(regular: bool) -> Result<RawFd, Option<i32>> {
        // SAFETY: the path is a C string; the other call takes no pointers.
        check(unsafe {
            if regular {
                libc::open(c"/proc/self/exe".as_ptr(), libc::O_RDONLY)
            } else {
                libc::eventfd(0, libc::EFD_NONBLOCK)
            }
        })
    }

    pub fn control(
        set: RawFd,
        operation: Operation,
        fd: RawFd,
        key: u64,
        events: u32,
    ) -> Result<(), Option<i32>> {
        let mut event = libc::epoll_event { events, u64: key };
        let operation = match operation {
            Operation::Add => libc::EPOLL_CTL_ADD,
            Operation::Modify => libc::EPOLL_CTL_MOD,
            Operation::Delete => libc::EPOLL_CTL_DEL,
        };
        // SAFETY: `event` is a valid epoll_event for the duration of the call.
        check(unsafe { libc::epoll_ctl(set, operation, fd, &mut event) }).map(|_| ())
    }

    pub fn wait(set: RawFd) -> Result<Vec<(u64, u32)>, Option<i32>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 256];
        // SAFETY: there is room for that many events.
        let count = check(unsafe { libc::epoll_wait(set, events.as_mut_ptr(), events.len() as i32, 0) })?;
        Ok(events[..count as usize].iter().map(|event| (event.u64, event.events)).collect())
    }
}

fn call_both(random: &mut Random) {
    simulated::start(0);
    let machine = Machine::new();
    let mut state = machine.state.borrow_mut();
    state.width = 256;
    // The standard streams.
    (0..3).for_each(|_| _ = state.open(Kind::Regular));
    // SAFETY: the call takes no pointers.
    let set = check(unsafe { libc::epoll_create1(0) }).unwrap();
    assert_eq!(state.open(Kind::Set(BTreeMap::new())).unwrap(), set);
    let error = |error: io::Error| error.raw_os_error();
    for call in 0..CALLS {
        let [fd, other] = [0, 1].map(|_| 4 + random.below(16) as RawFd);
        match random.below(24) {
            0..=1 => {
                let regular = random.below(5) == 0;
                if state.numbers().count() < 40 {
                    let simulated =
                        state.open(if regular { Kind::Regular } else { Kind::Socket }).map_err(error);
                    if let Ok(file) = simulated.map(|fd| state.file(fd).unwrap()) {
                        state.change(file, OUT);
                    }
                    assert_eq!(simulated, real::open(regular), "call {call}");
                }
            }
            2 => {
                let to = random.flip().then_some(other);
                if state.numbers().count() < 40 {
                    // SAFETY: the calls take no pointers.
                    let real = check(unsafe { to.map_or_else(|| libc::dup(fd), |to| libc::dup2(fd, to)) });
                    assert_eq!(state.duplicate(fd, to).map_err(error), real, "call {call}");
                }
            }
            3..=4 => {
                // SAFETY: the number is one that this program has opened, or not open.
                let real = check(unsafe { libc::close(fd) }).map(|_| ());
                assert_eq!(state.close(fd).map_err(error), real, "call {call}");
            }
            5..=8 => {
                if state.is_watchable(fd) {
                    let mut count = 1u64.to_ne_bytes();
                    let readable = random.flip();
                    // SAFETY: `count` is eight bytes that can be read and written.
                    unsafe {
                        match readable {
                            true => libc::write(fd, count.as_ptr().cast(), 8),
                            false => libc::read(fd, count.as_mut_ptr().cast(), 8),
                        }
                    };
                    let file = state.file(fd).unwrap();
                    state.change(file, if readable { IN | OUT } else { OUT });
                }
            }
            9..=18 => {
                let operation =
                    random.choose(&[Operation::Add, Operation::Add, Operation::Modify, Operation::Delete]);
                let events = random.choose(&[IN, OUT, IN | OUT]);
                let set = if random.below(20) == 0 { other } else { set };
                let fd = if random.below(50) == 0 { set } else { fd };
                let key = u64::from(call);
                let simulated = state.control(set, operation, fd, key, events).map_err(error);
                assert_eq!(
                    simulated,
                    real::control(set, operation, fd, key, events),
                    "call {call}: {operation:?} {fd}"
                );
            }
            _ => {
                drop(state);
                let simulated = machine.wait(set, Some(0)).map_err(error);
                let simulated = simulated.map(|(events, _)| {
                    let mut events: Vec<_> = events.iter().map(|event| (event.u64, event.events)).collect();
                    events.sort();
                    events
                });
                let mut real = real::wait(set);
                real.iter_mut().for_each(|events| events.sort());
                assert_eq!(simulated, real, "call {call}");
                state = machine.state.borrow_mut();
            }
        }
    }
}

#[test]
fn the_simulated_kernel_does_what_the_real_one_does() {
    // In a child: other tests of this process open descriptors, too.
    in_child(|| {
        close_all();
        call_both(&mut Random::new(super::seed()));
        true
    });
}
