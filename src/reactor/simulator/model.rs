//! Runs a program on the miniature event loop, and checks after each step what the reactor guarantees.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;

use super::super::clock::simulated;
use super::super::poller::Interest;
use super::super::timers::TimerKey;
use super::event_loop::{EventLoop, Polled};
use super::machine::{ERR, EXCLUSIVE, FileId, HUP, Happening, IN, Kind, Machine, OUT};
use super::program::{Direction, Step};

/// The clock moves by this many nanoseconds with each reading.
const CLOCK_STEP: u64 = 200;
/// The most iterations between two polls.
const MOST_SKIPPED: u32 = 128;
/// The most spins in a row without a poll.
const MAX_WITHOUT_POLL: u32 = 8;

/// What is known of a watched number.
#[derive(Debug, Default)]
struct Entry {
    /// The file that it stood for when the kernel was asked last.
    file: Option<FileId>,
    /// Whether the kernel took that request and the number was not closed since. If not, no event is guaranteed.
    taken: bool,
    wanted: Interest,
    is_transport: bool,
    /// Polls in a row that did not report a ready descriptor.
    owed: u32,
    /// Whether another file went to the number, and the former one came back while it was registered. Both then have the
    /// entry's key, which the kernel does not tell.
    has_come_back: bool,
    /// The file that the number stood for when the registry made the present set.
    renewed: Option<FileId>,
}

pub struct Model {
    event_loop: EventLoop,
    machine: Rc<Machine>,
    entries: BTreeMap<RawFd, Entry>,
    /// By deadline, as the bits of a positive float are in order, and by number.
    timers: BTreeMap<(u64, u32), TimerKey>,
    started: u32,
    collected: u32,
    /// Polls in a row whose events notified no watch.
    unclaimed: u32,
    /// Waits in a row that were over before any timer was due.
    early: u32,
    /// How many polls the kernel had seen by the last check.
    reports: u64,
    /// Waits in a row since that did not poll.
    without_poll: u32,
    /// The files of the set.
    set: [FileId; 4],
}

type Checked = Result<(), String>;

fn check(holds: bool, broken: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(broken()) }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::ENOMEM | libc::EMFILE))
}

/// Runs a program.
pub fn run(program: &[Step]) -> Checked {
    simulated::start(CLOCK_STEP);
    let machine = Machine::new();
    let mut model = Model {
        event_loop: EventLoop::new(&machine),
        machine,
        entries: BTreeMap::new(),
        timers: BTreeMap::new(),
        started: 0,
        collected: 0,
        unclaimed: 0,
        early: 0,
        reports: 0,
        without_poll: 0,
        set: [0; 4],
    };
    let result = program.iter().try_for_each(|step| model.step(*step)).and_then(|()| model.end());
    simulated::stop();
    result
}

impl Model {
    fn step(&mut self, step: Step) -> Checked {
        self.perform(step)?;
        self.machine.catch_up();
        self.check()
    }

    /// At the end, all messages have been received, and the parents' sets are unchanged.
    fn end(mut self) -> Checked {
        for _ in 0..4 {
            self.step(Step::Signal(0))?;
            self.step(Step::Iterate(false))?;
        }
        drop(self.event_loop);
        let state = self.machine.state.borrow();
        check(state.parents_are_unharmed(), || "a parent's set was changed".to_owned())?;
        state.failure.clone().map_or(Ok(()), Err)
    }

    /// An open descriptor of the program.
    fn own(&self, which: usize) -> Option<RawFd> {
        let state = self.machine.state.borrow();
        let own: Vec<_> =
            state.numbers().filter(|(_, file)| !state.is_loops(*file)).map(|(fd, _)| fd).collect();
        (!own.is_empty()).then(|| own[which % own.len()])
    }

    /// A number that is watched, open or not; or one of the program's own.
    fn used(&self, which: usize) -> Option<RawFd> {
        let state = self.machine.state.borrow();
        let is_loops = |fd: &RawFd| state.file(*fd).is_some_and(|file| state.is_loops(file));
        let watched: Vec<_> = self.entries.keys().copied().filter(|fd| !is_loops(fd)).collect();
        if which.is_multiple_of(2) || watched.is_empty() {
            self.own(which / 2)
        } else {
            Some(watched[which / 2 % watched.len()])
        }
    }

    fn file(&self, fd: RawFd) -> Option<FileId> {
        self.machine.state.borrow().file(fd)
    }

