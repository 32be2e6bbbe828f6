//! Handles: a callback, its arguments and its context, as call_soon, call_later and the watchers return them.
//!
//! The classes derive from asyncio's, so that `isinstance` holds and everything that is neither scheduling nor
//! cancelling (repr, comparison, hash, get_context) is the running Python's own, reading the attributes defined here.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Condvar, Mutex, MutexGuard};

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

use crate::cpython::class::{self, Class, Definition, Native, Obj, This, Visitor};
use crate::cpython::object::{Object, ObjectCell, Stack, run_in_context, thread_ident};
use crate::imports::imports;
use crate::reactor::timers::{TimerKey, Timers};
use crate::{attribute, method0};

/// What an event loop shares with its handles.
#[derive(Default)]
pub struct Schedule {
    pub debug: Cell<bool>,
    pub timers: RefCell<Timers<Obj<TimerHandle>>>,
}

/// Positional arguments of a callback. Most have at most two.
#[derive(Clone)]
pub enum Arguments {
    None,
    One(Object),
    Two(Object, Object),
    Many(Rc<[Object]>),
}

impl Arguments {
    pub fn collect(mut args: impl ExactSizeIterator<Item = Object>) -> Arguments {
        match (args.len(), args.next()) {
            (2, Some(first)) => match args.next() {
                Some(second) => Arguments::Two(first, second),
                None => Arguments::One(first),
            },
            (1, Some(first)) => Arguments::One(first),
            (_, Some(first)) => Arguments::Many(std::iter::once(first).chain(args).collect()),
            (_, None) => Arguments::None,
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
        let mut stack = Stack::new();
        self.each(|argument| stack.push(argument));
        stack.call(py, callback)
    }

    fn to_tuple(&self, py: Python<'_>) -> PyResult<Object> {
        let mut items = Vec::new();
        self.each(|argument| items.push(argument.bind(py)));
        Ok(PyTuple::new(py, items)?.into())
    }
}

/// A scheduled callback.
pub struct Handle {
    cancelled: Cell<bool>,
    /// None when it is cancelled.
    callback: ObjectCell,
    arguments: RefCell<Arguments>,
    context: Object,
    event_loop: Object,
    schedule: Rc<Schedule>,
    source_traceback: Option<Object>,
    /// In debug mode, what repr() was when it was cancelled.
    repr: ObjectCell,
}

/// What a handle is made of.
pub struct Call {
    pub callback: Object,
    pub arguments: Arguments,
    pub context: Object,
    pub event_loop: Object,
}

impl Handle {
    pub fn new(py: Python<'_>, call: Call, schedule: &Rc<Schedule>) -> PyResult<Handle> {
        let source_traceback =
            if schedule.debug.get() { Some(imports(py)?.source_traceback.call(py, &[])?) } else { None };
        Ok(Handle {
            cancelled: Cell::new(false),
            callback: ObjectCell::new(Some(call.callback)),
            arguments: RefCell::new(call.arguments),
            context: call.context,
            event_loop: call.event_loop,
            schedule: Rc::clone(schedule),
            source_traceback,
            repr: ObjectCell::default(),
        })
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// Runs the callback in its context, unless it is cancelled. An exception goes to the event loop's exception
    /// handler, but SystemExit and KeyboardInterrupt to the caller.
    pub fn run(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        let Some(callback) = self.callback.get() else { return Ok(()) };
        let arguments = self.arguments.borrow().clone();
        match run_in_context(py, &self.context, || arguments.call(py, &callback)) {
            Ok(_) => Ok(()),
            Err(error) => {
                let exception = survivable(py, error)?;
                imports(py)?.report_handle.call(py, &[this, &exception]).map(drop)
            }
        }
    }

    fn cancel_as(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        if self.cancelled.replace(true) {
            return Ok(());
        }
        if self.schedule.debug.get() {
            // What it was is still wanted when it is reported as slow.
            let repr = this.bind(py).repr()?;
            self.repr.set(Some(repr.into()));
        }
        self.discard();
        Ok(())
    }

    /// Drops callback and arguments, which may run Python code.
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
                // Shared with a call that is under way, in which case nobody knows who else owns them.
                Arguments::Many(all) if Rc::strong_count(all) > 1 => {}
                arguments => arguments.each(|argument| visitor.object(argument)),
            }
        }
        visitor.object(&self.context);
        visitor.object(&self.event_loop);
        visitor.optional(&self.source_traceback);
        visitor.cell(&self.repr);
    }

    fn arguments_or_none(&self, py: Python<'_>) -> PyResult<Object> {
        if self.is_cancelled() {
            return Ok(Object::none(py));
        }
        let arguments = self.arguments.borrow().clone();
        arguments.to_tuple(py)
    }
}

