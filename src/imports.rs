//! What Rust needs of Python: classes and functions of the standard library, and the functions of `hotloop._support`, which does
//! in Python what is rarely done (error reports, debug output).
//!
//! Loaded when the extension is imported, and kept as long as the process.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::cpython::module::{attribute, import};
use crate::cpython::object::{Object, dict_item};
use crate::intern;

pub struct Imports {
    pub base_create_task: Object,
    /// Dicts in which asyncio looks up its Task and Future at each use, since programs replace them.
    tasks: Object,
    futures: Object,
    pub buffered_protocol: Object,
    invalid_state_error: Object,
    pub c_task: Object,
    c_future: Object,
    /// The time module's dict.
    pub time: Object,
    /// The interpreter's time.monotonic(); None if it was replaced before the extension was imported.
    pub usual_monotonic: Object,
    pub handle_class: Object,
    /// asyncio.Handle's own `_run()`; None if it was replaced before.
    pub usual_run: Object,
    /// asyncio.BaseTransport's own get_extra_info(); None if it was replaced before.
    pub usual_extra_info: Object,
    /// asyncio._get_running_loop().
    get_running_loop: Object,
    /// The type of the callable that asyncio's C task passes to call_soon() for a step.
    pub task_step: Object,
    pub report_entry: Object,
    pub report_handle: Object,
    pub report_slow: Object,
    pub log_connection_error: Object,
    pub report_protocol: Object,
    pub report_accept: Object,
    pub source_traceback: Object,
    pub transport_socket: Object,
    pub stream_socket: Object,
    pub make_socket: Object,
    pub closed_socket: Object,
    pub check_ssl_socket: Object,
    pub has_own_method: Object,
    pub has_own_methods: Object,
    pub stream_by_methods: Object,
    pub datagram_by_methods: Object,
    pub send_by_method: Object,
    /// socket.socket.
    pub socket: Object,
    /// _socket.socket, its base, which is written in C.
    pub native_socket: Object,
    pub warn_unawaited: Object,
    pub warn_unclosed: Object,
    pub report_connection: Object,
    pub log_connection: Object,
    pub fail_empty_waiter: Object,
    pub logger: Object,
    /// Whether asyncio's create_task() passes any keyword argument on to the class of tasks.
    pub create_task_takes_all: bool,
    /// Whether asyncio's Server._attach() takes the transport.
    pub server_takes_transport: bool,
    /// Bytes that a buffered datagram counts in addition to its data.
    pub datagram_header: usize,
}

// SAFETY: GIL: the references are made and used under it, and never dropped.
unsafe impl Send for Imports {}
// SAFETY: see above.
unsafe impl Sync for Imports {}

static IMPORTS: PyOnceLock<Imports> = PyOnceLock::new();