    fn perform(&mut self, step: Step) -> Checked {
        let machine = Rc::clone(&self.machine);
        let state = || machine.state.borrow_mut();
        match step {
            Step::Open => _ = state().open(Kind::Socket),
            Step::OpenRegular => _ = state().open(Kind::Regular),
            Step::Duplicate(which) => {
                if let Some(fd) = self.own(which) {
                    let _ = state().duplicate(fd, None);
                }
            }
            Step::DuplicateTo(which, to) => {
                if let (Some(fd), Some(to)) = (self.own(which), self.own(to)) {
                    let _ = state().duplicate(fd, Some(to));
                    self.distrust(to);
                }
            }
            Step::DuplicateToNumber(which, to) => {
                if let Some(fd) = self.own(which) {
                    let _ = state().duplicate(fd, Some(to));
                    self.distrust(to);
                }
            }
            Step::Close(which) => {
                if let Some(fd) = self.own(which) {
                    let _ = state().close(fd);
                    self.distrust(fd);
                }
            }
            Step::Change(which, ready, delay) => {
                if let Some(file) = self.own(which).and_then(|fd| self.file(fd)) {
                    machine.schedule(delay, Happening::Change(file, ready));
                }
            }
            Step::Watch(which, direction) => {
                if let Some(fd) = self.used(which) {
                    return self.watch(fd, direction);
                }
            }
            Step::Unwatch(which, direction) => {
                if let Some(fd) = self.used(which) {
                    self.unwatch(fd, direction);
                }
            }
            Step::Take(which, direction) => {
                if let Some(fd) = self.used(which)
                    && let Some(entry) = self.entries.get_mut(&fd).filter(|entry| !entry.is_transport)
                {
                    *toward(&mut entry.wanted, direction) = false;
                    self.event_loop.take_waiter(fd, direction);
                }
            }
            Step::Attach(which) => {
                if let Some(fd) = self.own(which) {
                    self.note_return(fd);
                    let has_come_back = self.entries.get(&fd).is_some_and(|entry| entry.has_come_back);
                    let wanted = self.event_loop.attach(fd);
                    let entry = Entry {
                        file: self.file(fd),
                        taken: true,
                        wanted,
                        is_transport: true,
                        has_come_back,
                        ..Entry::default()
                    };
                    self.entries.insert(fd, entry);
                }
            }
            Step::Detach(which) => {
                if let Some(fd) = self.used(which)
                    && self.entries.get(&fd).is_some_and(|entry| entry.is_transport)
                {
                    self.event_loop.detach(fd);
                    self.entries.remove(&fd);
                }
            }
            Step::SetInterest(which, interest) => {
                if let Some(fd) = self.used(which) {
                    self.set_interest(fd, interest);
                }
            }
            Step::StartTimer(delay) => {
                let deadline = (simulated::nanoseconds() + delay) as f64 / 1e9;
                let key = self.event_loop.timers.insert(deadline, self.started);
                self.timers.insert((deadline.to_bits(), self.started), key);
                self.started += 1;
            }
            Step::CancelTimer(which) => {
                let timer = self.timers.keys().nth(which % self.timers.len().max(1)).copied();
                if let Some(key) = timer.and_then(|timer| self.timers.remove(&timer)) {
                    let removed = self.event_loop.timers.remove(key);
                    check(removed == timer.map(|timer| timer.1), || {
                        "another timer was cancelled".to_owned()
                    })?;
                }
            }
            Step::Send(delay, wake) => machine.schedule(delay, Happening::Send(wake)),
            Step::Signal(delay) => machine.schedule(delay, Happening::Signal),
            Step::Callbacks(count) => self.event_loop.callbacks += count,
            Step::RequestPoll => self.event_loop.poll_policy.request_poll(),
            Step::Iterate(spins) => return self.iterate(spins),
            Step::Chatter(count) => {
                for _ in 0..count {
                    machine.schedule(2_000, Happening::Send(0));
                    self.iterate(true)?;
                }
            }
            Step::RefuseAdd(count, error) => state().refuse_add = (count, error),
            Step::RefuseNew(count, error) => state().refuse_new = (count, error),
            Step::Width(width) => state().width = width,
            Step::Fork => state().fork(),
            Step::CloseAll => {
                let numbers: Vec<_> = state().numbers().map(|(fd, _)| fd).collect();
                for fd in numbers {
                    let _ = state().close(fd);
                    self.distrust(fd);
                }
            }
            Step::Age(left) => {
                // Only while the set has nothing but the waker, the notifier and the timer: generations must not come again
                // while the kernel has a key with one.
                if self.machine.state.borrow().registrations() == 3 {
                    self.event_loop.registry.age(left);
                }
            }
        }
        Ok(())
    }

    /// The kernel is about to be asked for a number.
    fn note_return(&mut self, fd: RawFd) {
        let state = self.machine.state.borrow();
        let set = self.event_loop.registry.poller().number();
        if let Some(entry) = self.entries.get_mut(&fd)
            && state.registration(set, fd).is_some()
            && entry.file != state.file(fd)
        {
            entry.has_come_back = true;
        }
    }