/// The exception, unless it is one that must leave run_forever: that is the error.
pub fn survivable(py: Python<'_>, error: PyErr) -> PyResult<Object> {
    if error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py) {
        return Err(error);
    }
    Ok(error.into_value(py).into_bound(py).into())
}

/// A callback that is due at a time.
pub struct TimerHandle {
    handle: Handle,
    /// In seconds of the event loop's clock.
    when: f64,
    key: Cell<Option<TimerKey>>,
}

impl TimerHandle {
    /// Makes a timer and puts it among the event loop's.
    pub fn schedule(py: Python<'_>, when: f64, handle: Handle) -> PyResult<Obj<TimerHandle>> {
        let schedule = Rc::clone(&handle.schedule);
        let timer = Obj::new(py, TimerHandle { handle, when, key: Cell::new(None) })?;
        let key = schedule.timers.borrow_mut().insert(when, timer.clone());
        timer.key.set(Some(key));
        Ok(timer)
    }

    /// Tells the timer that the event loop has taken it out of its timers to run it.
    pub fn set_fired(&self) {
        self.key.set(None);
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// A callback that other threads may cancel, as asyncio has them from 3.14 on: while it runs, its state cannot be
/// asked or changed from another thread, which waits until it is done.
pub struct ThreadSafeHandle {
    handle: Handle,
    running: RunLock,
}

#[derive(Default)]
struct RunLock {
    state: Mutex<RunState>,
    done: Condvar,
}

#[derive(Default)]
struct RunState {
    /// The thread in which the callback runs.
    thread: Option<u64>,
    waiters: u32,
}

impl RunLock {
    fn state(&self) -> MutexGuard<'_, RunState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until the callback does not run in another thread.
    fn wait(&self, py: Python<'_>) {
        let is_elsewhere = |state: &RunState| state.thread.is_some_and(|thread| thread != thread_ident());
        if !is_elsewhere(&self.state()) {
            return;
        }
        py.detach(|| {
            let mut state = self.state();
            state.waiters += 1;
            while is_elsewhere(&state) {
                state = self.done.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            state.waiters -= 1;
        });
    }
}

impl ThreadSafeHandle {
    pub fn new(handle: Handle) -> ThreadSafeHandle {
        ThreadSafeHandle { handle, running: RunLock::default() }
    }

    pub fn run(&self, py: Python<'_>, this: &Object) -> PyResult<()> {
        self.running.wait(py);
        self.running.state().thread = Some(thread_ident());
        let result = self.handle.run(py, this);
        let mut state = self.running.state();
        state.thread = None;
        if state.waiters > 0 {
            self.running.done.notify_all();
        }
        result
    }
}

impl Native for ThreadSafeHandle {
    fn class() -> &'static Class {
        static CLASS: Class = Class::new(256);
        &CLASS
    }

    fn traverse(&self, visitor: &mut Visitor) {
        self.handle.traverse(visitor);
    }

    fn clear(&self) {
        self.handle.discard();
    }
}

impl Native for Handle {
    fn class() -> &'static Class {
        static CLASS: Class = Class::new(256);
        &CLASS
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
        static CLASS: Class = Class::new(256);
        &CLASS
    }

    fn traverse(&self, visitor: &mut Visitor) {
        self.handle.traverse(visitor);
    }

    fn clear(&self) {
        self.handle.discard();
    }
}

/// A class that has a handle's attributes and methods.
trait AsHandle: Native {
    fn as_handle(&self) -> &Handle;

    fn cancel(this: This<'_, '_, Self>) -> PyResult<()>;

    fn is_cancelled(this: This<'_, '_, Self>) -> bool {
        this.as_handle().is_cancelled()
    }

    fn run(this: This<'_, '_, Self>) -> PyResult<()> {
        this.as_handle().run(this.py(), &this.object())
    }
}

impl AsHandle for ThreadSafeHandle {
    fn as_handle(&self) -> &Handle {
        &self.handle
    }

    fn cancel(this: This<'_, '_, Self>) -> PyResult<()> {
        this.running.wait(this.py());
        this.get().handle.cancel_as(this.py(), &this.object())
    }

    fn is_cancelled(this: This<'_, '_, Self>) -> bool {
        this.running.wait(this.py());
        this.handle.is_cancelled()
    }

    fn run(this: This<'_, '_, Self>) -> PyResult<()> {
        this.get().run(this.py(), &this.object())
    }
}

impl AsHandle for Handle {
    fn as_handle(&self) -> &Handle {
        self
    }

