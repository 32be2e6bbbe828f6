//! The Python class of the stream transport: what asyncio.Transport promises, on top of [`super::Stream`].

use pyo3::Borrowed;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

use super::{Phase, Stream, ThisStream, log_debug};
use crate::cpython::args::Args;
use crate::cpython::class::{self, Definition};
use crate::cpython::methods;
use crate::cpython::object::{Bytes, Object};
use crate::handle::boolean;
use crate::imports::imports;
use crate::{attribute, method, method0, method1};

fn none(this: ThisStream<'_, '_>) -> PyResult<Object> {
    Ok(Object::none(this.py()))
}

/// The bytes of an argument of write(), by reference if nobody can change them, and else copied.
fn chunk(py: Python<'_>, data: &Object) -> PyResult<Bytes> {
    use pyo3::types::{PyByteArray, PyBytes, PyMemoryView};

    if let Some(bytes) = Bytes::from_exact(data) {
        return Ok(bytes);
    }
    let bound = data.bind(py);
    if bound.is_instance_of::<PyBytes>()
        || bound.is_instance_of::<PyByteArray>()
        || bound.is_instance_of::<PyMemoryView>()
    {
        return Bytes::copy_of(py, data);
    }
    let name = bound.get_type().name()?;
    Err(PyTypeError::new_err(format!(
        "data argument must be a bytes, bytearray, or memoryview object, not '{name}'"
    )))
}

fn check_writable(this: ThisStream<'_, '_>, method: &str) -> PyResult<()> {
    if this.eof_written.get() {
        return Err(PyRuntimeError::new_err(format!("Cannot call {method}() after write_eof()")));
    }
    if this.empty_waiter.is_some() {
        let method = if method == "write" { "write" } else { "writelines" };
        return Err(PyRuntimeError::new_err(format!("unable to {method}; sendfile is in progress")));
    }
    Ok(())
}

fn write<'py>(this: ThisStream<'_, 'py>, data: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let chunk = chunk(this.py(), &Object::from(data))?;
    check_writable(this, "write")?;
    if !chunk.as_slice().is_empty() {
        Stream::write(this, [chunk])?;
    }
    none(this)
}

fn writelines<'py>(this: ThisStream<'_, 'py>, lines: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let py = this.py();
    check_writable(this, "writelines")?;
    let mut chunks = Vec::new();
    for line in lines.try_iter()? {
        chunks.push(chunk(py, &line?.into())?);
    }
    if chunks.iter().any(|chunk| !chunk.as_slice().is_empty()) {
        Stream::write(this, chunks)?;
    }
    none(this)
}

fn get_extra_info<'py>(this: ThisStream<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let [name, default] = args.parse("get_extra_info", ["name", "default"], 1, 2)?;
    let name = name.ok_or_else(|| PyTypeError::new_err("a name is required"))?;
    if let Some(extra) = this.extra.get()
        && let Some(found) = extra.bind(py).cast::<PyDict>()?.get_item(name.bind(py))?
    {
        return Ok(found.into());
    }
    let name = name.bind(py);
    let found = if name.eq(intern!(py, "socket"))? {
        imports(py)?.transport_socket.call(py, &[&this.python_socket(py)?])?
    } else if name.eq(intern!(py, "sockname"))? {
        this.local_address(py)?
    } else if name.eq(intern!(py, "peername"))? {
        this.peer_address(py)?
    } else {
        return Ok(default.unwrap_or_else(|| Object::none(py)));
    };
    // The same question gets the same answer for good.
    extra_dict(this)?.set_item(name, found.bind(py))?;
    Ok(found)
}

fn extra_dict<'py>(this: ThisStream<'_, 'py>) -> PyResult<Bound<'py, PyDict>> {
    let py = this.py();
    match this.extra.get() {
        Some(extra) => Ok(extra.into_bound(py).cast_into::<PyDict>()?),
        None => {
            let extra = PyDict::new(py);
            this.extra.set(Some(Object::from(&extra)));
            Ok(extra)
        }
    }
}

/// asyncio keeps all that get_extra_info() knows in this attribute.
fn extra(this: ThisStream<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    for name in ["socket", "sockname", "peername"] {
        this.as_any().call_method1(intern!(py, "get_extra_info"), (name,))?;
    }
    Ok(extra_dict(this)?.into())
}