    /// The program has closed a watched number: no event is guaranteed any more.
    fn distrust(&mut self, fd: RawFd) {
        if let Some(entry) = self.entries.get_mut(&fd) {
            entry.taken = false;
        }
    }

    // --- What the program asks for ---

    fn watch(&mut self, fd: RawFd, direction: Direction) -> Checked {
        // After an error the registry may write to the waker to see whether it is there.
        self.early = 0;
        let refusals = self.machine.state.borrow().refusals;
        self.note_return(fd);
        let result = self.event_loop.add_waiter(fd, direction);
        let file = self.file(fd);
        let state = self.machine.state.borrow();
        if self.entries.get(&fd).is_some_and(|entry| entry.is_transport) {
            return check(result.is_err(), || format!("{fd} belongs to a transport"));
        }
        match result {
            Ok(()) => {
                check(state.is_watchable(fd), || format!("{fd} can't be watched"))?;
                let entry = self.entries.entry(fd).or_default();
                *toward(&mut entry.wanted, direction) = true;
                (entry.file, entry.taken, entry.owed) = (file, true, 0);
            }
            Err(error) => {
                let excused = !state.is_watchable(fd) || state.refusals > refusals || is_shortage(&error);
                check(excused, || format!("{fd} is refused: {error}"))?;
                if self.event_loop.registry.find(fd).is_none() {
                    self.entries.remove(&fd);
                } else if let Some(entry) = self.entries.get_mut(&fd) {
                    (entry.file, entry.taken) = (file, false);
                }
            }
        }
        Ok(())
    }

    fn unwatch(&mut self, fd: RawFd, direction: Direction) {
        self.note_return(fd);
        let Some(entry) = self.entries.get_mut(&fd).filter(|entry| !entry.is_transport) else { return };
        *toward(&mut entry.wanted, direction) = false;
        self.early = 0;
        let asked = self.event_loop.remove_waiter(fd, direction);
        self.note(fd, asked);
        if self.event_loop.registry.find(fd).is_none() {
            self.entries.remove(&fd);
        }
    }

    fn set_interest(&mut self, fd: RawFd, interest: Interest) {
        if !self.entries.get(&fd).is_some_and(|entry| entry.is_transport) {
            return;
        }
        self.early = 0;
        self.note_return(fd);
        let asked = self.event_loop.set_interest(fd, interest);
        if let Some(entry) = self.entries.get_mut(&fd)
            && asked.as_ref().is_none_or(|result| result.is_ok())
        {
            entry.wanted = interest;
        }
        self.note(fd, asked);
    }

    /// Records the kernel's answer, if it was asked.
    fn note(&mut self, fd: RawFd, asked: Option<io::Result<()>>) {
        let file = self.file(fd);
        if let (Some(result), Some(entry)) = (asked, self.entries.get_mut(&fd)) {
            (entry.file, entry.taken, entry.owed) = (file, result.is_ok(), 0);
        }
    }

    // --- Iterations ---

    fn iterate(&mut self, spins: bool) -> Checked {
        // Unclaimed events make the registry ask the kernel, too.
        let numbers: Vec<_> = self.entries.keys().copied().collect();
        numbers.into_iter().for_each(|fd| self.note_return(fd));
        let refusals = self.machine.state.borrow().refusals;
        let polled = match self.event_loop.iterate(spins) {
            Ok(polled) => polled,
            Err(error) => {
                let state = self.machine.state.borrow();
                return check(is_shortage(&error) || state.refusals > refusals, || {
                    format!("a wait failed: {error}")
                });
            }
        };
        let skipped = self.event_loop.skipped;
        check(skipped <= MOST_SKIPPED, || format!("{skipped} iterations without a poll"))?;
        let fired = self.check_timers()?;
        self.check_messages()?;
        let Some(polled) = polled else { return Ok(()) };
        self.early = if polled.timed_out && !fired { self.early + 1 } else { 0 };
        check(self.early < 3, || "waits end before their timer is due".to_owned())?;
        self.check_notified(&polled)
    }

    /// Timers fire when they are due, in order. Returns whether any did.
    fn check_timers(&mut self) -> Result<bool, String> {
        let now = simulated::nanoseconds() as f64 / 1e9;
        let fired = std::mem::take(&mut self.event_loop.fired);
        for timer in &fired {
            let first = self.timers.pop_first().ok_or("a timer fires that was not started")?;
            check(first.0.1 == *timer, || format!("timer {timer} fires before {}", first.0.1))?;
            check(f64::from_bits(first.0.0) <= now + 1e-9, || format!("timer {timer} fires early"))?;
        }
        Ok(!fired.is_empty())
    }

