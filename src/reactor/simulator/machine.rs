//! The simulated kernel: open files, descriptors that stand for them, sets that watch them, a clock, and what happens outside
//! the loop's thread while it waits.
//!
//! It keeps epoll's rules. A registration belongs to a number and an open file together, ends with the file rather than the
//! number, and is reported for as long as the file is ready. Hang-ups and errors are reported unasked. fork() copies the
//! numbers and shares the files, sets among them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;

use super::super::clock::simulated;
use super::super::inject_queue::InjectQueue;

pub const IN: u32 = libc::EPOLLIN as u32;
pub const OUT: u32 = libc::EPOLLOUT as u32;
pub const PRI: u32 = libc::EPOLLPRI as u32;
pub const HUP: u32 = libc::EPOLLHUP as u32;
pub const ERR: u32 = libc::EPOLLERR as u32;
pub const ET: u32 = libc::EPOLLET as u32;
pub const EXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;

/// Numbers from here on are not given out.
const LIMIT: RawFd = 48;

pub type FileId = usize;

pub enum Kind {
    Socket,
    /// A file on a disk, which can't be watched.
    Regular,
    Eventfd,
    Set(BTreeMap<(RawFd, FileId), Registration>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    pub key: u64,
    pub events: u32,
    /// Whether the file has become ready since the last report: all that an edge-triggered registration reports.
    fresh: bool,
}

struct File {
    kind: Kind,
    /// What it is ready for.
    ready: u32,
    /// Descriptors that stand for it, of all processes.
    references: u32,
}

/// What happens outside the loop's thread.
#[derive(Clone, Copy, Debug)]
pub enum Happening {
    /// A peer makes a file ready for this, and for nothing else.
    Change(FileId, u32),
    /// A thread sends a message. If it has to wake the poller, it does so that many nanoseconds later.
    Send(u64),
    Wake,
    Signal,
}

#[derive(Clone, Copy, Debug)]
pub enum Operation {
    Add,
    Modify,
    Delete,
}

#[derive(Default)]
pub struct State {
    files: Vec<File>,
    numbers: BTreeMap<RawFd, FileId>,
    /// The numbers of the processes that this one was forked from, and what their sets had at the fork.
    parents: Vec<BTreeMap<RawFd, FileId>>,
    inherited: Vec<(FileId, Content)>,
    happenings: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    interrupted: bool,
    sent: u32,
    /// The waker of the set that the loop waits on.
    waker: RawFd,
    /// The last registration that was reported: the next report begins after it.
    last: (RawFd, FileId),
    /// How many registrations one wait reports.
    pub width: usize,
    /// How many requests to come are refused, and with which error: to add to a set, and to make one.
    pub refuse_add: (u32, i32),
    /// How many requests to add are accepted before those.
    pub accept_add: u32,
    pub refuse_new: (u32, i32),
    /// How many requests were refused.
    pub refusals: u32,
    /// Files and flags of the events that were reported last.
    pub reported: Vec<(FileId, u32)>,
    /// How many polls there were.
    pub reports: u64,
    pub failure: Option<String>,
}

/// What a set has: the key and the events for each number and file.
type Content = Vec<((RawFd, FileId), u64, u32)>;

pub struct Machine {
    pub state: RefCell<State>,
    pub queue: InjectQueue<u32>,
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Machine {
    pub fn new() -> Rc<Machine> {
        let state = State { width: 64, ..State::default() };
        Rc::new(Machine { state: RefCell::new(state), queue: InjectQueue::default() })
    }

    pub fn fail(&self, failure: &str) {
        self.state.borrow_mut().failure.get_or_insert_with(|| failure.to_owned());
    }

    pub fn schedule(&self, delay: u64, happening: Happening) {
        self.state.borrow_mut().schedule(delay, happening);
    }

    pub fn set_waker(&self, fd: RawFd) {
        self.state.borrow_mut().waker = fd;
    }

    /// Makes everything happen that is due.
    pub fn catch_up(&self) {
        loop {
            let mut state = self.state.borrow_mut();
            let Some(first) = state.happenings.first_entry() else { return };
            if first.key().0 > simulated::nanoseconds() {
                return;
            }
            match first.remove() {
                Happening::Change(file, ready) => state.change(file, ready),
                Happening::Signal => state.interrupted = true,
                Happening::Wake => {
                    let waker = state.waker;
                    let _ = state.write(waker);
                }
                Happening::Send(delay) => {
                    let message = state.sent;
                    state.sent += 1;
                    if self.queue.push(message).unwrap() {
                        state.schedule(delay, Happening::Wake);
                    }
                }
            }
        }
    }

    /// Waits for `limit` nanoseconds at the most, and returns what is reported, and whether a signal came.
    pub fn wait(&self, set: RawFd, limit: Option<u64>) -> io::Result<(Vec<libc::epoll_event>, bool)> {
        let end = limit.map(|limit| simulated::nanoseconds() + limit);
        loop {
            self.catch_up();
            let mut state = self.state.borrow_mut();
            let events = state.report(set)?;
            let interrupted = events.is_empty() && std::mem::take(&mut state.interrupted);
            let now = simulated::nanoseconds();
            if !events.is_empty() || interrupted || end.is_some_and(|end| end <= now) {
                return Ok((events, interrupted));
            }
            let wakes = state.happenings.values().any(|happening| matches!(happening, Happening::Wake));
            if self.queue.has_entries() && !wakes {
                state.failure.get_or_insert_with(|| "a message is missed".to_owned());
            }
            let next = state.happenings.first_key_value().map(|(key, _)| key.0);
            let Some(until) = end.into_iter().chain(next).min() else {
                // Nothing will ever happen: the program ends the wait with a signal.
                return Ok((events, true));
            };
            simulated::advance(until.saturating_sub(now));
        }
    }
}

impl State {
    fn schedule(&mut self, delay: u64, happening: Happening) {
        self.sequence += 1;
        self.happenings.insert((simulated::nanoseconds() + delay, self.sequence), happening);
    }