fn repr(this: ThisStream<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let mut parts = vec![this.as_any().get_type().name()?.to_string()];
    match this.phase.get() {
        Phase::Open => {}
        Phase::Closing | Phase::Lost => parts.push("closing".to_owned()),
        Phase::Closed => parts.push("closed".to_owned()),
    }
    parts.push(format!("fd={}", this.fd));
    if this.phase.get() != Phase::Closed {
        let state = |polling| if polling { "polling" } else { "idle" };
        parts.push(format!("read={}", state(this.wants_read.get())));
        let size = this.queue.borrow().size();
        parts.push(format!("write=<{}, bufsize={size}>", state(this.blocked.get())));
    }
    Ok(format!("<{}>", parts.join(" ")).into_pyobject(py)?.into())
}

unsafe extern "C" fn tp_repr(instance: *mut pyo3::ffi::PyObject) -> *mut pyo3::ffi::PyObject {
    // SAFETY: the slot of this class is called with its instances.
    unsafe { methods::call_bare::<Stream>(instance, repr) }
}

fn pause_reading(this: ThisStream<'_, '_>) -> PyResult<Object> {
    if Stream::pause_reading(this)? && this.debug() {
        log_debug(this.py(), "%r pauses reading", &this)?;
    }
    none(this)
}

fn resume_reading(this: ThisStream<'_, '_>) -> PyResult<Object> {
    if Stream::resume_reading(this)? && this.debug() {
        log_debug(this.py(), "%r resumes reading", &this)?;
    }
    none(this)
}

fn set_write_buffer_limits<'py>(this: ThisStream<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let [high, low] = args.parse("set_write_buffer_limits", ["high", "low"], 0, 2)?;
    this.flow.set_limits(this.py(), high, low)?;
    Stream::flush_unless_blocked(this)?;
    let size = this.queue.borrow().size();
    Stream::pause_protocol_if_above(this, size)?;
    none(this)
}

fn get_write_buffer_size(this: ThisStream<'_, '_>) -> PyResult<Object> {
    Stream::flush_unless_blocked(this)?;
    let size = this.queue.borrow().size();
    Ok(size.into_pyobject(this.py())?.into())
}

fn get_protocol(this: ThisStream<'_, '_>) -> PyResult<Object> {
    Ok(this.protocol.get().unwrap_or_else(|| Object::none(this.py())))
}