    fn cancel(this: This<'_, '_, Self>) -> PyResult<()> {
        this.get().cancel_as(this.py(), &this.object())
    }
}

impl AsHandle for TimerHandle {
    fn as_handle(&self) -> &Handle {
        &self.handle
    }

    fn cancel(this: This<'_, '_, Self>) -> PyResult<()> {
        if let Some(key) = this.key.take() {
            let removed = this.handle.schedule.timers.borrow_mut().remove(key);
            drop(removed);
        }
        this.get().handle.cancel_as(this.py(), &this.object())
    }
}

/// The definition of a class that has a handle's attributes and methods.
macro_rules! definition {
    ($native:ty, $name:literal, $doc:expr, $base:expr) => {
        Definition {
            name: $name,
            doc: $doc,
            base: $base,
            methods: vec![
                method0!(
                    $native,
                    "cancel",
                    |this| {
                        <$native as AsHandle>::cancel(this)?;
                        Ok(Object::none(this.py()))
                    },
                    "cancel($self, /)\n--\n\nCancel the callback: it is never called. Cancelling twice has no effect."
                ),
                method0!(
                    $native,
                    "cancelled",
                    |this| Ok(boolean(this.py(), <$native as AsHandle>::is_cancelled(this))),
                    "cancelled($self, /)\n--\n\nReturn True if the callback was cancelled."
                ),
                method0!(
                    $native,
                    "_run",
                    |this| {
                        <$native as AsHandle>::run(this)?;
                        Ok(Object::none(this.py()))
                    },
                    "_run($self, /)\n--\n\nRun the callback in its context."
                ),
            ],
            attributes: vec![
                attribute!($native, "_callback", |this| Ok(or_none(this.py(), this.as_handle().callback.get()))),
                attribute!($native, "_args", |this| this.as_handle().arguments_or_none(this.py())),
                attribute!($native, "_cancelled", |this| Ok(boolean(this.py(), this.as_handle().is_cancelled()))),
                attribute!($native, "_loop", |this| Ok(this.as_handle().event_loop.clone())),
                attribute!($native, "_context", |this| Ok(this.as_handle().context.clone())),
                attribute!($native, "_source_traceback", |this| {
                    Ok(or_none(this.py(), this.as_handle().source_traceback.clone()))
                }),
                attribute!($native, "_repr", |this| Ok(or_none(this.py(), this.as_handle().repr.get()))),
            ],
            slots: Vec::new(),
            open: false,
        }
    };
}

fn or_none(py: Python<'_>, object: Option<Object>) -> Object {
    object.unwrap_or_else(|| Object::none(py))
}

pub fn boolean(py: Python<'_>, value: bool) -> Object {
    value.into_pyobject(py).map(|value| Object::from(&*value)).unwrap_or_else(|never| match never {})
}

/// Makes the classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let asyncio = py.import(intern!(py, "asyncio"))?;
    let handle = asyncio.getattr("Handle")?.cast_into::<PyType>()?;
    let handle =
        definition!(Handle, c"hotloop._core.Handle", c"A scheduled callback: asyncio.Handle.", handle);
    module.add("Handle", class::make::<Handle>(handle)?)?;

    // Python 3.14 has a class for handles that other threads may cancel.
    if let Ok(base) = py.import("asyncio.events")?.getattr("_ThreadSafeHandle") {
        let doc = c"A callback that other threads may cancel: what call_soon_threadsafe() returns.";
        let handle = definition!(
            ThreadSafeHandle,
            c"hotloop._core.ThreadSafeHandle",
            doc,
            base.cast_into::<PyType>()?
        );
        module.add("ThreadSafeHandle", class::make::<ThreadSafeHandle>(handle)?)?;
    }

    let timer = asyncio.getattr("TimerHandle")?.cast_into::<PyType>()?;
    let mut timer = definition!(
        TimerHandle,
        c"hotloop._core.TimerHandle",
        c"A callback that is due at a time: asyncio.TimerHandle.",
        timer
    );
    timer.methods.push(method0!(
        TimerHandle,
        "when",
        |this| Ok(this.when.into_pyobject(this.py())?.into()),
        "Return the time at which the callback is due, in seconds of the event loop's clock."
    ));
    timer
        .attributes
        .push(attribute!(TimerHandle, "_when", |this| Ok(this.when.into_pyobject(this.py())?.into())));
    timer.attributes.push(attribute!(TimerHandle, "_scheduled", |this| {
        Ok(boolean(this.py(), this.key.get().is_some()))
    }));
    module.add("TimerHandle", class::make::<TimerHandle>(timer)?)
}
