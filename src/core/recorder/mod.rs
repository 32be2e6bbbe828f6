//! The flight recorder: what the loop did last, in records of 32 bytes. [`Accounts`] of the same callbacks are kept beside.
//!
//! It records and does not interpret: `hotloop._observing.tracing` reads the records, whose layout is that of [`Kind`]. A record has
//! four words: the time in ticks, two words that depend on the kind, and a last one with the kind in its lowest 8 bits, flags in the
//! next 8, and a number in its upper half.
//!
//! Who has queued a callback is not recorded, it follows: each record of a callback has the end of the queue from before, so that
//! the positions from there to the end that the next record has are those that it has queued.

pub mod accounts;
mod names;

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::{Core, ReadyEntry};
use crate::cpython::borrowing::StateCell;
use crate::cpython::identity::class_of;
use crate::cpython::object::Object;
use crate::handle::{TaskStep, is_step, is_wakeup_class, known_task_of, task_of};
use crate::imports::imports;
use crate::intern;
use crate::reactor::breakdown::Breakdown;
use crate::reactor::clock::{self, Instant};
use crate::reactor::ring::{Record, Ring};
use accounts::Accounts;
pub use names::{Names, UNNAMED};

/// Seconds between two countings, at the least.
const COUNTING: f64 = 10e-3;
/// And for each open transport, as each is looked at.
const COUNTING_EACH: f64 = 10e-6;

/// A functools.partial is named by its function. One can be made its own function, so that this has to end.
const PARTIALS: usize = 8;

/// What a record is of. `number` is the upper half of the last word.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A run of the loop has begun. The first word is the thread's identifier.
    RunBegan = 1,
    RunEnded,
    /// A callback has begun. The words are the address of the task, or 0, and the position with, in the upper half, the end of the
    /// queue. The flags are a [`Sort`], [`FIRST`] and [`NEW`]; the number is its name.
    Callback,
    /// What was written is sent, by as many transports as the number says.
    Sending,
    /// The descriptors were polled. The words are when that had ended, in ticks, and the end of the queue before and, in the upper
    /// half, after it. The flags are [`WAITED`] and [`WOKEN`]; the number is that of the events.
    Poll,
    /// A descriptor was found ready. The words are its number and the position of what that has queued; the flags are [`READABLE`] and
    /// [`WRITABLE`].
    Ready,
    /// A timer was due. The words are how late it was, in ticks, and its position.
    Timer,
    /// An entry of another thread was queued. The time is when it was pushed, the second word its position.
    Injected,
    /// A connection was accepted or made, or a transport was made or closed. The first word is the descriptor; of a transport, the
    /// number is the name of the protocol's class.
    Accepted,
    Connected,
    Opened,
    Closed,
    /// The words are how many bytes wait to be sent, and how many transports there are. The number is that of ready callbacks.
    Counts,
    /// A callback has ended that the watchdog had noticed. The words are the processor time and the wait for the GIL, the time without a
    /// processor and that asleep (see [`parts`]); the number is how many microseconds after the iteration it began.
    Blocked,
    /// An iteration has ended that the watchdog had noticed. The words are as for a callback; the number is that of its callbacks.
    LongIteration,
}

/// The sort of an entry of the ready queue, in the flags of a callback.
#[derive(Clone, Copy)]
pub enum Sort {
    Callback,
    Timer,
    FromThread,
    Task,
    Step,
    Event,
}

/// The callback is the first of an iteration.
pub const FIRST: u8 = 1 << 7;
/// The task was not known: a former one of that address is gone.
pub const NEW: u8 = 1 << 6;
pub const WAITED: u8 = 1;
pub const WOKEN: u8 = 2;
pub const READABLE: u8 = 1;
pub const WRITABLE: u8 = 2;

/// What the recorder asks of transports, which it does not know.
#[derive(Clone, Copy)]
pub struct Transports {
    /// The protocol of a transport. None for another object.
    pub protocol: fn(&Object) -> Option<Object>,
    /// How many bytes a transport has still to send.
    pub queued_size: fn(&Object) -> usize,
}

#[derive(Default)]
pub struct Recorder {
    pub names: Names,
    pub accounts: Accounts,
    transports: Cell<Option<Transports>>,
    /// None while nothing is recorded.
    ring: StateCell<Option<Arc<Ring>>>,
    /// The same, for other threads.
    shared: Mutex<Option<Arc<Ring>>>,
    /// When the last counting was, in seconds.
    counted: Cell<f64>,
}

