//! A coroutine that does one operation on a socket: what sock_recv() and its kin return.
//!
//! It tries at once, and only where the socket is not ready makes a future, has the descriptor watched and yields.
//! Readiness does nothing but wake the coroutine: the system call is made when it is resumed. A cancellation that
//! arrives in between thus finds the data still in the socket, where the next call gets it.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::rc::Rc;

use pyo3::exceptions::{
    PyBlockingIOError, PyBufferError, PyInterruptedError, PyRuntimeError, PyStopIteration, PyTypeError,
    PyValueError,
};
use pyo3::prelude::*;
use pyo3::{Borrowed, ffi};

use super::{Loop, ThisLoop, watchers};
use crate::core::{Core, Direction, RECEIVE_BUFFER, Received, Waiter, resolve};
use crate::cpython::args::Args;
use crate::cpython::buffer::{ReadableBuffer, new_bytes, with_writable_buffer_and};
use crate::cpython::class::{self, Class, Definition, Native, Obj, This, Visitor};
use crate::cpython::errors::{error_of, new_error, numbered, os_error};
use crate::cpython::methods::{self, guard};
use crate::cpython::module::add;
use crate::cpython::object::{Object, ObjectCell, Resumed, resume, tuple};
use crate::handle::boolean;
use crate::imports::imports;
use crate::intern;
use crate::reactor::socket;
use crate::{attribute, method, method0, method1};

/// What to do to the socket.
pub enum Operation {
    Recv(Object),
    RecvInto(Object),
    RecvFrom(Object),
    RecvFromInto(Object, Object),
    SendAll { data: Object, view: Cell<Option<ReadableBuffer>>, sent: Cell<usize> },
    SendTo(Object, Object),
    Accept,
    Connect { address: Object, begun: Cell<bool> },
}

