//! Handles: a callback, its arguments and its context, as call_soon, call_later and add_reader make them.
//!
//! The classes derive from asyncio's, so that `isinstance` holds, and repr, comparison, hash and get_context are the running
//! Python's own, which read the attributes defined here. Queuing and the timers are in [`crate::core`].
//!
//! Invariant: a cancelled handle is never called. Errors of callbacks go to the exception handler here; only SystemExit and
//! KeyboardInterrupt are returned.
//!
//! GIL: other threads make handles and may cancel them. Their cells are not synchronised in any other way.

mod class;
mod task_step;
mod thread_safe;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::prelude::*;
use pyo3::types::PyFloat;

use crate::cpython::args::Args;
use crate::cpython::borrowing::StateCell;
use crate::cpython::call::check_result;
use crate::cpython::class::{Class, Native, Obj, Visitor};
use crate::cpython::errors::{made, no_memory};
use crate::cpython::object::{Object, ObjectCell, run_in_context, tuple};
use crate::cpython::statics;
use crate::imports::imports;
use crate::intern;
use crate::reactor::timers::{TimerKey, Timers};
use crate::reserve::has_room;

pub use class::register;
pub use task_step::{TaskStep, is_of_task};
pub use thread_safe::ThreadSafeHandle;

/// What an event loop shares with its handles. GIL: handles are made and dropped in any thread, and `Rc` counts them without atomics.
#[derive(Default)]
pub struct Schedule {
    debug: Cell<bool>,
    /// Whether a subclass has overridden `_call_soon()`, which queues callbacks then.
    queued_by_method: Cell<bool>,
    /// True if `debug` or `queued_by_method`: call_soon() takes the slow path.
    careful: Cell<bool>,
    /// Whether the watchdog watches for callbacks that take long.
    watched: Cell<bool>,
    /// Whether the program has replaced asyncio.Handle's `_run()`, which runs handles then.
    by_method: Cell<bool>,
    /// True if `debug`, `watched` or `by_method`: running a callback takes the slow path.
    observed: Cell<bool>,
    /// Whether a subclass has overridden `_timer_handle_cancelled()`, which cancelling a timer calls then.
    pub tell_cancelled: Cell<bool>,
    /// Timers that were cancelled before they fired.
    pub timers_cancelled: Cell<u64>,
    pub timers: StateCell<Timers<Obj<TimerHandle>>>,
}

/// Whether any event loop was ever in debug mode. Until then, cancelling a handle does not ask its loop.
static DEBUG_WAS_ON: AtomicBool = AtomicBool::new(false);

impl Schedule {
    pub fn debug(&self) -> bool {
        self.debug.get()
    }

    pub fn is_careful(&self) -> bool {
        self.careful.get()
    }

    pub fn is_queued_by_method(&self) -> bool {
        self.queued_by_method.get()
    }

    pub fn set_queued_by_method(&self, by_method: bool) {
        self.queued_by_method.set(by_method);
        self.note_slow_paths();
    }

    pub fn is_plain(&self) -> bool {
        !self.observed.get()
    }

    pub fn set_watched(&self, watched: bool) {
        self.watched.set(watched);
        self.note_slow_paths();
    }

    pub fn set_by_method(&self, by_method: bool) {
        self.by_method.set(by_method);
        self.note_slow_paths();
    }

    pub fn is_by_method(&self) -> bool {
        self.by_method.get()
    }

    pub fn set_debug(&self, debug: bool) {
        self.debug.set(debug);
        self.note_slow_paths();
        DEBUG_WAS_ON.fetch_or(debug, Relaxed);
    }

    fn note_slow_paths(&self) {
        let debug = self.debug.get();
        self.careful.set(debug || self.queued_by_method.get());
        self.observed.set(debug || self.watched.get() || self.by_method.get());
    }

    /// In debug mode, the stack of the calling Python code.
    #[inline(always)]
    pub fn source_traceback(&self, py: Python<'_>) -> PyResult<Option<Object>> {
        if self.debug.get() { source_traceback(py).map(Some) } else { Ok(None) }
    }
}

#[cold]
fn source_traceback(py: Python<'_>) -> PyResult<Object> {
    imports(py)?.source_traceback.call(py, &[])
}

/// Positional arguments of a callback. Most callbacks have at most two. A clone shares more than that, and is for one call only.
#[derive(Clone)]
pub enum Arguments {
    None,
    One(Object),
    Two(Object, Object),
    Many(Rc<[Object]>),
}

impl Arguments {
    /// The positional arguments of a call from `first` on.
    #[inline(always)]
    pub fn of_call(py: Python<'_>, args: Args<'_, '_>, first: usize) -> PyResult<Arguments> {
        Ok(match (args.object(first), args.object(first + 1)) {
            (None, _) => Arguments::None,
            (Some(argument), None) => Arguments::One(argument),
            (Some(argument), Some(next)) if args.len() == first + 2 => Arguments::Two(argument, next),
            _ => Arguments::many(py, args.rest(first))?,
        })
    }

