//! Handles: a callback, its arguments and its context, as call_soon, call_later and add_reader make them.
//!
//! The classes derive from asyncio's, so that `isinstance` holds, and repr, comparison, hash and get_context are the running
//! Python's own, which read the attributes defined here. Queuing and the timers are in [`crate::core`].
//!
//! Invariant: a cancelled handle is never called. Errors of callbacks go to the exception handler here; only SystemExit and
//! KeyboardInterrupt are returned.
//!
//! Other threads make handles and may cancel them. What a handle is made with is replaced by the thread that may touch the loop, in the
//! handle's critical section; another thread reads it there, and cancels by the flag alone. See [`crate::cpython::ownership`].

mod class;
mod task_step;
mod thread_safe;
mod unheld;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::prelude::*;
use pyo3::types::PyFloat;

use crate::core::{Core, ReadyEntry};
use crate::cpython::arguments::{Arguments, ArgumentsCell};
use crate::cpython::borrowing::StateCell;
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{Class, Native, Obj, This, Visitor};
use crate::cpython::errors::{made, no_memory};
use crate::cpython::identity::Identity;
use crate::cpython::object::{Object, ObjectCell, run_in_context};
use crate::cpython::ownership::locked;
use crate::cpython::statics;
use crate::event_loop::Loop;
use crate::imports::imports;
use crate::intern;
use crate::reactor::published::Published;
use crate::reactor::timers::{TimerKey, Timers};

pub use class::register;
pub use task_step::{TaskStep, is_of_task, is_step, is_wakeup_class, known_task_of, task_of};
pub use thread_safe::ThreadSafeHandle;
pub use unheld::{Reusable, Unheld};

/// What an event loop shares with its handles.
#[derive(Default)]
pub struct Schedule {
    debug: Published<bool>,
    /// Whether a subclass has overridden `_call_soon()`, which queues callbacks then.
    queued_by_method: Published<bool>,
    /// True if `debug` or `queued_by_method`: call_soon() takes the slow path.
    careful: Published<bool>,
    /// Whether the watchdog watches for callbacks that take long.
    watched: Published<bool>,
    /// Whether the program has replaced asyncio.Handle's `_run()`, which runs handles then.
    by_method: Published<bool>,
    /// Whether the flight recorder records callbacks, and whether nothing else takes the slow path.
    recorded: Published<bool>,
    plainly_recorded: Published<bool>,
    /// Whether there are no accounts, besides.
    only_recorded: Published<bool>,
    /// Whether there are accounts, and whether iterations have more to do for them or for the watchdog.
    accounted: Published<bool>,
    observes_iterations: Published<bool>,
    /// True if `debug`, `watched`, `by_method` or `recorded`: running a callback takes the slow path.
    observed: Published<bool>,
    /// Whether a subclass has overridden `_timer_handle_cancelled()`, which cancelling a timer calls then.
    pub tell_cancelled: Published<bool>,
    /// Timers that were cancelled before they fired.
    pub timers_cancelled: Published<u64>,
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

    pub fn is_watched(&self) -> bool {
        self.watched.get()
    }

    pub fn set_watched(&self, watched: bool) {
        self.watched.set(watched);
        self.note_slow_paths();
    }

    /// `recorded`: for the flight recorder or for accounts.
    pub fn set_recorded(&self, recorded: bool, accounted: bool) {
        self.recorded.set(recorded);
        self.accounted.set(accounted);
        self.note_slow_paths();
    }

    pub fn is_only_recorded(&self) -> bool {
        self.only_recorded.get()
    }

    pub fn observes_iterations(&self) -> bool {
        self.observes_iterations.get()
    }

    pub fn is_recorded(&self) -> bool {
        self.recorded.get()
    }