impl Operation {
    fn name(&self) -> &'static str {
        match self {
            Operation::Recv(..) => "sock_recv",
            Operation::RecvInto(..) => "sock_recv_into",
            Operation::RecvFrom(..) => "sock_recvfrom",
            Operation::RecvFromInto(..) => "sock_recvfrom_into",
            Operation::SendAll { .. } => "sock_sendall",
            Operation::SendTo(..) => "sock_sendto",
            Operation::Accept => "sock_accept",
            Operation::Connect { .. } => "sock_connect",
        }
    }

    /// The method of sockets in whose place this makes the system call itself.
    fn native_method(&self) -> Option<&'static str> {
        match self {
            Operation::Recv(..) => Some("recv"),
            Operation::RecvInto(..) => Some("recv_into"),
            Operation::SendAll { .. } => Some("send"),
            _ => None,
        }
    }

    fn direction(&self) -> Direction {
        match self {
            Operation::SendAll { .. } | Operation::SendTo(..) | Operation::Connect { .. } => Direction::Write,
            _ => Direction::Read,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Running,
    /// Waits for the descriptor, which is the one that the socket had when the wait began.
    Waiting(RawFd),
    /// The descriptor is ready; the task has not run yet.
    Woken,
    Done,
}

pub struct SocketOperation {
    core: Rc<Core>,
    event_loop: Obj<Loop>,
    socket: Object,
    operation: Operation,
    state: Cell<State>,
    /// Whether the socket has a method of its own for it, as an instance of a subclass can, or an object like a socket.
    by_method: Cell<bool>,
    /// The descriptor that was found not to be ready a moment ago.
    tried: Cell<Option<RawFd>>,
    /// While waiting: what readiness resolves, and the iterator that awaits it.
    future: ObjectCell,
    awaiting: ObjectCell,
}

type ThisOperation<'a, 'py> = This<'a, 'py, SocketOperation>;

impl SocketOperation {
    pub fn create(this: ThisLoop<'_, '_>, socket: Object, operation: Operation) -> PyResult<Object> {
        let value = SocketOperation {
            core: Rc::clone(&this.core),
            event_loop: this.obj(),
            socket,
            operation,
            state: Cell::new(State::Fresh),
            by_method: Cell::new(false),
            tried: Cell::new(None),
            future: ObjectCell::default(),
            awaiting: ObjectCell::default(),
        };
        Ok(Obj::new(this.py(), value)?.into_object())
    }

    /// Ends a wait: nobody watches the descriptor for this operation any more.
    fn unwatch(&self, this: &Object) {
        if let State::Waiting(fd) = self.state.get() {
            drop(self.core.remove_waiter(fd, self.operation.direction(), Some(this)));
        }
    }

    fn finish(&self, this: &Object) {
        self.unwatch(this);
        self.state.set(State::Done);
        if let Operation::SendAll { view, .. } = &self.operation {
            drop(view.take());
        }
        self.awaiting.set(None);
        self.future.set(None);
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let imports = imports(py)?;
        if !self.socket.bind(py).get_type().is(imports.socket.bind(py)) {
            imports.check_ssl_socket.call1(py, &self.socket)?;
            if let Some(method) = self.operation.native_method() {
                let method = Object::from_str(py, method)?;
                let has_own = imports.has_own_method.call(py, &[&self.socket, &method])?;
                self.by_method.set(has_own.bind(py).is_truthy()?);
            }
        }
        if self.core.schedule.debug() {
            let timeout = self.socket.call_method0(py, intern!(py, "gettimeout"))?;
            if timeout.is_none() || timeout.bind(py).is_truthy()? {
                return Err(new_error::<PyValueError>(py, "the socket must be non-blocking"));
            }
        }
        Ok(())
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let fd = self.socket.call_method0(py, intern!(py, "fileno"))?.bind(py).extract()?;
        self.tried.set(Some(fd));
        Ok(fd)
    }

    /// Tries to do the operation; None if the socket is not ready.
    fn attempt(&self, py: Python<'_>) -> PyResult<Option<Object>> {
        let socket = &self.socket;
        match &self.operation {
            Operation::Recv(size) if self.by_method.get() => {
                unless_blocked(py, socket.call_method1(py, intern!(py, "recv"), size))
            }
            Operation::Recv(size) => self.recv(py, size),
            Operation::RecvInto(buffer) if self.by_method.get() => {
                unless_blocked(py, socket.call_method1(py, intern!(py, "recv_into"), buffer))
            }
            Operation::RecvInto(buffer) => {
                // The descriptor is asked for when there is a buffer: making one can run Python code, which may close the
                // socket.
                let descriptor = || self.fileno(py);
                let received = with_writable_buffer_and(py, buffer, descriptor, |fd, memory| match memory {
                    [] => Ok(0),
                    memory => socket::recv(fd, memory),
                });
                let received = match received {
                    Err(error) if error.is_instance_of::<PyBufferError>(py) => {
                        // The socket's method says it in words of its own.
                        return unless_blocked(py, socket.call_method1(py, intern!(py, "recv_into"), buffer));
                    }
                    received => received?,
                };
                match ready(py, received)? {
                    Some(received) => Ok(Some(Object::from_size(py, received)?)),
                    None => Ok(None),
                }
            }
            Operation::RecvFrom(size) => {
                unless_blocked(py, socket.call_method1(py, intern!(py, "recvfrom"), size))
            }
            Operation::RecvFromInto(buffer, size) => {
                let size = match size.bind(py).is_truthy()? {
                    true => size.clone(),
                    false => Object::from_size(py, buffer.bind(py).len()?)?,
                };
                unless_blocked(py, socket.call_method(py, intern!(py, "recvfrom_into"), &[buffer, &size]))
            }
            Operation::SendAll { data, sent, .. } if self.by_method.get() => {
                let so_far = Object::from_size(py, sent.get())?;
                let progress = imports(py)?.send_by_method.call(py, &[&self.socket, data, &so_far]);
                let Some(progress) = unless_blocked(py, progress)? else {
                    return Ok(None);
                };
                let (so_far, is_all): (usize, bool) = progress.bind(py).extract()?;
                sent.set(so_far);
                Ok(is_all.then(|| Object::none(py)))
            }
            Operation::SendAll { data, view, sent } => {
                let buffer = match view.take() {
                    Some(buffer) => buffer,
                    None => ReadableBuffer::new(data, py)?,
                };
                // As above.
                let fd = self.fileno(py)?;
                self.core.stir();
                let rest = &buffer.as_slice()[sent.get()..];
                // Nothing at all is sent, too: it can be a datagram.
                let result = socket::send(fd, &[IoSlice::new(rest)]);
                let left = rest.len();
                view.set(Some(buffer));
                let Some(count) = ready(py, result)? else { return Ok(None) };
                sent.set(sent.get() + count);
                Ok((count == left).then(|| Object::none(py)))
            }
            Operation::SendTo(data, address) => {
                self.core.stir();
                unless_blocked(py, socket.call_method(py, intern!(py, "sendto"), &[data, address]))
            }
            Operation::Accept => {
                let accepted = unless_blocked(py, socket.call_method0(py, intern!(py, "accept")))?;
                if let Some(accepted) = &accepted {
                    self.core.metrics.counts.accepted.add(1);
                    let connection = Object::from(accepted.bind(py).get_item(0)?);
                    connection.call_method1(py, intern!(py, "setblocking"), &boolean(py, false))?;
                    // asyncio's result is a pair, as accept()'s is.
                }
                Ok(accepted)
            }
            Operation::Connect { address, begun } => {
                self.core.stir();
                if !begun.replace(true) {
                    let connected =
                        unless_blocked(py, socket.call_method1(py, intern!(py, "connect"), address))?;
                    self.core.metrics.counts.connected.add(usize::from(connected.is_some()));
                    return Ok(connected);
                }
                let option = [libc::SOL_SOCKET, libc::SO_ERROR];
                let [level, name] = option.map(|number| Object::from_int(py, number));
                let error: c_int = socket
                    .call_method(py, intern!(py, "getsockopt"), &[&level?, &name?])?
                    .bind(py)
                    .extract()?;
                if error != 0 {
                    let message = format!("Connect call failed {}", address.bind(py).str()?);
                    return Err(numbered(py, error, &message));
                }
                self.core.metrics.counts.connected.add(1);
                Ok(Some(Object::none(py)))
            }
        }
    }

    fn recv(&self, py: Python<'_>, size: &Object) -> PyResult<Option<Object>> {
        let Ok(count) = usize::try_from(size.bind(py).extract::<isize>()?) else {
            return Err(new_error::<PyValueError>(py, "negative buffersize in recv"));
        };
        let fd = self.fileno(py)?;
        if count == 0 {
            return new_bytes(py, b"").map(Some);
        }
        if count > RECEIVE_BUFFER && !socket::is_stream(fd) {
            // The rest of a datagram would be lost.
            return unless_blocked(py, self.socket.call_method1(py, intern!(py, "recv"), size));
        }
        match self.core.receive_at_once(py, fd, count, &self.core.usual_size)? {
            Received::Data(data, _) => Ok(Some(data)),
            Received::Nothing => Ok(None),
        }
    }

    /// Has the descriptor watched, and yields the future that readiness resolves.
    fn wait(this: ThisOperation<'_, '_>) -> PyResult<Object> {
        let py = this.py();
        let fd = match this.tried.take() {
            Some(fd) => fd,
            None => this.fileno(py)?,
        };
        watchers::ensure_no_transport(this.event_loop.this(py), fd, &this.socket.bind(py))?;
        let event_loop = this.event_loop.as_object();
        let future = event_loop.call_method0(py, intern!(py, "create_future"))?;
        let awaiting = future.call_method0(py, intern!(py, "__await__"))?;
        let waiter = Waiter::Operation(this.object(), on_ready);
        let previous = this.core.add_waiter(py, fd, this.operation.direction(), waiter)?;
        if let Some(Waiter::Handle(previous, _)) = &previous {
            previous.as_object().call_method0(py, intern!(py, "cancel"))?;
        }
        drop(previous);
        this.state.set(State::Waiting(fd));
        this.future.set(Some(future));
        this.awaiting.set(Some(awaiting.clone()));
        match resume(py, &awaiting, &Object::none(py))? {
            Resumed::Yielded(future) => Ok(future),
            Resumed::Returned(_) => {
                Err(new_error::<PyRuntimeError>(py, "a future that is not done must be waited for"))
            }
        }
    }

    /// Goes on until the operation is done or has to wait.
    fn proceed(this: ThisOperation<'_, '_>) -> PyResult<Resumed> {
        let py = this.py();
        this.state.set(State::Running);
        this.tried.set(None);
        match this.attempt(py)? {
            Some(result) => {
                this.finish(&this.object());
                Ok(Resumed::Returned(result))
            }
            None => SocketOperation::wait(this).map(Resumed::Yielded),
        }
    }

    fn resume(this: ThisOperation<'_, '_>, value: &Object) -> PyResult<Resumed> {
        let py = this.py();
        let result = match this.state.get() {
            State::Done => {
                return Err(new_error::<PyRuntimeError>(py, "cannot reuse already awaited coroutine"));
            }
            State::Running => return Err(new_error::<PyValueError>(py, "coroutine already executing")),
            State::Fresh if !value.is_none() => {
                return Err(new_error::<PyTypeError>(
                    py,
                    "can't send non-None value to a just-started coroutine",
                ));
            }
            State::Fresh => this.check(py).and_then(|()| SocketOperation::proceed(this)),
            State::Waiting(_) | State::Woken => {
                let Some(awaiting) = this.awaiting.get() else {
                    return Err(new_error::<PyRuntimeError>(py, "cannot reuse already awaited coroutine"));
                };
                match resume(py, &awaiting, value) {
                    Ok(Resumed::Yielded(future)) => Ok(Resumed::Yielded(future)),
                    Ok(Resumed::Returned(_)) => {
                        this.unwatch(&this.object());
                        SocketOperation::proceed(this)
                    }
                    Err(error) => Err(error),
                }
            }
        };
        if result.is_err() {
            this.finish(&this.object());
        }
        result
    }
}

/// The descriptor is ready: wakes the coroutine, unless its future was cancelled meanwhile.
fn on_ready(py: Python<'_>, object: &Object) -> PyResult<()> {
    let Some(operation) = Obj::<SocketOperation>::downcast(object) else { return Ok(()) };
    let Some(future) = operation.future.get() else { return Ok(()) };
    if let State::Waiting(fd) = operation.state.get() {
        drop(operation.core.take_waiter(fd, operation.operation.direction(), object));
        operation.state.set(State::Woken);
    }
    resolve(py, &future)
}

/// None for an error that says that the socket is not ready.
fn ready<T>(py: Python<'_>, result: io::Result<T>) -> PyResult<Option<T>> {
    match result {
        Ok(result) => Ok(Some(result)),
        Err(error) if socket::is_not_ready(&error) => Ok(None),
        Err(error) => Err(os_error(py, error)),
    }
}

/// [`ready`] for Python's socket methods.
fn unless_blocked(py: Python<'_>, result: PyResult<Object>) -> PyResult<Option<Object>> {
    match result {
        Ok(result) => Ok(Some(result)),
        Err(error)
            if error.is_instance_of::<PyBlockingIOError>(py)
                || error.is_instance_of::<PyInterruptedError>(py) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Native for SocketOperation {
    fn class() -> &'static Class {
        static CLASS: Class = Class::new(64);
        &CLASS
    }

    fn traverse(&self, visitor: &mut Visitor) {
        visitor.object(self.event_loop.as_object());
        visitor.object(&self.socket);
        match &self.operation {
            Operation::Recv(object) | Operation::RecvInto(object) | Operation::RecvFrom(object) => {
                visitor.object(object)
            }
            Operation::RecvFromInto(first, second) | Operation::SendTo(first, second) => {
                visitor.object(first);
                visitor.object(second);
            }
            Operation::SendAll { data, view, .. } => {
                visitor.object(data);
                // SAFETY: it is looked at for this expression only, in which nothing replaces it.
                if let Some(view) = unsafe { &*view.as_ptr() } {
                    view.traverse(visitor);
                }
            }
            Operation::Connect { address, .. } => visitor.object(address),
            Operation::Accept => {}
        }
        visitor.cell(&self.future);
        visitor.cell(&self.awaiting);
    }

    fn clear(&self) {
        self.state.set(State::Done);
        self.awaiting.set(None);
        self.future.set(None);
    }

    const FINALIZES: bool = true;

    /// One that is done has nothing to say, and is used again.
    fn needs_finalizer(&self) -> bool {
        self.state.get() != State::Done
    }

    fn finalize(this: This<'_, '_, Self>) {
        let py = this.py();
        match this.state.get() {
            State::Fresh => {
                let warned = imports(py).and_then(|imports| {
                    let name = Object::from_str(py, this.operation.name())?;
                    imports.warn_unawaited.call1(py, &name)
                });
                if let Err(error) = warned {
                    error.write_unraisable(py, Some(&this.as_any()));
                }
            }
            _ => this.finish(&this.object()),
        }
    }
}

fn send<'py>(this: ThisOperation<'_, 'py>, value: pyo3::Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    match SocketOperation::resume(this, &Object::from(value))? {
        Resumed::Yielded(future) => Ok(future),
        Resumed::Returned(result) => Err(stop_iteration(this.py(), result)),
    }
}