    pub fn of_objects(py: Python<'_>, objects: &[&Object]) -> PyResult<Arguments> {
        Ok(match objects {
            [] => Arguments::None,
            [argument] => Arguments::One((*argument).clone()),
            more => Arguments::many(py, more.iter().map(|argument| (*argument).clone()))?,
        })
    }

    fn many(py: Python<'_>, all: impl ExactSizeIterator<Item = Object>) -> PyResult<Arguments> {
        // With the counts before them.
        if !has_room((all.len() + 2) * size_of::<Object>()) {
            return Err(no_memory(py));
        }
        Ok(Arguments::Many(all.collect()))
    }

    /// A copy that shares nothing: the garbage collector is not shown shared arguments.
    fn copy(&self) -> Arguments {
        match self {
            Arguments::Many(all) => Arguments::Many(all.iter().cloned().collect()),
            few => few.clone(),
        }
    }

    fn each<'a>(&'a self, mut visit: impl FnMut(&'a Object)) {
        match self {
            Arguments::None => {}
            Arguments::One(first) => visit(first),
            Arguments::Two(first, second) => {
                visit(first);
                visit(second);
            }
            Arguments::Many(all) => all.iter().for_each(visit),
        }
    }

    fn call(&self, py: Python<'_>, callback: &Object) -> PyResult<Object> {
        let result = match self {
            Arguments::None => callback.call(py, &[]),
            Arguments::One(first) => callback.call(py, &[first]),
            Arguments::Two(first, second) => callback.call(py, &[first, second]),
            Arguments::Many(all) => callback.call_list(py, all, None),
        };
        check_result(py, callback, result?)
    }

    fn to_tuple(&self, py: Python<'_>) -> PyResult<Object> {
        let mut items = Vec::new();
        self.each(|argument| items.push(argument));
        tuple(py, &items)
    }
}

/// A scheduled callback.
pub struct Handle {
    cancelled: Cell<bool>,
    /// None once the handle is cancelled.
    callback: ObjectCell,
    arguments: StateCell<Arguments>,
    context: Object,
    event_loop: Object,
    source_traceback: Option<Object>,
    /// In debug mode, the repr() from before it was cancelled.
    repr: ObjectCell,
}

pub struct Call {
    pub callback: Object,
    pub arguments: Arguments,
    pub context: Object,
    pub event_loop: Object,
}

impl Handle {
    #[inline(always)]
    pub fn new(py: Python<'_>, call: Call, schedule: &Schedule) -> PyResult<Handle> {
        let source_traceback = schedule.source_traceback(py)?;
        Ok(Handle::with_traceback(call, source_traceback))
    }

    /// A handle with a traceback of the caller's choice.
    #[inline(always)]
    pub fn with_traceback(call: Call, source_traceback: Option<Object>) -> Handle {
        Handle {
            cancelled: Cell::new(false),
            callback: ObjectCell::new(Some(call.callback)),
            arguments: StateCell::new(call.arguments),
            context: call.context,
            event_loop: call.event_loop,
            source_traceback,
            repr: ObjectCell::default(),
        }
    }