/// A callback that is about to run.
#[derive(Clone, Copy)]
pub struct Beginning {
    pub ticks: u64,
    /// How long the callback was ready, in ticks; known while there are accounts.
    pub delay: u64,
    pub position: u64,
    pub queue_end: u64,
    pub is_first: bool,
}

fn last_word(kind: Kind, flags: u8, number: usize) -> u64 {
    kind as u64 | u64::from(flags) << 8 | (number.min(u32::MAX as usize) as u64) << 32
}

fn account_kind(flags: u8) -> accounts::Kind {
    match flags & !(FIRST | NEW) {
        sort if sort == Sort::Task as u8 => accounts::Kind::Task,
        sort if sort == Sort::Step as u8 || sort == Sort::Event as u8 => accounts::Kind::Protocol,
        _ => accounts::Kind::Callback,
    }
}

/// Two positions as one word.
fn both(first: u64, second: u64) -> u64 {
    first & 0xffff_ffff | second << 32
}

/// Two parts of a duration as one word, in microseconds; all bits are set in the half of one that is not known.
fn parts(first: Option<f64>, second: Option<f64>) -> u64 {
    let part = |seconds: Option<f64>| seconds.map_or(u32::MAX, |seconds| (seconds * 1e6) as u32);
    both(u64::from(part(first)), u64::from(part(second)))
}