fn throw<'py>(this: ThisOperation<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let [thrown, value, traceback] = args.parse("throw", ["typ", "val", "tb"], 1, 3)?;
    let thrown =
        thrown.ok_or_else(|| new_error::<PyTypeError>(py, "throw() takes an exception"))?.into_bound(py);
    let value = value.filter(|value| !value.is_none());
    let error = match value {
        Some(value) if value.bind(py).is_instance(&thrown)? => PyErr::from_value(value.into_bound(py)),
        Some(value) => PyErr::from_value(Object::from(thrown).call1(py, &value)?.into_bound(py)),
        None => PyErr::from_value(thrown),
    };
    if let Some(traceback) = traceback.filter(|traceback| !traceback.is_none()) {
        error.value(py).setattr(intern!(py, "__traceback__"), traceback.bind(py))?;
    }
    if this.state.get() == State::Done {
        return Err(new_error::<PyRuntimeError>(py, "cannot reuse already awaited coroutine"));
    }
    this.finish(&this.object());
    Err(error)
}

unsafe extern "C" fn am_await(instance: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the instance lives, and its class is that of SocketOperation.
    unsafe { methods::call_bare::<SocketOperation>(instance, |this| Ok(this.object())) }
}

/// The way in which a coroutine written in Python resumes what it awaits: the end is no value, and, unless the result is
/// None, a StopIteration.
unsafe extern "C" fn iter_next(instance: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: the interpreter passes an instance of the class.
    unsafe {
        guard(std::ptr::null_mut(), |py| {
            let this = This::<SocketOperation>::new(Borrowed::from_ptr(py, instance));
            match SocketOperation::resume(this, &Object::none(py))? {
                Resumed::Yielded(future) => Ok(future.into_ptr()),
                Resumed::Returned(result) if result.is_none() => Ok(std::ptr::null_mut()),
                Resumed::Returned(result) if result.is_tuple() => Err(stop_iteration(py, result)),
                Resumed::Returned(result) => {
                    ffi::PyErr_SetObject(ffi::PyExc_StopIteration, result.as_ptr());
                    Ok(std::ptr::null_mut())
                }
            }
        })
    }
}

