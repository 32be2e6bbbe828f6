//! The class `hotloop._core.Loop`: what of an event loop runs for each callback, event or byte.
//!
//! `hotloop.Loop` derives from it and from asyncio.BaseEventLoop, which does the rest. One file a chapter of the
//! documentation of asyncio's AbstractEventLoop, and `observing`, which that does not have.

mod accounting;
mod connecting;
mod observing;
mod overrides;
mod queues;
mod recording;
mod running;
mod scheduling;
mod serving;
mod socket_operation;
mod sockets;
mod tasks;
mod transport_factories;
mod watchers;

use std::ffi::c_int;
use std::num::NonZeroU64;

use pyo3::exceptions::{PyAttributeError, PyOverflowError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::core::Core;
use crate::cpython::class::{self, Class, Definition, Native, This, Visitor};
use crate::cpython::errors::{OrOsError, new_error};
use crate::cpython::module::add;
use crate::cpython::object::{Object, tuple_of};
use crate::cpython::ownership::{Owner, Shared};
use crate::cpython::statics;
use crate::intern;
use crate::reactor::poller::Backend;
use crate::reactor::published::Published;

/// The value behind a Loop.
pub struct Loop {
    pub core: Shared<Core>,
    /// Set by close(), before the core is closed.
    closed: Published<bool>,
    /// The identifier of the thread that runs the loop.
    thread: Published<Option<NonZeroU64>>,
    has_task_factory: Published<bool>,
    overrides: Overrides,
    /// Whether the program has overridden one of the methods in [`CONNECTING`].
    replaces_connecting: Published<bool>,
    /// Whether a transport of asyncio's own was made, for a socket with methods of its own.
    has_transports_of_asyncio: Published<bool>,
}

/// Methods that asyncio's create_connection() calls.
const CONNECTING: [&str; 6] = [
    "getaddrinfo",
    "sock_connect",
    "_ensure_resolved",
    "_connect_sock",
    "_create_connection_transport",
    "_make_socket_transport",
];

pub type ThisLoop<'a, 'py> = This<'a, 'py, Loop>;

impl Loop {
    #[cfg_attr(
        Py_GIL_DISABLED,
        allow(clippy::arc_with_non_send_sync, reason = "the owner alone touches what is not")
    )]
    fn new(py: Python<'_>) -> PyResult<Loop> {
        let core = Core::new(Backend::from_environment()).or_os_error(py)?;
        core.recorder.set_transports(recording::TRANSPORTS);
        Ok(Loop {
            core: Shared::new(core),
            // BaseEventLoop.__init__() sets it to False. Until then there is nothing to close.
            closed: Published::new(true),
            thread: Published::new(None),
            has_task_factory: Published::new(false),
            overrides: Overrides::default(),
            replaces_connecting: Published::new(false),
            has_transports_of_asyncio: Published::new(false),
        })
    }

    fn check_closed(&self, py: Python<'_>) -> PyResult<()> {
        if self.closed.get() {
            return Err(new_error::<PyRuntimeError>(py, "Event loop is closed"));
        }
        Ok(())
    }

    fn debug(&self) -> bool {
        self.core.schedule.debug()
    }
}

impl Native for Loop {
    fn class() -> &'static Class {
        &statics::LOOP
    }

    fn traverse(&self, visitor: &mut Visitor) {
        self.core.traverse(visitor);
    }

    fn clear(&self) {
        self.core.clear();
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Transports may keep the core alive; what it refers to must not outlive the loop.
        self.core.clear();
    }
}

unsafe extern "C" fn new_loop(
    class: *mut ffi::PyTypeObject,
    _args: *mut ffi::PyObject,
    _keywords: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: this is tp_new.
    unsafe {
        class::new_instance::<Loop>(class, |py| {
            let event_loop = Loop::new(py)?;
            event_loop.note_overrides(Bound::from_borrowed_ptr(py, class.cast()).as_any(), None)?;
            event_loop.note_patches(py)?;
            Ok(event_loop)
        })
    }
}

pub use observing::{begin_fork, end_fork, ignore_transports, note_transports, stop_watching};
use overrides::Overrides;
pub use overrides::watch_patches;

/// Makes the classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let mut methods = scheduling::methods();
    methods.extend(running::methods());
    methods.extend(tasks::methods());
    methods.extend(queues::methods());
    methods.extend(observing::methods());
    methods.extend(recording::methods());
    methods.extend(accounting::methods());
    methods.extend(watchers::methods());
    methods.extend(sockets::methods());
    methods.extend(serving::methods());
    methods.extend(transport_factories::methods());
    methods.extend(connecting::methods());
    let definition = Definition {
        name: c"hotloop._core.Loop",
        doc: c"The part of hotloop.Loop that is written in Rust.",
        base: module.py().get_type::<PyAny>(),
        methods,
        attributes: running::attributes(),
        slots: vec![ffi::PyType_Slot {
            slot: ffi::Py_tp_setattro,
            pfunc: overrides::set_attribute as *mut std::ffi::c_void,
        }],
        open: false,
    };
    let py = module.py();
    let names = CONNECTING.map(|name| Object::from_str(py, name));
    let names = names.into_iter().collect::<PyResult<Vec<_>>>()?;
    add(module, "CONNECTING", tuple_of(py, names.iter())?)?;
    let class = class::make_subclassable::<Loop>(definition, new_loop)?;
    sockets::put_coroutine_methods(&class)?;
    add(module, "Loop", class)?;
    socket_operation::register(module)?;
    queues::register(module)
}

/// A file descriptor out of an integer or an object with fileno(), with the errors of the `selectors` module: ValueError
/// for what is none, OverflowError for a number that can be none, and whatever else fileno() raises.
fn descriptor(object: &Bound<'_, PyAny>) -> PyResult<c_int> {
    match fileno(object)? {
        fd @ 0.. => Ok(fd),
        fd => Err(invalid_descriptor(object.py(), fd)),
    }
}

/// Like [`descriptor`], but a negative number is returned: that of a closed socket is.
fn fileno(object: &Bound<'_, PyAny>) -> PyResult<c_int> {
    let py = object.py();
    use pyo3::types::PyInt;

    let fd = if object.is_instance_of::<PyInt>() {
        object.extract::<c_int>()
    } else {
        Object::from(object)
            .call_method(py, intern!(py, "fileno"), &[])
            .and_then(|fd| fd.bind(py).extract::<c_int>())
    };
    match fd {
        Ok(fd) => Ok(fd),
        Err(error) if error.is_instance_of::<PyOverflowError>(py) => {
            Err(new_error::<PyOverflowError>(py, "Python int too large to convert to C int"))
        }
        Err(error) if is_no_descriptor(&error, py) => {
            Err(new_error::<PyValueError>(py, format!("Invalid file object: {}", object.repr()?)))
        }
        Err(error) => Err(error),
    }
}

/// Whether an error of fileno() says that the object has no descriptor.
#[cold]
fn is_no_descriptor(error: &PyErr, py: Python<'_>) -> bool {
    error.is_instance_of::<PyAttributeError>(py)
        || error.is_instance_of::<PyTypeError>(py)
        || error.is_instance_of::<PyValueError>(py)
}

fn invalid_descriptor(py: Python<'_>, fd: c_int) -> PyErr {
    new_error::<PyValueError>(py, format!("Invalid file descriptor: {fd}"))
}

/// An argument, unless it is None.
fn given(argument: Option<Object>) -> Option<Object> {
    argument.filter(|argument| !argument.is_none())
}