    /// Messages come once each and in order.
    fn check_messages(&mut self) -> Checked {
        for message in std::mem::take(&mut self.event_loop.run) {
            check(message == self.collected, || format!("message {message} for {}", self.collected))?;
            self.collected += 1;
        }
        Ok(())
    }

    fn check_notified(&mut self, polled: &Polled) -> Checked {
        self.note_renewal();
        let state = self.machine.state.borrow();
        // Stale registrations stay for a while if the set to replace theirs was refused.
        let excused = self.event_loop.keeps_stale;
        for notified in &polled.notified {
            let entry =
                self.entries.get(&notified.fd).ok_or_else(|| format!("{} is not watched", notified.fd))?;
            let (of, flags) = state.reported[notified.event];
            check(
                excused
                    || entry.has_come_back
                    || [entry.file, entry.renewed].contains(&Some(of))
                    || state.file(notified.fd) == Some(of),
                || format!("{} gets an event of a former file: {notified:?} {entry:?}", notified.fd),
            )?;
            let truly = |flag: u32| flags & (flag | HUP | ERR) != 0;
            check((!notified.readable || truly(IN)) && (!notified.writable || truly(OUT)), || {
                format!("{notified:?} is not ready for that")
            })?;
        }
        self.unclaimed =
            if polled.events == 0 || !polled.notified.is_empty() || excused { 0 } else { self.unclaimed + 1 };
        let most = 3 * self.entries.len() as u32 + 8;
        check(self.unclaimed <= most, || format!("{} polls whose events notify no watch", self.unclaimed))?;
        let not_polled = std::mem::replace(&mut self.reports, state.reports) == state.reports;
        self.without_poll = if not_polled { self.without_poll + 1 } else { 0 };
        check(self.without_poll < MAX_WITHOUT_POLL, || {
            format!("{} spins without a poll", self.without_poll)
        })?;
        if not_polled {
            return Ok(());
        }
        let patience = state.registrations() / state.width as u32 + 4;
        for (fd, entry) in &mut self.entries {
            let Some(file) = state.file(*fd).filter(|file| entry.taken && entry.file == Some(*file)) else {
                entry.owed = 0;
                continue;
            };
            let is_due = |wanted: bool, flag: u32| wanted && state.ready(file) & (flag | HUP | ERR) != 0;
            let due = is_due(entry.wanted.readable, IN) || is_due(entry.wanted.writable, OUT);
            let notified = polled.notified.iter().any(|notified| notified.fd == *fd);
            entry.owed = if due && !notified { entry.owed + 1 } else { 0 };
            check(entry.owed <= patience, || format!("{fd} is ready, without an event: {entry:?}"))?;
        }
        Ok(())
    }

    /// If the registry has another set, it has registered all entries again.
    fn note_renewal(&mut self) {
        let files = self.event_loop.registry.poller().files();
        if files != self.set {
            self.set = files;
            let state = self.machine.state.borrow();
            self.entries.iter_mut().for_each(|(fd, entry)| entry.renewed = state.file(*fd));
        }
    }

    /// What must hold at all times.
    fn check(&mut self) -> Checked {
        self.note_renewal();
        if let Some(failure) = &self.machine.state.borrow().failure {
            return Err(failure.clone());
        }
        let registry = &self.event_loop.registry;
        let set = registry.poller();
        // The loop removes idle entries.
        self.entries.retain(|fd, _| registry.find(*fd).is_some());
        if !set.is_usable() {
            return Ok(());
        }
        let state = self.machine.state.borrow();
        for (fd, entry) in &self.entries {
            if !entry.taken || entry.file.is_none() || state.file(*fd) != entry.file {
                continue;
            }
            let token = registry.find(*fd).ok_or_else(|| format!("{fd} is lost"))?;
            let registered = registry.registered(token);
            let covers = (registered.readable || !entry.wanted.readable)
                && (registered.writable || !entry.wanted.writable);
            check(covers, || format!("{fd} wants more than {registered:?}: {entry:?}"))?;
            // A registration whose key does not resolve is stale. It has no other effect than to be removed.
            let kernels = state.registration(set.number(), *fd).map_or(Interest::NONE, |registration| {
                let is_own =
                    registry.resolve(registration.key as usize).is_some_and(|found| found.0 == token);
                let asked = |flag: u32| is_own && registration.events & flag != 0;
                Interest { readable: asked(IN), writable: asked(OUT), exclusive: asked(EXCLUSIVE) }
            });
            check(registered == kernels, || format!("{fd}: {registered:?} for {kernels:?}: {entry:?}"))?;
        }
        Ok(())
    }
}

fn toward(interest: &mut Interest, direction: Direction) -> &mut bool {
    match direction {
        Direction::Read => &mut interest.readable,
        Direction::Write => &mut interest.writable,
    }
}