/// What ends a coroutine with a result. A tuple as the value of StopIteration would be taken for its arguments.
fn stop_iteration(py: Python<'_>, result: Object) -> PyErr {
    match tuple(py, &[&result]) {
        Ok(arguments) => error_of::<PyStopIteration>(py, &arguments),
        Err(error) => error,
    }
}

unsafe extern "C" fn am_send(
    instance: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
    result: *mut *mut ffi::PyObject,
) -> ffi::PySendResult {
    // SAFETY: the interpreter passes an instance of the class, a live value, and a place for the result.
    unsafe {
        *result = std::ptr::null_mut();
        guard(ffi::PySendResult::PYGEN_ERROR, |py| {
            let object = Object::from_borrowed(std::ptr::NonNull::new_unchecked(instance));
            let value = Object::from_borrowed(std::ptr::NonNull::new_unchecked(value));
            let Some(operation) = Obj::<SocketOperation>::downcast(&object) else {
                return Err(new_error::<PyTypeError>(py, "not a socket operation"));
            };
            Ok(match SocketOperation::resume(operation.this(py), &value)? {
                Resumed::Yielded(future) => {
                    *result = future.into_ptr();
                    ffi::PySendResult::PYGEN_NEXT
                }
                Resumed::Returned(value) => {
                    *result = value.into_ptr();
                    ffi::PySendResult::PYGEN_RETURN
                }
            })
        })
    }
}