    /// Whether callbacks are run as they are otherwise, but for the records.
    pub fn is_plainly_recorded(&self) -> bool {
        self.plainly_recorded.get()
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
        let recorded = self.recorded.get();
        let otherwise = debug || self.watched.get() || self.by_method.get();
        self.observed.set(otherwise || recorded);
        self.plainly_recorded.set(recorded && !otherwise);
        self.only_recorded.set(recorded && !otherwise && !self.accounted.get());
        self.observes_iterations.set(self.watched.get() || self.accounted.get());
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

/// A scheduled callback.
pub struct Handle {
    cancelled: Published<bool>,
    /// None once the handle is cancelled.
    callback: ObjectCell,
    arguments: ArgumentsCell,
    pub context: Object,
    event_loop: Obj<Loop>,
    source_traceback: Option<Object>,
    /// In debug mode, the repr() from before it was cancelled.
    repr: ObjectCell,
}

pub struct Call {
    pub callback: Object,
    pub arguments: Arguments,
    pub context: Object,
    pub event_loop: Obj<Loop>,
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
            cancelled: Published::new(false),
            callback: ObjectCell::new(Some(call.callback)),
            arguments: ArgumentsCell::new(call.arguments),
            context: call.context,
            event_loop: call.event_loop,
            source_traceback,
            repr: ObjectCell::default(),
        }
    }

