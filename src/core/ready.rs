//! The ready queue and its entries.

use std::collections::VecDeque;
use std::ops::{Deref, Range};

use pyo3::prelude::*;

use super::HEADROOM;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{Native, Obj, Visitor};
use crate::cpython::object::Object;
use crate::handle::{Handle, TaskStep, ThreadSafeHandle, TimerHandle, Unheld};
use crate::imports::imports;
use crate::intern;
use crate::reactor::clock;

/// A transport and its function for events on its descriptor.
pub type OnReady = BoundMethod<(Readiness,)>;

#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
}

impl Readiness {
    pub const NONE: Readiness = Readiness { readable: false, writable: false };
}

/// Entries in the order in which they are run. Each has a position, its number since the loop was made.
#[derive(Default)]
pub struct ReadyQueue {
    entries: VecDeque<ReadyEntry>,
    /// The position of the first entry: how many were taken out.
    start: u64,
    /// The position from which on it is tried again to get memory, of which there was too little.
    next_attempt: u64,
}

impl Deref for ReadyQueue {
    type Target = VecDeque<ReadyEntry>;

    fn deref(&self) -> &VecDeque<ReadyEntry> {
        &self.entries
    }
}

impl ReadyQueue {
    pub fn positions(&self) -> Range<u64> {
        self.start..self.end()
    }

    /// The position of the next entry that is queued.
    pub fn end(&self) -> u64 {
        self.start + self.entries.len() as u64
    }

    /// Without it, [`ReadyQueue::push_back`] of this many entries ends the process if there is no memory for them.
    #[must_use]
    pub fn reserve(&mut self, count: usize) -> bool {
        self.entries.try_reserve(count).is_ok() || self.reserve_less(count)
    }

    /// As [`ReadyQueue::reserve`], where there is no memory for twice as many entries as before.
    #[cold]
    fn reserve_less(&mut self, count: usize) -> bool {
        let mut more = self.entries.capacity() / 8;
        while more > count {
            if self.entries.try_reserve_exact(more).is_ok() {
                return true;
            }
            more /= 8;
        }
        self.entries.try_reserve_exact(count).is_ok()
    }

    /// Makes room for this many entries and `headroom`, or for as many as there is memory for. Returns how many. If they are not all,
    /// there will be room for others once some have run.
    #[inline(always)]
    pub fn make_room(&mut self, count: usize, headroom: usize) -> usize {
        let has_room = self.entries.capacity() - self.entries.len() >= count + headroom;
        if has_room { count } else { self.grow(count, headroom) }
    }

    #[cold]
    fn grow(&mut self, count: usize, headroom: usize) -> usize {
        // Attempts that fail are dear: as many entries are run first as there is room for.
        if self.is_empty() || self.start >= self.next_attempt {
            let mut wanted = count.max(HEADROOM);
            while !self.reserve(wanted + headroom) {
                self.next_attempt = self.start + self.entries.capacity() as u64;
                if wanted == HEADROOM {
                    break;
                }
                wanted = (wanted / 8).max(HEADROOM);
            }
        }
        (self.entries.capacity() - self.entries.len()).saturating_sub(headroom).min(count)
    }

    #[inline(always)]
    pub fn push_back(&mut self, entry: ReadyEntry) {
        self.entries.push_back(entry);
    }

    pub fn back_mut(&mut self) -> Option<&mut ReadyEntry> {
        self.entries.back_mut()
    }

    pub fn pop_front(&mut self) -> Option<ReadyEntry> {
        let entry = self.entries.pop_front()?;
        self.start += 1;
        Some(entry)
    }

    /// The position of the first entry from a position on of which the handle is another's by now.
    pub fn next_unheld(&self, from: u64) -> Option<u64> {
        let from = from.max(self.start);
        let mut later = self.entries.iter().skip((from - self.start) as usize);
        later.position(ReadyEntry::is_unheld).map(|index| from + index as u64)
    }

    /// The entry at a position, if its handle is another's by now.
    pub fn unheld_at(&mut self, position: u64) -> Option<&mut ReadyEntry> {
        let index = position.checked_sub(self.start)?;
        self.entries.get_mut(index as usize).filter(|entry| entry.is_unheld())
    }