impl Recorder {
    pub fn set_transports(&self, transports: Transports) {
        self.transports.set(Some(transports));
    }

    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.ring.borrow().is_some()
    }

    /// Starts with an empty ring, or stops for None.
    pub fn set_ring(&self, ring: Option<Ring>) {
        let ring = ring.map(Arc::new);
        let mut shared = self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shared.clone_from(&ring);
        drop(shared);
        self.counted.set(0.0);
        self.ring.replace(ring);
    }

    /// The ring, for any thread.
    pub fn shared_ring(&self) -> Option<Arc<Ring>> {
        self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Leaves out what a process has recorded from which this one was forked.
    pub fn forget(&self) {
        if let Some(ring) = &*self.ring.borrow() {
            ring.forget();
        }
    }

    #[inline(always)]
    fn push(&self, record: Record) {
        if let Some(ring) = &*self.ring.borrow() {
            ring.push(record);
        }
    }

    /// Records something that belongs to a descriptor.
    #[inline(always)]
    pub fn note(&self, kind: Kind, fd: RawFd) {
        if self.is_on() {
            self.note_now(kind, fd as u64, 0, UNNAMED as usize);
        }
    }

    #[cold]
    fn note_now(&self, kind: Kind, first: u64, second: u64, number: usize) {
        self.push([clock::ticks(), first, second, last_word(kind, 0, number)]);
    }

    /// Records that a transport was made or closed. The first time for a class of protocols, Python code can run.
    #[inline(always)]
    pub fn note_transport(
        &self,
        py: Python<'_>,
        kind: Kind,
        fd: RawFd,
        protocol: Option<Object>,
    ) -> PyResult<()> {
        if !self.is_on() {
            return Ok(());
        }
        let named = protocol.map_or(Ok(UNNAMED), |protocol| self.names.of_class(py, &protocol));
        // A class that cannot be named is no reason for a transport not to be made.
        let (name, error) = match named {
            Ok(name) => (name, None),
            Err(error) => (UNNAMED, (!error.is_instance_of::<PyException>(py)).then_some(error)),
        };
        self.note_now(kind, fd as u64, 0, name as usize);
        error.map_or(Ok(()), Err)
    }

    pub fn note_run(&self, kind: Kind, thread: u64) {
        if self.is_on() {
            self.note_now(kind, thread, 0, 0);
        }
    }

    pub fn note_sending(&self, transports: usize) {
        if self.is_on() {
            self.note_now(Kind::Sending, 0, 0, transports);
        }
    }

    /// Records that a callback has blocked the loop, which began `before` seconds after the iteration.
    pub fn note_blocked(&self, before: f64, breakdown: Breakdown) {
        self.note_late(Kind::Blocked, (before * 1e6) as usize, breakdown);
    }

    pub fn note_long_iteration(&self, callbacks: u64, breakdown: Breakdown) {
        self.note_late(Kind::LongIteration, callbacks as usize, breakdown);
    }

    fn note_late(&self, kind: Kind, number: usize, breakdown: Breakdown) {
        if self.is_on() {
            let Breakdown { processor, waiting_for_gil, not_scheduled, asleep } = breakdown;
            let first = parts(processor, waiting_for_gil);
            self.note_now(kind, first, parts(not_scheduled, asleep), number);
        }
    }

    /// `queue`: its end before the poll and after it.
    pub fn note_poll(&self, began: u64, ended: u64, queue: [u64; 2], flags: u8, events: usize) {
        self.push([began, ended, both(queue[0], queue[1]), last_word(Kind::Poll, flags, events)]);
    }

    #[inline(always)]
    pub fn note_ready(&self, ticks: u64, fd: RawFd, position: u64, flags: u8) {
        self.push([ticks, fd as u64, position, last_word(Kind::Ready, flags, 0)]);
    }

    #[inline(always)]
    pub fn note_timer(&self, ticks: u64, lateness: u64, position: u64) {
        self.push([ticks, lateness, position, last_word(Kind::Timer, 0, 0)]);
    }

    #[inline(always)]
    pub fn note_injected(&self, pushed_at: u64, position: u64) {
        self.push([pushed_at, 0, position, last_word(Kind::Injected, 0, 0)]);
    }

    /// Records that a callback begins, if its name is at hand. `ACCOUNTS`: whether there may be accounts; otherwise, the ring records.
    #[inline(always)]
    pub fn note_known<const ACCOUNTS: bool>(
        &self,
        py: Python<'_>,
        entry: &ReadyEntry,
        beginning: Beginning,
    ) -> bool {
        let (sort, task, name) = match entry {
            ReadyEntry::Handle(handle) => (Sort::Callback, 0, self.names.find_callback(handle.identity())),
            ReadyEntry::Timer(timer) => (Sort::Timer, 0, self.names.find_callback(timer.handle().identity())),
            ReadyEntry::Task(step) => {
                let Some(task) = known_task_of(py, &step.callback) else { return false };
                if ACCOUNTS && !self.is_on() {
                    return self.count_known(py, step, &task, beginning);
                }
                let address = task.as_ptr() as usize;
                (Sort::Task, address, self.names.find_task(address))
            }
            _ => return false,
        };
        let Some(name) = name else { return false };
        if !ACCOUNTS {
            self.push_record(beginning, sort as u8, task, name);
            return true;
        }
        if task != 0 && self.accounts.wants_chain(name) {
            return false;
        }
        self.push_callback(beginning, sort as u8, task, name, false);
        true
    }

    /// Counts a step, if its name is at hand. While only accounts are kept, tasks need not be known.
    #[inline(always)]
    fn count_known(&self, py: Python<'_>, step: &TaskStep, task: &Object, beginning: Beginning) -> bool {
        // A wake-up is not the first step.
        let Some((name, has_started)) = self.names.find_coroutine(py, task, step.future.is_none()) else {
            return false;
        };
        self.accounts.begin_step(beginning.ticks, beginning.delay, name, has_started == Some(false))
    }

    /// Records that a callback begins. The first time for its name, Python code can run.
    pub fn note_callback(&self, py: Python<'_>, entry: &ReadyEntry, beginning: Beginning) -> PyResult<()> {
        if self.note_known::<true>(py, entry, beginning) {
            Ok(())
        } else {
            self.note_named(py, entry, beginning)
        }
    }

    /// As [`Recorder::note_callback`], for any entry. Only KeyboardInterrupt and SystemExit are errors.
    #[inline(never)]
    pub fn note_named(&self, py: Python<'_>, entry: &ReadyEntry, beginning: Beginning) -> PyResult<()> {
        self.name_and_note(py, entry, beginning).or_else(|error| {
            if !error.is_instance_of::<PyException>(py) {
                return Err(error);
            }
            // Out of memory, for example.
            self.push_callback(beginning, Sort::Callback as u8, 0, UNNAMED, false);
            Ok(())
        })
    }

    fn name_and_note(&self, py: Python<'_>, entry: &ReadyEntry, beginning: Beginning) -> PyResult<()> {
        let (sort, subject) = match entry {
            ReadyEntry::Task(step) => return self.note_task(py, &step.callback, beginning),
            ReadyEntry::Handle(handle) => (Sort::Callback, handle.callback(handle.this(py))),
            ReadyEntry::Timer(timer) => (Sort::Timer, timer.handle().callback(timer.this(py))),
            ReadyEntry::ThreadSafe(handle) => (Sort::FromThread, handle.handle().callback(handle.this(py))),
            ReadyEntry::Unheld(unheld) => (Sort::FromThread, Some(unheld.callback.clone())),
            ReadyEntry::PythonHandle(handle) => {
                let callback = handle.bind(py).getattr_opt(intern!(py, "_callback"))?;
                (Sort::Callback, callback.map(Object::from))
            }
            ReadyEntry::Step(step) | ReadyEntry::Finalize(step) => {
                (Sort::Step, Some(step.instance().clone()))
            }
            ReadyEntry::Event(on_ready, _) => (Sort::Event, Some(on_ready.instance().clone())),
        };
        // A cancelled handle has none.
        let Some(subject) = subject else { return Ok(()) };
        // In debug mode, steps of tasks have handles.
        if !matches!(sort, Sort::Event | Sort::Step) && is_step(py, &subject)? {
            return self.note_task(py, &subject, beginning);
        }
        let name = match sort {
            Sort::Event | Sort::Step => {
                let protocol = self.transports.get().and_then(|transports| (transports.protocol)(&subject));
                self.names.of_class(py, &protocol.unwrap_or(subject))?
            }
            _ => {
                let partial = &imports(py)?.partial;
                let mut callable = subject;
                for _ in 0..PARTIALS {
                    if !class_of(&callable).is(partial) {
                        break;
                    }
                    callable = callable.bind(py).getattr(intern!(py, "func"))?.into();
                }
                self.names.of_callable(py, &callable)?
            }
        };
        self.push_callback(beginning, sort as u8, 0, name, false);
        Ok(())
    }

    fn note_task(&self, py: Python<'_>, step: &Object, beginning: Beginning) -> PyResult<()> {
        let task = task_of(py, step)?;
        let mut address = 0;
        let mut flags = Sort::Task as u8;
        let has_started =
            if self.accounts.is_on() { Some(self.names.name_coroutine_of(py, &task)?) } else { None };
        let name = match has_started {
            Some((name, _)) if !self.is_on() => name,
            _ => {
                address = task.as_ptr() as usize;
                match self.names.find_task(address) {
                    Some(name) => name,
                    None => {
                        flags |= NEW;
                        self.names.name_task(py, &task)?
                    }
                }
            }
        };
        // Python code may have ended the recording.
        let wants_chain = self.accounts.wants_chain(name);
        let is_first = has_started.is_some_and(|(_, started)| !started) && !is_wakeup_class(step);
        self.push_callback(beginning, flags, address, name, is_first);
        if wants_chain {
            self.find_chain(py, &task, name)?;
        }
        Ok(())
    }

    /// Has Python code look up who awaits the task, for [`Accounts`].
    #[cold]
    fn find_chain(&self, py: Python<'_>, task: &Object, name: u32) -> PyResult<()> {
        let hash = self.names.hash_chain(py, task, name);
        if self.accounts.set_known_chain(hash) {
            return Ok(());
        }
        let found = imports(py)?.find_chain.call(py, &[task, &Object::from_size(py, name as usize)?]);
        let chain = found.and_then(|chain| chain.bind(py).extract::<Option<u32>>());
        self.accounts.set_chain(hash, *chain.as_ref().unwrap_or(&None));
        match chain {
            Err(error) if !error.is_instance_of::<PyException>(py) => Err(error),
            // The step counts without its chain.
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn push_callback(&self, beginning: Beginning, flags: u8, task: usize, name: u32, is_first_of_task: bool) {
        if self.accounts.is_on() {
            let kind = account_kind(flags);
            self.accounts.begin(beginning.ticks, beginning.delay, name, kind, is_first_of_task);
        }
        self.push_record(beginning, flags, task, name);
    }

    #[inline(always)]
    fn push_record(&self, beginning: Beginning, flags: u8, task: usize, name: u32) {
        let Beginning { ticks, position, queue_end, is_first, .. } = beginning;
        let flags = flags | if is_first { FIRST } else { 0 };
        let last = Kind::Callback as u64 | u64::from(flags) << 8 | u64::from(name) << 32;
        self.push([ticks, task as u64, both(position, queue_end), last]);
    }
}

impl Core {
    /// The recorder or the accounts have begun or ended.
    pub fn note_recorded(&self) {
        let is_accounted = self.recorder.accounts.is_on();
        self.schedule.set_recorded(self.recorder.is_on() || is_accounted, is_accounted);
    }

    /// Counts what is open, ready and waiting, now and then.
    pub(super) fn note_counts(&self, now: Instant) {
        let Some(transports) = self.recorder.transports.get() else { return };
        let open = self.metrics.transports.get();
        if now.seconds - self.recorder.counted.get() < COUNTING + COUNTING_EACH * open as f64 {
            return;
        }
        self.recorder.counted.set(now.seconds);
        let waiting: usize = match self.watched_objects() {
            Some(objects) => objects.iter().map(transports.queued_size).sum(),
            None => return,
        };
        let last = last_word(Kind::Counts, 0, self.ready_length());
        self.recorder.push([now.ticks, waiting as u64, open as u64, last]);
    }
}