/// Makes the class.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    // A Transport, and the mark by which the standard library knows one that has flow control.
    let base =
        py.import("asyncio")?.getattr("transports")?.getattr("_FlowControlMixin")?.cast_into::<PyType>()?;
    let definition = Definition {
        name: c"hotloop._core.StreamTransport",
        doc: c"A transport over a TCP or Unix socket: asyncio.Transport.",
        base,
        methods: vec![
            method1!(
                Stream,
                "write",
                "data",
                write,
                "Send bytes, at the latest at the end of the iteration of the event loop.\n\n\
                 What the socket does not take is buffered: see set_write_buffer_limits(). Anything but bytes is \
                 copied. Raise TypeError for what is not bytes-like, RuntimeError after write_eof()."
            ),
            method1!(
                Stream,
                "writelines",
                "list_of_data",
                writelines,
                "Send an iterable of bytes, like write() of them joined."
            ),
            method0!(
                Stream,
                "write_eof",
                |this| {
                    Stream::write_eof(this)?;
                    none(this)
                },
                "write_eof($self, /)\n--\n\nEnd the sending direction when what was written is sent."
            ),
            method0!(
                Stream,
                "can_write_eof",
                |this| Ok(boolean(this.py(), true)),
                "can_write_eof($self, /)\n--\n\nTrue."
            ),
            method0!(
                Stream,
                "close",
                |this| {
                    Stream::close(this)?;
                    none(this)
                },
                "close($self, /)\n--\n\nClose when what was written is sent; then connection_lost(None) is called."
            ),
            method0!(
                Stream,
                "abort",
                |this| {
                    Stream::abort(this, None)?;
                    none(this)
                },
                "abort($self, /)\n--\n\nClose at once: what is buffered is lost. connection_lost(None) is called."
            ),
            method0!(
                Stream,
                "is_closing",
                |this| Ok(boolean(this.py(), this.is_closing())),
                "is_closing($self, /)\n--\n\nReturn True if the transport is closing or closed."
            ),
            method0!(
                Stream,
                "is_reading",
                |this| Ok(boolean(this.py(), this.is_reading())),
                "is_reading($self, /)\n--\n\nReturn True if the transport is neither paused nor closing."
            ),
            method0!(
                Stream,
                "pause_reading",
                pause_reading,
                "pause_reading($self, /)\n--\n\nStop calling data_received() until resume_reading()."
            ),
            method0!(
                Stream,
                "resume_reading",
                resume_reading,
                "resume_reading($self, /)\n--\n\nResume what pause_reading() stopped."
            ),
            method1!(
                Stream,
                "set_protocol",
                "protocol",
                |this, protocol| {
                    this.set_protocol(this.py(), Object::from(protocol))?;
                    none(this)
                },
                "Have another protocol called from now on."
            ),
            method0!(
                Stream,
                "get_protocol",
                get_protocol,
                "get_protocol($self, /)\n--\n\nReturn the protocol."
            ),
            method!(
                Stream,
                "get_extra_info",
                get_extra_info,
                "get_extra_info($self, name, default=None)\n--\n\n\
                 Return 'socket' (an asyncio TransportSocket), 'sockname', 'peername', or what the transport was made \
                 with."
            ),
            method!(
                Stream,
                "set_write_buffer_limits",
                set_write_buffer_limits,
                "set_write_buffer_limits($self, high=None, low=None)\n--\n\n\
                 Set above how many buffered bytes pause_writing() is called, and at how many resume_writing().\n\n\
                 Defaults: 64 KiB or four times low, and a quarter of high. Raise ValueError unless \
                 high >= low >= 0."
            ),
            method0!(
                Stream,
                "get_write_buffer_limits",
                |this| Ok((this.flow.low(), this.flow.high()).into_pyobject(this.py())?.into()),
                "get_write_buffer_limits($self, /)\n--\n\nReturn the limits (low, high), in bytes."
            ),
            method0!(
                Stream,
                "get_write_buffer_size",
                get_write_buffer_size,
                "get_write_buffer_size($self, /)\n--\n\nReturn how many bytes the socket has not taken yet."
            ),
            method0!(
                Stream,
                "_make_empty_waiter",
                Stream::make_empty_waiter,
                "_make_empty_waiter($self, /)\n--\n\nReturn a future of the moment when nothing is buffered."
            ),
            method0!(
                Stream,
                "_reset_empty_waiter",
                |this| {
                    this.empty_waiter.set(None);
                    none(this)
                },
                "_reset_empty_waiter($self, /)\n--\n\nAllow writing again."
            ),
            method1!(
                Stream,
                "_force_close",
                "exc",
                |this, exception| {
                    Stream::abort(this, (!exception.is_none()).then(|| Object::from(exception)))?;
                    none(this)
                },
                "Close at once, with an exception for connection_lost()."
            ),
        ],
        attributes: vec![
            attribute!(Stream, "_extra", extra),
            attribute!(Stream, "_loop", |this| Ok(this.event_loop().clone())),
            attribute!(Stream, "_protocol", get_protocol),
            attribute!(Stream, "_sock", |this| match this.phase.get() {
                Phase::Closed => none(this),
                _ => this.python_socket(this.py()),
            }),
            attribute!(Stream, "_sock_fd", |this| Ok(this.fd.into_pyobject(this.py())?.into())),
            attribute!(Stream, "_closing", |this| Ok(boolean(this.py(), this.is_closing()))),
            attribute!(Stream, "_paused", |this| Ok(boolean(
                this.py(),
                !this.is_closing() && !this.is_reading()
            ))),
            attribute!(Stream, "_protocol_paused", |this| Ok(boolean(this.py(), this.flow.is_paused()))),
        ],
        slots: vec![pyo3::ffi::PyType_Slot {
            slot: pyo3::ffi::Py_tp_repr,
            pfunc: tp_repr as *mut std::ffi::c_void,
        }],
        open: true,
    };
    let class = class::make::<Stream>(definition)?;
    class.setattr("_start_tls_compatible", true)?;
    class.setattr(
        "_sendfile_compatible",
        py.import("asyncio.constants")?.getattr("_SendfileMode")?.getattr("TRY_NATIVE")?,
    )?;
    module.add("StreamTransport", class)
}