    /// A handle with the same content, which is cancelled independently.
    fn copy<T: Native>(&self, this: This<'_, '_, T>) -> Handle {
        locked(this.as_any(), || Handle {
            cancelled: Published::new(self.cancelled.get()),
            callback: ObjectCell::new(self.callback.get()),
            arguments: ArgumentsCell::new(self.arguments.copy()),
            context: self.context.clone(),
            event_loop: self.event_loop.clone(),
            source_traceback: self.source_traceback.clone(),
            repr: ObjectCell::new(self.repr.get()),
        })
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// What the callback is known by, for the thread that may touch the loop. None if the handle is cancelled.
    #[inline(always)]
    pub fn identity(&self) -> Option<Identity> {
        self.callback.identity()
    }

    /// Runs the callback in its context, unless it is cancelled. An exception goes to the event loop's exception
    /// handler, but SystemExit and KeyboardInterrupt to the caller.
    #[inline(always)]
    pub fn run(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        let Some(callback) = self.callback.get() else { return Ok(()) };
        self.call(py, this, &callback, &self.arguments.get())
    }

    /// As [`Handle::run`], in any thread.
    fn run_anywhere<T: Native>(&self, this: This<'_, '_, T>) -> PyResult<()> {
        let (callback, arguments) = locked(this.as_any(), || (self.callback.get(), self.arguments.get()));
        let Some(callback) = callback else { return Ok(()) };
        self.call(this.py(), &this.object(), &callback, &arguments)
    }

    #[inline(always)]
    fn call(&self, py: Python<'_>, this: &Object, callback: &Object, arguments: &Arguments) -> PyResult<()> {
        match run_in_context(py, &self.context, || arguments.call(py, callback)) {
            Ok(_) => Ok(()),
            Err(error) => report(py, this, error),
        }
    }

    /// Callback and arguments are dropped if no other thread can be about to call them: the caller is the owner of the loop, or
    /// `keeps_others` from calling. Otherwise the loop does when it comes to the handle: see [`Handle::pass_over`].
    #[inline(always)]
    fn cancel_as<T: Native>(&self, this: This<'_, '_, T>, keeps_others: bool) -> PyResult<()> {
        if self.cancelled.replace(true) {
            return Ok(());
        }
        let kept = if DEBUG_WAS_ON.load(Relaxed) { self.keep_repr(this) } else { Ok(()) };
        // Also if repr() failed: a cancelled handle must not be called. Dropping can run Python code: the loop is entered for the
        // taking only.
        let taken = if keeps_others {
            Some(self.take(this))
        } else {
            self.event_loop.core.owner.try_enter().map(|_entered| self.take(this))
        };
        drop(taken);
        kept
    }

    /// In debug mode, keeps the repr() for a report that the handle was slow.
    #[cold]
    fn keep_repr<T: Native>(&self, this: This<'_, '_, T>) -> PyResult<()> {
        let py = this.py();
        let event_loop = self.event_loop.as_object();
        if event_loop.call_method(py, intern!(py, "get_debug"), &[])?.bind(py).is_truthy()? {
            let repr = this.as_any().repr()?;
            drop(locked(this.as_any(), || self.repr.replace(Some(repr.into()))));
        }
        Ok(())
    }

    /// Takes out callback and arguments. Dropping them can run Python code.
    fn take<T: Native>(&self, this: This<'_, '_, T>) -> (Arguments, Option<Object>) {
        locked(this.as_any(), || (self.arguments.take(), self.callback.take()))
    }

    /// The loop has come to the handle, and does not call it since it is cancelled.
    #[inline(always)]
    pub fn pass_over<T: Native>(&self, this: This<'_, '_, T>) {
        if cfg!(Py_GIL_DISABLED) && self.callback.is_some() {
            drop(self.take(this));
        }
    }

    /// Drops callback and arguments for the garbage collector, which alone has the handle.
    fn clear(&self) {
        drop((self.arguments.take(), self.callback.take()));
    }

    pub fn callback<T: Native>(&self, this: This<'_, '_, T>) -> Option<Object> {
        locked(this.as_any(), || self.callback.get())
    }

    fn kept_repr<T: Native>(&self, this: This<'_, '_, T>) -> Option<Object> {
        locked(this.as_any(), || self.repr.get())
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.cell(&self.callback);
        self.arguments.traverse(visitor);
        visitor.object(&self.context);
        visitor.object(self.event_loop.as_object());
        visitor.optional(&self.source_traceback);
        visitor.cell(&self.repr);
    }

    /// None if the handle is cancelled.
    fn arguments_or_none<T: Native>(&self, this: This<'_, '_, T>) -> PyResult<Object> {
        let arguments = locked(this.as_any(), || self.callback.is_some().then(|| self.arguments.get()));
        match arguments {
            Some(arguments) => arguments.to_tuple(this.py()),
            None => Ok(Object::none(this.py())),
        }
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
    /// In seconds of the event loop's clock.
    when: f64,
    /// What when() returns, if the program gave no float.
    given: Option<Object>,
    /// None if the timer is not among the event loop's timers.
    key: Published<Option<TimerKey>>,
}

impl TimerHandle {
    /// Makes a timer and adds it to the event loop's timers.
    pub fn schedule(py: Python<'_>, when: When, handle: Handle) -> PyResult<Obj<TimerHandle>> {
        let When { seconds: when, given } = when;
        let timer = Obj::new(py, TimerHandle { handle, when, given, key: Published::new(None) })?;
        let core = timer.core();
        match core.owner.try_enter() {
            Some(_entered) => TimerHandle::add(timer.this(py))?,
            None => {
                core.push_threadsafe(py, || ReadyEntry::Step(BoundMethod::new(timer.this(py), add_step)))?
            }
        }
        Ok(timer)
    }

    /// Adds it to the event loop's timers.
    fn add(this: This<'_, '_, TimerHandle>) -> PyResult<()> {
        let mut timers = this.core().schedule.timers.borrow_mut();
        if !timers.reserve() {
            drop(timers);
            return Err(no_memory(this.py()));
        }
        let key = timers.insert(this.when, this.obj());
        drop(timers);
        this.key.set(Some(key));
        Ok(())
    }

    fn core(&self) -> &Core {
        &self.handle.event_loop.core
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
        let removed = self.core().schedule.timers.borrow_mut().remove(key);
        drop(removed);
        true
    }

    /// Takes it out of the event loop's timers because it is cancelled.
    fn take_out_cancelled(&self) {
        if self.take_out() {
            let count = &self.core().schedule.timers_cancelled;
            count.set(count.get() + 1);
        }
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

/// Another thread has made the timer.
fn add_step(this: This<'_, '_, TimerHandle>) -> PyResult<()> {
    if this.handle.is_cancelled() { Ok(()) } else { TimerHandle::add(this) }
}

/// Another thread has cancelled the timer.
fn take_out_step(this: This<'_, '_, TimerHandle>) -> PyResult<()> {
    this.take_out_cancelled();
    this.handle.pass_over(this);
    Ok(())
}

impl Native for Handle {
    fn class() -> &'static Class {
        &statics::HANDLE
    }

    fn traverse(&self, visitor: &mut Visitor) {
        Handle::traverse(self, visitor);
    }

    fn clear(&self) {
        Handle::clear(self);
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
        self.handle.clear();
    }
}