    pub fn take_all(&mut self) -> VecDeque<ReadyEntry> {
        self.start = self.end();
        std::mem::take(&mut self.entries)
    }
}

/// An entry of the ready queue. It is moved by whole words: with a tag of a byte, the compiler moves the rest by pieces that overlap, which
/// processors are slow to read again.
#[derive(Clone)]
#[repr(u64)]
pub enum ReadyEntry {
    Handle(Obj<Handle>),
    Timer(Obj<TimerHandle>),
    ThreadSafe(Obj<ThreadSafeHandle>),
    /// What is left of one of those, or of a handle until Python 3.14, when the program has dropped it.
    Unheld(Unheld),
    /// An asyncio.Handle, or an instance of another subclass of it.
    PythonHandle(Object),
    /// A step of a task. The program has no handle of it.
    Task(TaskStep),
    /// A step of the event loop's own.
    Step(BoundMethod),
    /// An event on a transport's descriptor.
    Event(OnReady, Readiness),
    /// What ends an object of which another thread is done: it is run if the loop is closed, too.
    Finalize(BoundMethod),
}

const _: () = assert!(size_of::<Option<ReadyEntry>>() == 32);

impl ReadyEntry {
    /// Inlined, as an iteration runs its callbacks by it.
    #[inline(always)]
    pub(super) fn run(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        match self {
            // A cancelled handle has its callback until its repr() was kept for debug mode.
            ReadyEntry::Handle(handle) if handle.is_cancelled() => pass_over(py, handle, handle),
            ReadyEntry::Handle(handle) => handle.run(py, handle.as_object()),
            ReadyEntry::Timer(timer) if timer.handle().is_cancelled() => pass_over(py, timer, timer.handle()),
            ReadyEntry::Timer(timer) => timer.handle().run(py, timer.as_object()),
            ReadyEntry::ThreadSafe(handle) if handle.is_cancelled() => Ok(()),
            ReadyEntry::ThreadSafe(handle) => handle.run(py, handle.as_object()),
            ReadyEntry::Unheld(unheld) => unheld.run(py, event_loop),
            ReadyEntry::Task(step) => step.run(py, event_loop),
            ReadyEntry::PythonHandle(handle) => run_python_handle(py, handle),
            ReadyEntry::Step(step) | ReadyEntry::Finalize(step) => step.call(py, ()),
            ReadyEntry::Event(on_ready, readiness) => on_ready.call(py, (*readiness,)),
        }
    }

    /// The same where it is called seldom.
    #[inline(never)]
    pub fn run_outlined(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        self.run(py, event_loop)
    }

    /// Runs in debug mode: callbacks that take long are logged.
    pub(super) fn run_watched(&self, py: Python<'_>, event_loop: &Object, by_method: bool) -> PyResult<()> {
        let handle = if self.is_handle() { self.object().clone() } else { Object::none(py) };
        event_loop.bind(py).setattr(intern!(py, "_current_handle"), handle.bind(py))?;
        let start = clock::now();
        let result =
            if by_method { self.run_by_method(py, event_loop) } else { self.run_outlined(py, event_loop) };
        let duration = clock::now() - start;
        let reset = event_loop.bind(py).setattr(intern!(py, "_current_handle"), py.None());
        // The callback's error comes first: it can be SystemExit or KeyboardInterrupt.
        result.and(reset)?;
        let duration = Object::from_float(py, duration)?;
        imports(py)?.report_slow.call(py, &[event_loop, self.object(), &duration]).map(drop)
    }

    /// Runs a handle by asyncio.Handle's `_run()`, which the program has replaced.
    pub(super) fn run_by_method(&self, py: Python<'_>, event_loop: &Object) -> PyResult<()> {
        match self {
            ReadyEntry::Handle(handle) if handle.is_cancelled() => pass_over(py, handle, handle),
            ReadyEntry::Timer(timer) if timer.handle().is_cancelled() => pass_over(py, timer, timer.handle()),
            ReadyEntry::ThreadSafe(handle) if handle.is_cancelled() => Ok(()),
            ReadyEntry::Task(step) => run_as_method(py, step.handle(py, event_loop.bind(py))?.as_object()),
            ReadyEntry::Handle(_) | ReadyEntry::Timer(_) | ReadyEntry::ThreadSafe(_) => {
                run_as_method(py, self.object())
            }
            // One that is unheld has got a handle, if there was memory for it.
            ReadyEntry::PythonHandle(_)
            | ReadyEntry::Unheld(_)
            | ReadyEntry::Step(..)
            | ReadyEntry::Event(..)
            | ReadyEntry::Finalize(..) => self.run_outlined(py, event_loop),
        }
    }