    /// A handle with the same content, which is cancelled independently.
    fn copy(&self) -> Handle {
        Handle {
            cancelled: self.cancelled.clone(),
            callback: ObjectCell::new(self.callback.get()),
            arguments: StateCell::new(self.arguments.borrow().copy()),
            context: self.context.clone(),
            event_loop: self.event_loop.clone(),
            source_traceback: self.source_traceback.clone(),
            repr: ObjectCell::new(self.repr.get()),
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// Runs the callback in its context, unless it is cancelled. An exception goes to the event loop's exception
    /// handler, but SystemExit and KeyboardInterrupt to the caller.
    #[inline(always)]
    pub fn run(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        let Some(callback) = self.callback.get() else { return Ok(()) };
        let arguments = self.arguments.borrow().clone();
        match run_in_context(py, &self.context, || arguments.call(py, &callback)) {
            Ok(_) => Ok(()),
            Err(error) => report(py, this, error),
        }
    }

    fn cancel_as(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        if self.cancelled.replace(true) {
            return Ok(());
        }
        let kept = if DEBUG_WAS_ON.load(Relaxed) { self.keep_repr(py, this) } else { Ok(()) };
        // Also if repr() failed: a cancelled handle must not be called.
        self.discard();
        kept
    }

    /// In debug mode, keeps the repr() for a report that the handle was slow.
    #[cold]
    fn keep_repr(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        if self.event_loop.call_method(py, intern!(py, "get_debug"), &[])?.bind(py).is_truthy()? {
            let repr = this.bind(py).repr()?;
            self.repr.set(Some(repr.into()));
        }
        Ok(())
    }

    /// Drops callback and arguments, which can run Python code.
    fn discard(&self) {
        let arguments = self.arguments.replace(Arguments::None);
        let callback = self.callback.take();
        drop(arguments);
        drop(callback);
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.cell(&self.callback);
        if let Ok(arguments) = self.arguments.try_borrow() {
            match &*arguments {
                // GIL: the count is not atomic. A call that is under way owns them, too, and is not traversed.
                Arguments::Many(all) if Rc::strong_count(all) > 1 => {}
                arguments => arguments.each(|argument| visitor.object(argument)),
            }
        }
        visitor.object(&self.context);
        visitor.object(&self.event_loop);
        visitor.optional(&self.source_traceback);
        visitor.cell(&self.repr);
    }

    /// None if the handle is cancelled.
    fn arguments_or_none(&self, py: Python<'_>) -> PyResult<Object> {
        if !self.callback.is_some() {
            return Ok(Object::none(py));
        }
        let arguments = self.arguments.borrow().clone();
        arguments.to_tuple(py)
    }
}

#[cold]
fn report(py: Python<'_>, handle: &Object, error: PyErr) -> PyResult<()> {
    let exception = reraise_fatal(py, error)?;
    imports(py)?.report_handle.call(py, &[handle, &exception]).map(drop)
}

/// Returns the exception. SystemExit and KeyboardInterrupt, which must leave run_forever(), are returned as errors.
pub fn reraise_fatal(py: Python<'_>, error: PyErr) -> PyResult<Object> {
    let error = made(py, error);
    if error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py) {
        return Err(error);
    }
    Ok(error.into_value(py).into_bound(py).into())
}

/// When a callback is due.
pub struct When {
    /// Of the event loop's clock.
    pub seconds: f64,
    /// The number that the program gave, if it is not a float.
    pub given: Option<Object>,
}

impl When {
    pub fn of(number: &Bound<'_, PyAny>) -> PyResult<When> {
        match number.cast_exact::<PyFloat>() {
            Ok(float) => Ok(When { seconds: float.value(), given: None }),
            Err(_) => Ok(When { seconds: number.extract()?, given: Some(Object::from(number)) }),
        }
    }
}

/// A callback that is due at a time.
pub struct TimerHandle {
    handle: Handle,
    schedule: Rc<Schedule>,
    /// In seconds of the event loop's clock.
    when: f64,
    /// What when() returns, if the program gave no float.
    given: Option<Object>,
    /// None if the timer is not among the event loop's timers.
    key: Cell<Option<TimerKey>>,
}

impl TimerHandle {
    /// Makes a timer and adds it to the event loop's timers.
    pub fn schedule(
        py: Python<'_>,
        when: When,
        handle: Handle,
        schedule: &Rc<Schedule>,
    ) -> PyResult<Obj<TimerHandle>> {
        let When { seconds: when, given } = when;
        let timer = TimerHandle { handle, schedule: Rc::clone(schedule), when, given, key: Cell::new(None) };
        let timer = Obj::new(py, timer)?;
        let mut timers = schedule.timers.borrow_mut();
        if !timers.reserve() {
            drop(timers);
            return Err(no_memory(py));
        }
        let key = timers.insert(when, timer.clone());
        drop(timers);
        timer.key.set(Some(key));
        Ok(timer)
    }

    /// To be called when the event loop has taken it out of its timers.
    pub fn set_fired(&self) {
        self.key.set(None);
    }

    pub fn is_scheduled(&self) -> bool {
        self.key.get().is_some()
    }

    /// Takes it out of the event loop's timers. Returns whether it was there.
    pub fn take_out(&self) -> bool {
        let Some(key) = self.key.take() else { return false };
        let removed = self.schedule.timers.borrow_mut().remove(key);
        drop(removed);
        true
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// What when() returns.
    fn given(&self, py: Python<'_>) -> PyResult<Object> {
        match &self.given {
            Some(given) => Ok(given.clone()),
            None => Object::from_float(py, self.when),
        }
    }

    pub fn when(&self) -> f64 {
        self.when
    }
}

impl Native for Handle {
    fn class() -> &'static Class {
        &statics::HANDLE
    }

    fn traverse(&self, visitor: &mut Visitor) {
        Handle::traverse(self, visitor);
    }

    fn clear(&self) {
        self.discard();
    }
}

impl Native for TimerHandle {
    fn class() -> &'static Class {
        &statics::TIMER_HANDLE
    }

    fn traverse(&self, visitor: &mut Visitor) {
        self.handle.traverse(visitor);
        visitor.optional(&self.given);
    }

    fn clear(&self) {
        self.handle.discard();
    }
}
