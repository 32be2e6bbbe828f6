//! What [`Poller`](crate::reactor::poller::Poller) is with [`Backend::Epoll`](crate::reactor::poller::Backend), on the simulated
//! kernel.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use super::super::clock::simulated;
use super::super::kernel::{Kernel, Wait};
use super::super::poller::{Events, Interest};
use super::machine::{ET, EXCLUSIVE, FileId, IN, Kind, Machine, OUT, Operation, PRI};

const WAKER_KEY: u64 = (usize::MAX - 1) as u64;
/// The key of the notifier and of the timer of `polling`.
const NOTIFIER_KEY: u64 = usize::MAX as u64;

/// How long another thread keeps the processor that was offered to it, in nanoseconds.
const YIELD: u64 = 3_000;

/// A set, with its notifier, its timer and its waker.
pub struct Set {
    machine: Rc<Machine>,
    numbers: [RawFd; 4],
    files: [FileId; 4],
    forks: usize,
    abandoned: Cell<bool>,
}

impl Set {
    pub fn new(machine: &Rc<Machine>) -> io::Result<Set> {
        let mut state = machine.state.borrow_mut();
        if state.refuse_new.0 > 0 {
            state.refuse_new.0 -= 1;
            state.refusals += 1;
            return Err(io::Error::from_raw_os_error(state.refuse_new.1));
        }
        let mut numbers = Vec::new();
        for kind in [Kind::Set(BTreeMap::new()), Kind::Eventfd, Kind::Eventfd, Kind::Eventfd] {
            match state.open(kind) {
                Ok(fd) => numbers.push(fd),
                Err(error) => {
                    state.refusals += 1;
                    numbers.into_iter().for_each(|fd| state.close(fd).expect("just opened"));
                    return Err(error);
                }
            }
        }
        let numbers: [RawFd; 4] = numbers.try_into().expect("one for each");
        let files = numbers.map(|fd| state.file(fd).expect("just opened"));
        let [set, notifier, timer, waker] = numbers;
        let refusals = (std::mem::take(&mut state.accept_add), std::mem::take(&mut state.refuse_add));
        state.control(set, Operation::Add, notifier, NOTIFIER_KEY, 0)?;
        state.control(set, Operation::Add, timer, NOTIFIER_KEY, 0)?;
        state.control(set, Operation::Add, waker, WAKER_KEY, IN | ET)?;
        (state.accept_add, state.refuse_add) = refusals;
        let forks = state.forks();
        Ok(Set { machine: Rc::clone(machine), numbers, files, forks, abandoned: Cell::new(false) })
    }

    pub fn number(&self) -> RawFd {
        self.numbers[0]
    }

    pub fn files(&self) -> [FileId; 4] {
        self.files
    }

    pub fn waker(&self) -> RawFd {
        self.numbers[3]
    }

    /// Whether the numbers stand for what this process made.
    pub fn is_usable(&self) -> bool {
        let state = self.machine.state.borrow();
        let is_own = self.forks == state.forks();
        is_own && self.numbers.iter().zip(self.files).all(|(fd, file)| state.file(*fd) == Some(file))
    }

    fn control(&self, operation: Operation, fd: RawFd, key: u64, events: u32) -> io::Result<()> {
        if key >> 63 != 0 && fd != self.waker() {
            self.machine.fail("a key that the poller keeps for itself");
        }
        self.machine.state.borrow_mut().control(self.number(), operation, fd, key, events)
    }

    fn close(&self, count: usize) {
        let [set, notifier, timer, waker] =
            [0, 1, 2, 3].map(|index| (self.numbers[index], self.files[index]));
        for (fd, file) in [set, waker, notifier, timer].into_iter().take(count) {
            let mut state = self.machine.state.borrow_mut();
            if state.file(fd) == Some(file) {
                state.close(fd).expect("it is open");
            } else {
                drop(state);
                self.machine.fail("a descriptor of the program is closed");
            }
        }
    }
}

/// What `polling` asks for, or the poller itself.
fn flags(interest: Interest, priority: u32) -> u32 {
    if interest.exclusive {
        return IN | EXCLUSIVE;
    }
    let readable = if interest.readable { IN | priority } else { 0 };
    readable | if interest.writable { OUT } else { 0 }
}

impl Kernel for Set {
    fn renew(&self) -> io::Result<Set> {
        Set::new(&self.machine)
    }

    fn is_inherited(&self) -> bool {
        // Other threads run at any time. The loop calls this right before it begins a wait.
        self.machine.catch_up();
        self.machine.state.borrow().forks() != self.forks
    }

    fn is_intact(&self) -> bool {
        if self.abandoned.get() {
            return false;
        }
        match self.control(Operation::Add, self.waker(), WAKER_KEY, IN | ET) {
            Err(error) => {
                let mut state = self.machine.state.borrow_mut();
                // The mark is read and written back.
                let is_read = error.raw_os_error() == Some(libc::EEXIST) && state.write(self.waker()).is_ok();
                is_read && state.file(self.waker()) == Some(self.files[3])
            }
            Ok(()) => {
                self.control(Operation::Delete, self.waker(), 0, 0).expect("it is in");
                false
            }
        }
    }

    fn is_own(&self, fd: RawFd) -> bool {
        self.numbers.contains(&fd)
    }

    fn abandon(&self) {
        self.abandoned.set(true);
    }

    fn add(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        self.control(Operation::Add, fd, key as u64, flags(interest, PRI))
    }

    fn modify(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        self.control(Operation::Modify, fd, key as u64, flags(interest, PRI))
    }

    fn delete(&self, fd: RawFd) -> io::Result<()> {
        self.control(Operation::Delete, fd, 0, 0)
    }

    fn mask_priority(&self, fd: RawFd, key: usize, interest: Interest) -> io::Result<()> {
        self.control(Operation::Modify, fd, key as u64, flags(interest, 0))
    }
}

impl Wait for Set {
    fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        self.machine.set_waker(self.waker());
        events.fill(false, &[]);
        let limit = timeout.map(|timeout| timeout.as_nanos() as u64);
        let (reported, interrupted) = self.machine.wait(self.number(), limit)?;
        events.fill(interrupted, &reported);
        Ok(())
    }

    fn wake(&self) -> io::Result<()> {
        self.machine.state.borrow_mut().write(self.waker())
    }

    fn yield_now(&self) {
        simulated::advance(YIELD);
        self.machine.set_waker(self.waker());
        self.machine.catch_up();
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        match (self.is_intact(), self.is_inherited()) {
            (true, false) => self.close(4),
            (true, true) => self.close(2),
            (false, _) => {}
        }
    }
}