    /// The handle, or the object that the step or event is for.
    pub fn object(&self) -> &Object {
        match self {
            ReadyEntry::Handle(handle) => handle.as_object(),
            ReadyEntry::Timer(timer) => timer.as_object(),
            ReadyEntry::ThreadSafe(handle) => handle.as_object(),
            ReadyEntry::Unheld(unheld) => &unheld.callback,
            ReadyEntry::Task(step) => &step.callback,
            ReadyEntry::PythonHandle(object) => object,
            ReadyEntry::Step(step) | ReadyEntry::Finalize(step) => step.instance(),
            ReadyEntry::Event(on_ready, _) => on_ready.instance(),
        }
    }

    /// The context that the callback or the task runs in. Python's own handles have theirs as an attribute.
    pub fn context(&self) -> Option<&Object> {
        match self {
            ReadyEntry::Handle(handle) => Some(&handle.context),
            ReadyEntry::Timer(timer) => Some(&timer.handle().context),
            ReadyEntry::ThreadSafe(handle) => Some(&handle.handle().context),
            ReadyEntry::Unheld(unheld) => Some(&unheld.context),
            ReadyEntry::Task(step) => Some(&step.context),
            ReadyEntry::PythonHandle(_)
            | ReadyEntry::Step(..)
            | ReadyEntry::Event(..)
            | ReadyEntry::Finalize(..) => None,
        }
    }

    pub(super) fn traverse(&self, visitor: &mut Visitor) {
        match self {
            ReadyEntry::Unheld(unheld) => unheld.traverse(visitor),
            ReadyEntry::Task(step) => step.traverse(visitor),
            entry => visitor.object(entry.object()),
        }
    }

    fn is_unheld(&self) -> bool {
        matches!(self, ReadyEntry::Unheld(_))
    }

    /// The same with a handle of its own.
    pub(super) fn held(self, py: Python<'_>, event_loop: &Object) -> PyResult<ReadyEntry> {
        match self {
            ReadyEntry::Unheld(unheld) => unheld.with_handle(py, event_loop.bind(py)),
            held => Ok(held),
        }
    }

    /// As [`ReadyEntry::held`], and without memory for a handle the entry itself.
    #[inline(always)]
    pub(super) fn held_or_not(self, py: Python<'_>, event_loop: &Object) -> ReadyEntry {
        if self.is_unheld() { self.clone().held(py, event_loop).unwrap_or(self) } else { self }
    }

    fn is_handle(&self) -> bool {
        use ReadyEntry::{Event, Finalize, Step, Task, Unheld};
        !matches!(self, Task(_) | Unheld(_) | Step(_) | Event(..) | Finalize(_))
    }
}

#[inline(always)]
fn pass_over<T: Native>(py: Python<'_>, object: &Obj<T>, handle: &Handle) -> PyResult<()> {
    handle.pass_over(object.this(py));
    Ok(())
}

/// Runs a native handle by what asyncio.Handle has as `_run()`.
fn run_as_method(py: Python<'_>, handle: &Object) -> PyResult<()> {
    let run = imports(py)?.handle_class.bind(py).getattr(intern!(py, "_run"))?;
    Object::from(run).call(py, &[handle]).map(drop)
}

/// Runs an asyncio.Handle, whose `_run()` does not ask whether it is cancelled.
fn run_python_handle(py: Python<'_>, handle: &Object) -> PyResult<()> {
    if handle.bind(py).getattr(intern!(py, "_cancelled"))?.is_truthy()? {
        return Ok(());
    }
    handle.call_method(py, intern!(py, "_run"), &[]).map(drop)
}