    /// The file that a number stands for.
    pub fn file(&self, fd: RawFd) -> Option<FileId> {
        self.numbers.get(&fd).copied()
    }

    pub fn ready(&self, file: FileId) -> u32 {
        self.files[file].ready
    }

    /// Whether the program can have a number watched.
    pub fn is_watchable(&self, fd: RawFd) -> bool {
        self.file(fd).is_some_and(|file| matches!(self.files[file].kind, Kind::Socket))
    }

    pub fn numbers(&self) -> impl Iterator<Item = (RawFd, FileId)> {
        self.numbers.iter().map(|(fd, file)| (*fd, *file))
    }

    pub fn open(&mut self, kind: Kind) -> io::Result<RawFd> {
        let fd = (0..LIMIT).find(|fd| !self.numbers.contains_key(fd)).ok_or(error(libc::EMFILE))?;
        self.files.push(File { kind, ready: 0, references: 1 });
        self.numbers.insert(fd, self.files.len() - 1);
        Ok(fd)
    }

    /// dup2(), or dup() without a number to duplicate to.
    pub fn duplicate(&mut self, fd: RawFd, to: Option<RawFd>) -> io::Result<RawFd> {
        let file = self.file(fd).ok_or(error(libc::EBADF))?;
        let free = || (0..LIMIT).find(|fd| !self.numbers.contains_key(fd)).ok_or(error(libc::EMFILE));
        let to = to.map_or_else(free, Ok)?;
        if to != fd {
            let _ = self.close(to);
            self.files[file].references += 1;
            self.numbers.insert(to, file);
        }
        Ok(to)
    }

    pub fn close(&mut self, fd: RawFd) -> io::Result<()> {
        let file = self.numbers.remove(&fd).ok_or(error(libc::EBADF))?;
        self.files[file].references -= 1;
        if self.files[file].references == 0 {
            self.files[file].kind = Kind::Regular;
            for other in &mut self.files {
                if let Kind::Set(registrations) = &mut other.kind {
                    registrations.retain(|(_, watched), _| *watched != file);
                }
            }
        }
        Ok(())
    }

    /// Goes on as the child.
    pub fn fork(&mut self) {
        for file in self.numbers.values() {
            self.files[*file].references += 1;
        }
        self.parents.push(self.numbers.clone());
        for file in self.numbers.values() {
            if matches!(self.files[*file].kind, Kind::Set(_)) {
                let content = self.content(*file);
                self.inherited.push((*file, content));
            }
        }
        // The parent's threads and signals do not reach the child.
        self.happenings.retain(|_, happening| matches!(happening, Happening::Change(..)));
    }

    pub fn forks(&self) -> usize {
        self.parents.len()
    }

    fn content(&self, set: FileId) -> Content {
        let Kind::Set(registrations) = &self.files[set].kind else { return Vec::new() };
        registrations
            .iter()
            .map(|(key, registration)| (*key, registration.key, registration.events))
            .collect()
    }

    /// Whether the sets of all parents are as they were at the fork.
    pub fn parents_are_unharmed(&self) -> bool {
        self.inherited.iter().all(|(set, content)| self.content(*set) == *content)
    }

