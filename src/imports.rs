//! What Rust needs of Python: classes and functions of the standard library, and the functions of `hotloop._support`, which does
//! in Python what is rarely done (error reports, debug output).
//!
//! Loaded when the extension is imported, and kept as long as the process.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::cpython::module::{attribute, import};
use crate::cpython::namespace;
use crate::cpython::object::{Object, dict_item, tuple};
use crate::intern;

/// Defines [`Imports`], and `load`, which makes it.
macro_rules! imports {
    (|$py:ident, $asyncio:ident, $support:ident| $($(#[$doc:meta])* $vis:vis $name:ident: $type:ty = $value:expr,)*) => {
        pub struct Imports {
            $($(#[$doc])* $vis $name: $type,)*
        }

        #[cold]
        fn load($py: Python<'_>) -> PyResult<Imports> {
            let $asyncio = import($py, "asyncio")?;
            let $support = import($py, "hotloop._support")?;
            Ok(Imports { $($name: $value,)* })
        }
    };
}

imports! { |py, asyncio, support|
    pub base_create_task: Object = asyncio.getattr(intern!(py, "BaseEventLoop"))?.getattr(intern!(py, "create_task"))?.into(),
    /// Dicts in which asyncio looks up its Task and Future at each use.
    tasks: Object = attribute(&asyncio, "tasks")?.bind(py).getattr(intern!(py, "__dict__"))?.into(),
    futures: Object = attribute(&asyncio, "futures")?.bind(py).getattr(intern!(py, "__dict__"))?.into(),
    pub buffered_protocol: Object = attribute(&asyncio, "BufferedProtocol")?,
    pub stream_protocol: Object = attribute(&asyncio, "StreamReaderProtocol")?,
    pub pipe_protocol: Object = attribute(&import(py, "asyncio.base_subprocess")?, "ReadSubprocessPipeProto")?,
    pub adopt_streams: Object = attribute(&import(py, "hotloop._streams")?, "adopt")?,
    invalid_state_error: Object = attribute(&asyncio, "InvalidStateError")?,
    pub c_task: Object = attribute(&support, "c_task")?,
    pub c_future: Object = attribute(&support, "c_future")?,
    /// The time module's dict.
    pub time: Object = import(py, "time")?.getattr(intern!(py, "__dict__"))?.into(),
    /// The interpreter's time.monotonic(); None if it was replaced before the extension was imported.
    pub original_monotonic: Object = attribute(&support, "original_monotonic")?,
    pub handle_class: Object = asyncio.getattr(intern!(py, "Handle"))?.into(),
    /// asyncio.Handle's own `_run()`; None if it was replaced before.
    pub original_run: Object = attribute(&support, "original_run")?,
    /// asyncio.BaseTransport's own get_extra_info(); None if it was replaced before.
    pub original_extra_info: Object = attribute(&support, "original_extra_info")?,
    /// asyncio._get_running_loop().
    get_running_loop: Object = asyncio.getattr(intern!(py, "_get_running_loop"))?.into(),
    /// The type of the callable that asyncio's C task passes to call_soon() for a step.
    pub task_step: Object = support.call_method0(intern!(py, "task_step_type"))?.into(),
    /// functools.partial.
    pub partial: Object = import(py, "functools")?.getattr(intern!(py, "partial"))?.into(),
    /// The callback of the weak references in asyncio's set of all tasks; None if it has none.
    pub forget_task: Object = attribute(&support, "forget_task")?,
    pub name_of: Object = attribute(&support, "name_of")?,
    pub find_chain: Object = attribute(&support, "find_chain")?,
    pub report_entry: Object = attribute(&support, "report_entry")?,
    pub report_handle: Object = attribute(&support, "report_handle")?,
    pub report_slow: Object = attribute(&support, "report_slow")?,
    pub log_connection_error: Object = attribute(&support, "log_connection_error")?,
    pub report_protocol: Object = attribute(&support, "report_protocol")?,
    pub report_accept: Object = attribute(&support, "report_accept")?,
    pub source_traceback: Object = attribute(&support, "source_traceback")?,
    pub transport_socket: Object = attribute(&support, "transport_socket")?,
    pub stream_socket: Object = attribute(&support, "StreamSocket")?,
    pub make_socket: Object = attribute(&support, "make_socket")?,
    pub closed_socket: Object = attribute(&support, "closed_socket")?,
    pub check_ssl_socket: Object = attribute(&support, "check_ssl_socket")?,
    pub has_own_method: Object = attribute(&support, "has_own_method")?,
    pub has_own_methods: Object = attribute(&support, "has_own_methods")?,
    pub asyncio_stream: Object = attribute(&support, "asyncio_stream")?,
    pub asyncio_datagram: Object = attribute(&support, "asyncio_datagram")?,
    pub send_by_method: Object = attribute(&support, "send_by_method")?,
    /// socket.socket.
    pub socket: Object = import(py, "socket")?.getattr(intern!(py, "socket"))?.into(),
    /// The socket module's dict.
    pub socket_module: Object = import(py, "socket")?.getattr(intern!(py, "__dict__"))?.into(),
    /// _socket.socket, its base, which is written in C.
    pub native_socket: Object = import(py, "_socket")?.getattr(intern!(py, "socket"))?.into(),
    pub warn_unawaited: Object = attribute(&support, "warn_unawaited")?,
    pub note_opened: Object = attribute(&support, "note_opened")?,
    pub warn_unclosed: Object = attribute(&support, "warn_unclosed")?,
    pub report_connection: Object = attribute(&support, "report_connection")?,
    pub log_connection: Object = attribute(&support, "log_connection")?,
    pub fail_empty_waiter: Object = attribute(&support, "fail_empty_waiter")?,
    pub logger: Object = attribute(&support, "logger")?,
    /// `("loop",)`: the names of the keyword arguments that futures are made with.
    pub loop_names: Object = tuple(py, &[&Object::from(intern!(py, "loop"))])?,
    /// Whether asyncio's create_task() passes any keyword argument on to the class of tasks.
    pub create_task_takes_all: bool = support.getattr(intern!(py, "CREATE_TASK_TAKES_ALL"))?.is_truthy()?,
    /// Whether asyncio's Server._attach() takes the transport.
    pub server_takes_transport: bool = support.getattr(intern!(py, "SERVER_TAKES_TRANSPORT"))?.is_truthy()?,
    /// Bytes that a buffered datagram counts in addition to its data.
    pub datagram_header: usize = support.getattr(intern!(py, "DATAGRAM_HEADER"))?.extract()?,
}

// SAFETY: the references are made once, used by attached threads, and never dropped.
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

/// Whether asyncio's Task and Future are known to be its own, in C. Programs replace them.
pub static TASK_IS_ORIGINAL: AtomicBool = AtomicBool::new(false);
pub static FUTURE_IS_ORIGINAL: AtomicBool = AtomicBool::new(false);

/// A class as asyncio has it now.
pub enum ClassNow<'a> {
    Original(&'a Object),
    LookedUp(Object),
}

impl Deref for ClassNow<'_> {
    type Target = Object;

    fn deref(&self) -> &Object {
        match self {
            ClassNow::Original(class) => class,
            ClassNow::LookedUp(class) => class,
        }
    }
}

impl Imports {
    /// Whether a class is asyncio's own Task or Future in C, and this loop runs in the calling thread: then the class finds the loop
    /// by itself.
    pub fn finds_loop(&self, py: Python<'_>, class: &Object, event_loop: &Object) -> PyResult<bool> {
        Ok((class.is(&self.c_task) || class.is(&self.c_future))
            && self.get_running_loop.call(py, &[])?.is(event_loop))
    }

    /// The event loop that runs in this thread, or None.
    #[cfg(Py_3_12)]
    pub fn running_loop(&self, py: Python<'_>) -> PyResult<Object> {
        self.get_running_loop.call(py, &[])
    }

    #[inline(always)]
    pub fn task(&self, py: Python<'_>) -> PyResult<ClassNow<'_>> {
        if TASK_IS_ORIGINAL.load(Relaxed) {
            return Ok(ClassNow::Original(&self.c_task));
        }
        dict_item(py, &self.tasks, intern!(py, "Task")).map(ClassNow::LookedUp)
    }

    #[inline(always)]
    pub fn future(&self, py: Python<'_>) -> PyResult<ClassNow<'_>> {
        if FUTURE_IS_ORIGINAL.load(Relaxed) {
            return Ok(ClassNow::Original(&self.c_future));
        }
        dict_item(py, &self.futures, intern!(py, "Future")).map(ClassNow::LookedUp)
    }

    /// Notes whether asyncio's Task and Future are its own, which `changing` is told of from now on, if this Python tells.
    pub fn watch_classes(&self, py: Python<'_>, changing: namespace::Changing) -> PyResult<()> {
        for (module, name, original, flag) in [
            (&self.tasks, intern!(py, "Task"), &self.c_task, &TASK_IS_ORIGINAL),
            (&self.futures, intern!(py, "Future"), &self.c_future, &FUTURE_IS_ORIGINAL),
        ] {
            // Another thread may replace it meanwhile, and clears the flag before.
            flag.store(namespace::watch(module, changing), Relaxed);
            if !dict_item(py, module, name)?.is(original) {
                flag.store(false, Relaxed);
            }
        }
        Ok(())
    }
}

/// Resolves a future with None, unless it was done before. Other errors are returned, though the future is done then: a callback
/// of it could not be scheduled, out of memory.
pub fn resolve(py: Python<'_>, future: &Object) -> PyResult<()> {
    let Err(error) = future.call_method(py, intern!(py, "set_result"), &[&Object::none(py)]) else {
        return Ok(());
    };
    let was_done = error.value(py).is_instance(&imports(py)?.invalid_state_error.bind(py))?;
    if was_done { Ok(()) } else { Err(error) }
}
