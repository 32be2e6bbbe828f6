//! The coroutines that sock_recv() and the other `sock_*` methods return. Each does one operation on a socket.
//!
//! ```text
//!          first resumed                 not ready                  event
//!   Fresh --------------> Running ------------------> Waiting(fd) -------> Woken
//!                          |  ^                          |                   |
//!                    done  |  +--------------------------+-------------------+  resumed, and the future is done
//!                          v
//!                         Done   (also by an exception, close() and throw(), from any state)
//! ```
//!
//! The operation is tried when the coroutine is resumed. An event only resolves the future that it waits for: a
//! cancellation that comes before the resumption leaves the data in the socket, for the next call.

mod attempt;
mod class;

use std::cell::Cell;
use std::os::fd::RawFd;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::{Loop, ThisLoop, watchers};
use crate::core::{Core, Direction, Waiter};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::buffer::ReadableBuffer;
use crate::cpython::class::{Obj, This};
use crate::cpython::errors::new_error;
use crate::cpython::object::{Object, ObjectCell, Resumed, resume};
use crate::cpython::ownership::Shared;
use crate::imports::{imports, resolve};
use crate::intern;
use crate::reactor::published::Published;
#[cfg(Py_GIL_DISABLED)]
use crate::reactor::published::Word;

pub use class::register;

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

    /// The socket's method, if its system call is made here.
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
    /// Waits for the descriptor, which the socket had when the wait began.
    Waiting(RawFd),
    /// The descriptor is ready; the coroutine was not resumed yet.
    Woken,
    Done,
}

#[cfg(Py_GIL_DISABLED)]
impl Word for State {
    fn to_word(self) -> u64 {
        match self {
            State::Fresh => 0,
            State::Running => 1,
            State::Woken => 2,
            State::Done => 3,
            State::Waiting(fd) => 4 + fd as u64,
        }
    }

    fn from_word(word: u64) -> State {
        match word {
            0 => State::Fresh,
            1 => State::Running,
            2 => State::Woken,
            3 => State::Done,
            fd => State::Waiting((fd - 4) as RawFd),
        }
    }
}

pub struct SocketOperation {
    core: Shared<Core>,
    event_loop: Obj<Loop>,
    socket: Object,
    operation: Operation,
    state: Published<State>,
    /// Whether the socket overrides the method, so that it is to be called.
    by_method: Cell<bool>,
    /// The descriptor of the present attempt, if the attempt has asked for it.
    tried: Cell<Option<RawFd>>,
    /// While waiting, the future that an event resolves.
    future: ObjectCell,
    /// The future's iterator.
    awaiting: ObjectCell,
}

type ThisOperation<'a, 'py> = This<'a, 'py, SocketOperation>;

impl SocketOperation {
    pub fn create(this: ThisLoop<'_, '_>, socket: Object, operation: Operation) -> PyResult<Object> {
        let value = SocketOperation {
            core: Shared::clone(&this.core),
            event_loop: this.obj(),
            socket,
            operation,
            state: Published::new(State::Fresh),
            by_method: Cell::new(false),
            tried: Cell::new(None),
            future: ObjectCell::default(),
            awaiting: ObjectCell::default(),
        };
        Ok(Obj::new(this.py(), value)?.into_object())
    }

    /// Stops watching the descriptor, if it waits.
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
            imports.check_ssl_socket.call(py, &[&self.socket])?;
            if let Some(method) = self.operation.native_method() {
                let method = Object::from_str(py, method)?;
                let has_own = imports.has_own_method.call(py, &[&self.socket, &method])?;
                self.by_method.set(has_own.bind(py).is_truthy()?);
            }
        }
        if self.core.schedule.debug() {
            let timeout = self.socket.call_method(py, intern!(py, "gettimeout"), &[])?;
            if timeout.is_none() || timeout.bind(py).is_truthy()? {
                return Err(new_error::<PyValueError>(py, "the socket must be non-blocking"));
            }
        }
        Ok(())
    }

    /// Has the descriptor watched, and returns the future that an event resolves.
    fn wait(this: ThisOperation<'_, '_>) -> PyResult<Object> {
        let py = this.py();
        let fd = match this.tried.take() {
            Some(fd) => fd,
            None => this.fileno(py)?,
        };
        watchers::ensure_no_transport(this.event_loop.this(py), fd, &this.socket.bind(py))?;
        let event_loop = this.event_loop.as_object();
        let future = event_loop.call_method(py, intern!(py, "create_future"), &[])?;
        let awaiting = future.call_method(py, intern!(py, "__await__"), &[])?;
        let waiter = Waiter::Step(BoundMethod::new(this, on_ready));
        let previous = this.core.add_waiter(py, fd, this.operation.direction(), waiter)?;
        if let Some(Waiter::Handle(previous, _)) = &previous {
            previous.as_object().call_method(py, intern!(py, "cancel"), &[])?;
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

/// The descriptor is ready: wakes the coroutine, unless its future was cancelled.
fn on_ready(this: ThisOperation<'_, '_>) -> PyResult<()> {
    let Some(future) = this.future.get() else { return Ok(()) };
    if let State::Waiting(fd) = this.state.get() {
        drop(this.core.take_waiter(fd, this.operation.direction(), &this.object()));
        this.state.set(State::Woken);
    }
    resolve(this.py(), &future)
}