    /// Whether a file is the loop's own, which the program does not use.
    pub fn is_loops(&self, file: FileId) -> bool {
        matches!(self.files[file].kind, Kind::Set(_) | Kind::Eventfd)
    }

    /// How many registrations there are in the sets of all processes.
    pub fn registrations(&self) -> u32 {
        let sets = self.files.iter().map(|file| match &file.kind {
            Kind::Set(registrations) => registrations.len() as u32,
            _ => 0,
        });
        sets.sum()
    }

    /// What a set has for a number and the file that it stands for.
    pub fn registration(&self, set: RawFd, fd: RawFd) -> Option<Registration> {
        let Kind::Set(registrations) = &self.files[self.file(set)?].kind else { return None };
        registrations.get(&(fd, self.file(fd)?)).copied()
    }

    pub fn change(&mut self, file: FileId, ready: u32) {
        if matches!(self.files[file].kind, Kind::Socket) {
            self.files[file].ready = ready;
        }
    }

    /// Adds to an eventfd, or writes into what else the number stands for.
    pub fn write(&mut self, fd: RawFd) -> io::Result<()> {
        let file = self.file(fd).ok_or(error(libc::EBADF))?;
        if matches!(self.files[file].kind, Kind::Eventfd) {
            self.files[file].ready = IN;
            for other in &mut self.files {
                if let Kind::Set(registrations) = &mut other.kind {
                    let of_file = registrations.iter_mut().filter(|((_, watched), _)| *watched == file);
                    of_file.for_each(|(_, registration)| registration.fresh = true);
                }
            }
        }
        Ok(())
    }

    /// epoll_ctl()
    pub fn control(
        &mut self,
        set: RawFd,
        operation: Operation,
        fd: RawFd,
        key: u64,
        events: u32,
    ) -> io::Result<()> {
        let set_file = self.file(set).ok_or(error(libc::EBADF))?;
        let file = self.file(fd).ok_or(error(libc::EBADF))?;
        if matches!(self.files[file].kind, Kind::Regular) {
            return Err(error(libc::EPERM));
        }
        if file == set_file {
            return Err(error(libc::EINVAL));
        }
        let registration = Registration { key, events, fresh: self.files[file].ready != 0 };
        let Kind::Set(registrations) = &mut self.files[set_file].kind else {
            return Err(error(libc::EINVAL));
        };
        let of = (fd, file);
        match (operation, registrations.contains_key(&of)) {
            (Operation::Add, true) => return Err(error(libc::EEXIST)),
            (Operation::Modify | Operation::Delete, false) => return Err(error(libc::ENOENT)),
            (Operation::Delete, true) => _ = registrations.remove(&of),
            (Operation::Modify, true) => {
                if (events | registrations[&of].events) & EXCLUSIVE != 0 {
                    return Err(error(libc::EINVAL));
                }
                registrations.insert(of, registration);
            }
            (Operation::Add, false) if events & EXCLUSIVE != 0 && events & PRI != 0 => {
                return Err(error(libc::EINVAL));
            }
            (Operation::Add, false) => {
                if self.accept_add > 0 {
                    self.accept_add -= 1;
                } else if self.refuse_add.0 > 0 {
                    self.refuse_add.0 -= 1;
                    self.refusals += 1;
                    return Err(error(self.refuse_add.1));
                }
                registrations.insert(of, registration);
            }
        }
        Ok(())
    }

    /// epoll_wait() without the waiting.
    fn report(&mut self, set: RawFd) -> io::Result<Vec<libc::epoll_event>> {
        let set_file = self.file(set).ok_or(error(libc::EBADF))?;
        let Kind::Set(registrations) = &mut self.files[set_file].kind else {
            return Err(error(libc::EINVAL));
        };
        let mut registrations = std::mem::take(registrations);
        let mut events = Vec::new();
        self.reported.clear();
        self.reports += 1;
        let (after, width) = (self.last, self.width);
        let rotated = |key: &(RawFd, FileId)| (*key <= after, *key);
        let mut keys: Vec<_> = registrations.keys().copied().collect();
        keys.sort_by_key(rotated);
        for key in keys {
            let Some(registration) = registrations.get_mut(&key) else { continue };
            let flags = self.files[key.1].ready & (registration.events | HUP | ERR);
            if events.len() == width || flags == 0 || (registration.events & ET != 0 && !registration.fresh) {
                continue;
            }
            registration.fresh = false;
            events.push(libc::epoll_event { events: flags, u64: registration.key });
            self.last = key;
            if registration.events & ET == 0 {
                self.reported.push((key.1, flags));
            }
        }
        self.files[set_file].kind = Kind::Set(registrations);
        Ok(events)
    }
}