fn name(this: ThisOperation<'_, '_>) -> PyResult<Object> {
    Object::from_str(this.py(), this.operation.name())
}

/// Makes the class.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let slot = |slot, pfunc| ffi::PyType_Slot { slot, pfunc };
    let definition = Definition {
        name: c"hotloop._core.SocketOperation",
        doc: c"A coroutine that does one operation on a socket.",
        base: module.py().get_type::<PyAny>(),
        methods: vec![
            method1!(SocketOperation, "send", "value", send, "Resume the coroutine."),
            method!(
                SocketOperation,
                "throw",
                throw,
                "throw($self, typ, val=None, tb=None, /)\n--\n\nEnd the coroutine with an exception."
            ),
            method0!(
                SocketOperation,
                "close",
                |this| {
                    this.finish(&this.object());
                    Ok(Object::none(this.py()))
                },
                "close($self, /)\n--\n\nEnd the coroutine."
            ),
        ],
        attributes: vec![
            attribute!(SocketOperation, "__name__", name),
            attribute!(SocketOperation, "__qualname__", name),
            attribute!(SocketOperation, "cr_running", |this| Ok(boolean(
                this.py(),
                this.state.get() == State::Running
            ))),
            attribute!(SocketOperation, "cr_suspended", |this| Ok(boolean(
                this.py(),
                matches!(this.state.get(), State::Waiting(_) | State::Woken)
            ))),
            attribute!(SocketOperation, "cr_origin", |this| Ok(Object::none(this.py()))),
            attribute!(SocketOperation, "cr_await", |this| Ok(this
                .future
                .get()
                .unwrap_or_else(|| Object::none(this.py())))),
            attribute!(SocketOperation, "cr_frame", |this| Ok(Object::none(this.py()))),
            attribute!(SocketOperation, "cr_code", |this| Ok(Object::none(this.py()))),
        ],
        slots: vec![
            slot(ffi::Py_am_await, am_await as *mut c_void),
            slot(ffi::Py_am_send, am_send as *mut c_void),
            slot(ffi::Py_tp_iter, ffi::PyObject_SelfIter as *mut c_void),
            slot(ffi::Py_tp_iternext, iter_next as *mut c_void),
        ],
        open: true,
    };
    add(module, "SocketOperation", class::make::<SocketOperation>(definition)?)
}