pub fn imports(py: Python<'_>) -> PyResult<&'static Imports> {
    match IMPORTS.get(py) {
        Some(imports) => Ok(imports),
        None => IMPORTS.get_or_try_init(py, || load(py)),
    }
}

impl Imports {
    /// Whether a class is asyncio's own Task or Future in C, and this loop runs in the calling thread: then the class finds the loop
    /// by itself.
    pub fn finds_loop(&self, py: Python<'_>, class: &Object, event_loop: &Object) -> PyResult<bool> {
        Ok((class.is(&self.c_task) || class.is(&self.c_future))
            && self.get_running_loop.call0(py)?.is(event_loop))
    }

    /// The event loop that runs in this thread, or None.
    #[cfg(Py_3_12)]
    pub fn running_loop(&self, py: Python<'_>) -> PyResult<Object> {
        self.get_running_loop.call0(py)
    }

    pub fn task(&self, py: Python<'_>) -> PyResult<Object> {
        dict_item(py, &self.tasks, intern!(py, "Task"))
    }

    pub fn future(&self, py: Python<'_>) -> PyResult<Object> {
        dict_item(py, &self.futures, intern!(py, "Future"))
    }
}

/// Resolves a future with None, unless it was done before. Other errors are returned, though the future is done then: a callback
/// of it could not be scheduled, out of memory.
pub fn resolve(py: Python<'_>, future: &Object) -> PyResult<()> {
    let Err(error) = future.call_method1(py, intern!(py, "set_result"), &Object::none(py)) else {
        return Ok(());
    };
    let was_done = error.value(py).is_instance(&imports(py)?.invalid_state_error.bind(py))?;
    if was_done { Ok(()) } else { Err(error) }
}

#[cold]
fn load(py: Python<'_>) -> PyResult<Imports> {
    let asyncio = import(py, "asyncio")?;
    let support = import(py, "hotloop._support")?;
    Ok(Imports {
        base_create_task: asyncio
            .getattr(intern!(py, "BaseEventLoop"))?
            .getattr(intern!(py, "create_task"))?
            .into(),
        tasks: attribute(&asyncio, "tasks")?.bind(py).getattr(intern!(py, "__dict__"))?.into(),
        futures: attribute(&asyncio, "futures")?.bind(py).getattr(intern!(py, "__dict__"))?.into(),
        buffered_protocol: attribute(&asyncio, "BufferedProtocol")?,
        invalid_state_error: attribute(&asyncio, "InvalidStateError")?,
        c_task: attribute(&support, "c_task")?,
        c_future: attribute(&support, "c_future")?,
        time: import(py, "time")?.getattr(intern!(py, "__dict__"))?.into(),
        usual_monotonic: attribute(&support, "usual_monotonic")?,
        handle_class: asyncio.getattr(intern!(py, "Handle"))?.into(),
        usual_run: attribute(&support, "usual_run")?,
        usual_extra_info: attribute(&support, "usual_extra_info")?,
        get_running_loop: asyncio.getattr(intern!(py, "_get_running_loop"))?.into(),
        task_step: support.call_method0(intern!(py, "task_step_type"))?.into(),
        report_entry: attribute(&support, "report_entry")?,
        report_handle: attribute(&support, "report_handle")?,
        report_slow: attribute(&support, "report_slow")?,
        log_connection_error: attribute(&support, "log_connection_error")?,
        report_protocol: attribute(&support, "report_protocol")?,
        report_accept: attribute(&support, "report_accept")?,
        source_traceback: attribute(&support, "source_traceback")?,
        transport_socket: attribute(&support, "transport_socket")?,
        stream_socket: attribute(&support, "StreamSocket")?,
        make_socket: attribute(&support, "make_socket")?,
        closed_socket: attribute(&support, "closed_socket")?,
        socket: import(py, "socket")?.getattr(intern!(py, "socket"))?.into(),
        native_socket: import(py, "_socket")?.getattr(intern!(py, "socket"))?.into(),
        check_ssl_socket: attribute(&support, "check_ssl_socket")?,
        has_own_method: attribute(&support, "has_own_method")?,
        has_own_methods: attribute(&support, "has_own_methods")?,
        stream_by_methods: attribute(&support, "stream_by_methods")?,
        datagram_by_methods: attribute(&support, "datagram_by_methods")?,
        send_by_method: attribute(&support, "send_by_method")?,
        warn_unawaited: attribute(&support, "warn_unawaited")?,
        warn_unclosed: attribute(&support, "warn_unclosed")?,
        report_connection: attribute(&support, "report_connection")?,
        log_connection: attribute(&support, "log_connection")?,
        fail_empty_waiter: attribute(&support, "fail_empty_waiter")?,
        logger: attribute(&support, "logger")?,
        create_task_takes_all: support.getattr(intern!(py, "CREATE_TASK_TAKES_ALL"))?.is_truthy()?,
        datagram_header: support.getattr(intern!(py, "DATAGRAM_HEADER"))?.extract()?,
        server_takes_transport: support.getattr(intern!(py, "SERVER_TAKES_TRANSPORT"))?.is_truthy()?,
    })
}
