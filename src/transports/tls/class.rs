//! The Python classes of TLS: the protocol that the transport below has, and the transport that the program's protocol gets.

use pyo3::Borrowed;
use pyo3::exceptions::PyNotImplementedError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

use super::imports::tls_imports;
use super::{INCOMING, OUTGOING, Protocol, ThisProtocol, ThisTransport, Transport, ask};
use crate::cpython::args::Args;
use crate::cpython::buffer::Bytes;
use crate::cpython::class::{self, Definition, Obj};
use crate::cpython::errors::new_error;
use crate::cpython::module::{add, import};
use crate::cpython::object::{Object, boolean, tuple};
use crate::intern;
use crate::transports::flow::FlowControl;
use crate::transports::methods::call_by_loop;
use crate::{attribute, method, method0, method1};

/// asyncio's `max_size`: how much is received at a time.
const MAX_SIZE: usize = 256 * 1024;

fn none_of(py: Python<'_>, result: PyResult<()>) -> PyResult<Object> {
    result.map(|()| Object::none(py))
}

// --- The protocol ---

/// A buffer for a transport that is not a stream of ours.
fn get_buffer<'py>(this: ThisProtocol<'_, 'py>, hint: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let py = this.py();
    let hint: isize = hint.extract()?;
    let wanted = if hint <= 0 || hint as usize > MAX_SIZE { MAX_SIZE } else { hint as usize };
    if let Some(buffer) = this.buffer.get()
        && buffer.bind(py).len()? >= wanted
    {
        return Ok(buffer);
    }
    let size = Object::from_size(py, wanted)?;
    let bytes = Object::from(py.get_type::<pyo3::types::PyByteArray>().into_any()).call(py, &[&size])?;
    let view: Object = pyo3::types::PyMemoryView::from(&bytes.bind(py))?.into_any().into();
    this.buffer.set(Some(view.clone()));
    Ok(view)
}

fn buffer_updated<'py>(this: ThisProtocol<'_, 'py>, count: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let py = this.py();
    let count: usize = count.extract()?;
    let Some(buffer) = this.buffer.get() else { return Ok(Object::none(py)) };
    let part = buffer.bind(py).get_item(pyo3::types::PySlice::new(py, 0, count as isize, 1))?;
    // The transport may write to the buffer while this is read.
    let data = Bytes::copy_of(py, &part.into())?;
    none_of(py, Protocol::receive(this, data.as_slice()))
}

fn connection_made<'py>(this: ThisProtocol<'_, 'py>, below: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    none_of(this.py(), Protocol::connection_made(this, Object::from(below)))
}

fn connection_lost<'py>(this: ThisProtocol<'_, 'py>, error: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    none_of(this.py(), Protocol::connection_lost(this, &Object::from(error)))
}

fn or_none(py: Python<'_>, object: Option<Object>) -> PyResult<Object> {
    Ok(object.unwrap_or_else(|| Object::none(py)))
}

fn register_protocol(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let base = import(py, "asyncio")?.getattr(intern!(py, "BufferedProtocol"))?.cast_into::<PyType>()?;
    let methods = vec![
        method1!(
            Protocol,
            "connection_made",
            "transport",
            connection_made,
            "Begin the handshake over a transport."
        ),
        method1!(
            Protocol,
            "connection_lost",
            "exc",
            connection_lost,
            "Note that the transport below is gone."
        ),
        method1!(Protocol, "get_buffer", "n", get_buffer, "Return a buffer for what is received."),
        method1!(Protocol, "buffer_updated", "nbytes", buffer_updated, "Take what was received."),
        method0!(
            Protocol,
            "eof_received",
            |this| {
                let stays = Protocol::eof_came(this)?;
                Ok(if stays { boolean(this.py(), true) } else { Object::none(this.py()) })
            },
            "Note that nothing more will be received."
        ),
        method0!(
            Protocol,
            "pause_writing",
            |this| {
                this.pause_below();
                Ok(Object::none(this.py()))
            },
            "Note that the transport below has enough to send."
        ),
        method0!(
            Protocol,
            "resume_writing",
            |this| none_of(this.py(), Protocol::resume_below(this)),
            "Note that the transport below can send again."
        ),
        method0!(
            Protocol,
            "_check_handshake_timeout",
            |this| none_of(this.py(), Protocol::check_handshake_timeout(this)),
            "End a connection whose handshake has taken too long."
        ),
        method0!(
            Protocol,
            "_check_shutdown_timeout",
            |this| none_of(this.py(), Protocol::check_shutdown_timeout(this)),
            "End a connection whose shutdown has taken too long."
        ),
        method1!(
            Protocol,
            "_add_incoming",
            "data",
            |this, data| {
                let data = Bytes::copy_of(this.py(), &Object::from(data))?;
                this.engine.feed(this.py(), &this.core, data.as_slice(), || Ok(()))?;
                Object::from_size(this.py(), data.as_slice().len())
            },
            "Have the handshake begin with bytes that were received before it."
        ),
        method0!(Protocol, "_do_read", |this| none_of(this.py(), Protocol::do_read(this)), "Go on reading."),
        method0!(
            Protocol,
            "_resume",
            |this| none_of(this.py(), Protocol::resume(this)),
            "Go on after resume_reading()."
        ),
    ];
    let attributes = vec![
        attribute!(Protocol, "_app_transport", |this| or_none(this.py(), this.transport.get())),
        attribute!(Protocol, "_app_protocol", |this| or_none(this.py(), this.protocol.get())),
        attribute!(Protocol, "_transport", |this| or_none(this.py(), this.below.get())),
        attribute!(Protocol, "_sslobj", |this| Ok(this.engine.ssl_object.clone())),
        attribute!(Protocol, "_incoming", |this| {
            tls_imports(this.py())?.incoming.call(this.py(), &[&this.object()])
        }),
        attribute!(Protocol, "_extra", |this| Ok(this.extra.clone())),
        attribute!(any_thread Protocol, "_loop", |this| Ok(this.event_loop.clone())),
        attribute!(Protocol, "_ssl_writing_paused", |this| Ok(boolean(this.py(), this.below_is_full.get()))),
        attribute!(Protocol, "_ssl_reading_paused", |this| Ok(boolean(
            this.py(),
            this.below_is_paused.get()
        ))),
        attribute!(Protocol, "_app_reading_paused", |this| Ok(boolean(
            this.py(),
            this.reading_is_paused.get()
        ))),
        attribute!(Protocol, "_app_writing_paused", |this| Ok(boolean(
            this.py(),
            this.writing_is_paused.get()
        ))),
        attribute!(any_thread Protocol, "engine", |this| Object::from_str(this.py(), this.engine.name())),
    ];
    let definition = Definition {
        name: c"hotloop._core.SSLProtocol",
        doc: c"TLS over a transport, as asyncio's SSLProtocol.",
        base,
        methods,
        attributes,
        slots: Vec::new(),
        open: true,
    };
    add(module, "SSLProtocol", class::make::<Protocol>(definition)?)
}

// --- The transport ---

/// Calls `f` with the protocol. None if that is forgotten.
fn with<R>(
    this: ThisTransport<'_, '_>,
    f: impl FnOnce(ThisProtocol<'_, '_>) -> PyResult<R>,
) -> PyResult<Option<R>> {
    match this.tls() {
        Some(tls) => f(tls.this(this.py())).map(Some),
        None => Ok(None),
    }
}

fn none_with(
    this: ThisTransport<'_, '_>,
    f: impl FnOnce(ThisProtocol<'_, '_>) -> PyResult<()>,
) -> PyResult<Object> {
    with(this, f).map(|_| Object::none(this.py()))
}

/// What `f` returns of the protocol, or `otherwise` if that is forgotten: asyncio's transport fails with AttributeError then.
fn object_with(
    this: ThisTransport<'_, '_>,
    otherwise: impl FnOnce(Python<'_>) -> PyResult<Object>,
    f: impl FnOnce(ThisProtocol<'_, '_>) -> PyResult<Object>,
) -> PyResult<Object> {
    match with(this, f)? {
        Some(object) => Ok(object),
        None => otherwise(this.py()),
    }
}

/// As [`object_with`], in any thread.
fn object_anywhere(
    this: ThisTransport<'_, '_>,
    otherwise: impl FnOnce(Python<'_>) -> PyResult<Object>,
    f: impl FnOnce(ThisProtocol<'_, '_>) -> PyResult<Object>,
) -> PyResult<Object> {
    match Transport::tls_anywhere(this) {
        Some(tls) => f(tls.this(this.py())),
        None => otherwise(this.py()),
    }
}

fn none(py: Python<'_>) -> PyResult<Object> {
    Ok(Object::none(py))
}

fn no(py: Python<'_>) -> PyResult<Object> {
    Ok(boolean(py, false))
}

fn zero(py: Python<'_>) -> PyResult<Object> {
    Object::from_size(py, 0)
}

/// Ends the connection by `end`, or has the loop of another thread do so by the transport's method.
fn end(
    this: ThisTransport<'_, '_>,
    method: &str,
    exception: Option<Object>,
    end: impl FnOnce(ThisProtocol<'_, '_>, Option<Object>) -> PyResult<()>,
) -> PyResult<Object> {
    let py = this.py();
    match this.core.owner.enter() {
        Some(_entered) => none_with(this, |tls| end(tls, exception)),
        None => {
            call_by_loop(this.as_any(), &this.event_loop, method, exception)?;
            this.ended_elsewhere.set(true);
            none(py)
        }
    }
}

fn close(this: ThisTransport<'_, '_>) -> PyResult<Object> {
    end(this, "close", None, |tls, _| {
        if this.closed.replace(true) {
            Transport::forget_tls(this);
            return Ok(());
        }
        Protocol::start_shutdown(tls)
    })
}

fn force_close(this: ThisTransport<'_, '_>, method: &str, exception: Option<Object>) -> PyResult<Object> {
    end(this, method, exception, |tls, exception| {
        this.closed.set(true);
        Protocol::abort(tls, exception.filter(|exception| !exception.is_none()))
    })
}

fn is_closing(this: ThisTransport<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    let is_closed = this.closed.get() || this.ended_elsewhere.get();
    if is_closed || !tls_imports(py)?.is_closing_asks_below {
        return Ok(boolean(py, is_closed));
    }
    let Some(_entered) = this.core.owner.try_enter() else { return Ok(boolean(py, false)) };
    let below = with(this, |tls| Ok(tls.below.get()))?.flatten();
    match below {
        Some(below) => below.call_method(py, intern!(py, "is_closing"), &[]),
        None => Ok(boolean(py, false)),
    }
}

fn get_extra_info<'py>(this: ThisTransport<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let py = this.py();
    let ([name], [default]) = args.parse()?;
    let default = default.unwrap_or_else(|| Object::none(py));
    let otherwise = default.clone();
    object_anywhere(
        this,
        |_| Ok(otherwise),
        |tls| {
            if let Some(found) = tls.extra.bind(py).cast::<PyDict>()?.get_item(name.bind(py))? {
                return Ok(found.into());
            }
            match ask(tls, &tls.below) {
                Some(below) => below.call_method(py, intern!(py, "get_extra_info"), &[&name, &default]),
                None => Ok(default),
            }
        },
    )
}

fn writelines<'py>(this: ThisTransport<'_, 'py>, lines: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let lines = lines.try_iter()?.map(|line| line.map(Object::from)).collect::<PyResult<Vec<_>>>()?;
    none_with(this, |tls| Protocol::write_lines(tls, &lines))
}

fn limits_of(this: ThisTransport<'_, '_>, flow: impl FnOnce(&Protocol) -> &FlowControl) -> PyResult<Object> {
    let py = this.py();
    let zeroes = |py: Python<'_>| tuple(py, &[&zero(py)?, &zero(py)?]);
    object_anywhere(this, zeroes, |tls| match this.core.owner.try_enter() {
        Some(_entered) => flow(tls.get()).limits(py),
        None => flow(tls.get()).limits_in_bytes(py),
    })
}

fn get_write_buffer_size(this: ThisTransport<'_, '_>) -> PyResult<Object> {
    let py = this.py();
    if let Some(_entered) = this.core.owner.try_enter() {
        return object_with(this, zero, |tls| Object::from_size(py, tls.queued_size(py)?));
    }
    object_anywhere(this, zero, |tls| match ask(tls, &tls.below) {
        Some(below) => below.call_method(py, intern!(py, "get_write_buffer_size"), &[]),
        None => zero(py),
    })
}

fn set_write_buffer_limits<'py>(this: ThisTransport<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let ([], [high, low]) = args.parse()?;
    none_with(this, |tls| {
        tls.outgoing_limits.set_limits(tls.py(), high, low, OUTGOING)?;
        Protocol::control_writing(tls)
    })
}

fn set_read_buffer_limits<'py>(this: ThisTransport<'_, 'py>, args: Args<'_, 'py>) -> PyResult<Object> {
    let ([], [high, low]) = args.parse()?;
    none_with(this, |tls| {
        tls.incoming_limits.set_limits(tls.py(), high, low, INCOMING)?;
        Protocol::control_reading(tls)
    })
}

fn register_transport(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let base = import(py, "asyncio")?
        .getattr(intern!(py, "transports"))?
        .getattr(intern!(py, "_FlowControlMixin"))?
        .cast_into::<PyType>()?;
    let methods = vec![
        method0!(any_thread
            Transport,
            "close",
            close,
            "Close when what was written is sent: shut TLS down, then the transport below."
        ),
        method0!(any_thread
            Transport,
            "abort",
            |this| force_close(this, "abort", None),
            "Close at once: what is buffered is lost. connection_lost(None) is called."
        ),
        method1!(any_thread
            Transport,
            "_force_close",
            "exc",
            |this, exception| force_close(this, "_force_close", Some(Object::from(exception))),
            "Close at once, with an exception for connection_lost()."
        ),
        method0!(any_thread
            Transport,
            "is_closing",
            is_closing,
            "Return True if the transport is closing or closed."
        ),
        method1!(
            Transport,
            "set_protocol",
            "protocol",
            |this, protocol| none_with(this, |tls| Protocol::set_protocol(tls, Object::from(protocol))),
            "Have another protocol called from now on."
        ),
        method0!(any_thread
            Transport,
            "get_protocol",
            |this| object_anywhere(this, none, |tls| or_none(tls.py(), ask(tls, &tls.protocol))),
            "Return the protocol."
        ),
        method!(any_thread
            Transport,
            "get_extra_info",
            "name, default=None",
            get_extra_info,
            "Return what is known under a name: 'sslcontext'; after the handshake 'ssl_object', 'peercert', 'cipher' and \
             'compression'; and what the transport below knows."
        ),
        method0!(any_thread
            Transport,
            "is_reading",
            |this| object_anywhere(this, no, |tls| Ok(boolean(tls.py(), !tls.reading_is_paused.get()))),
            "Return True if the transport is not paused."
        ),
        method0!(
            Transport,
            "pause_reading",
            |this| none_with(this, |tls| {
                tls.pause_reading();
                Ok(())
            }),
            "Stop handing what arrives to the protocol until resume_reading()."
        ),
        method0!(
            Transport,
            "resume_reading",
            |this| none_with(this, Protocol::resume_reading),
            "Resume what pause_reading() stopped."
        ),
        method1!(
            Transport,
            "write",
            "data",
            |this, data| none_with(this, |tls| Protocol::write(tls, data)),
            "Encrypt and send bytes.\n\n\
             What the transport below does not take is buffered: see set_write_buffer_limits(). Raise TypeError for what is \
             not bytes-like."
        ),
        method1!(
            Transport,
            "writelines",
            "list_of_data",
            writelines,
            "Encrypt and send an iterable of bytes-like objects."
        ),
        method0!(
            Transport,
            "write_eof",
            |this| Err(new_error::<PyNotImplementedError>(this.py(), "")),
            "Raise NotImplementedError: TLS has no end of one direction."
        ),
        method0!(any_thread Transport, "can_write_eof", |this| Ok(boolean(this.py(), false)), "False."),
        method!(
            Transport,
            "set_write_buffer_limits",
            "high=None, low=None",
            set_write_buffer_limits,
            "Set at how many buffered bytes pause_writing() is called, and at how many resume_writing().\n\n\
             Defaults: 512 KiB or four times low, and a quarter of high. Raise ValueError unless high >= low >= 0."
        ),
        method0!(any_thread
            Transport,
            "get_write_buffer_limits",
            |this| limits_of(this, |tls| &tls.outgoing_limits),
            "Return the limits (low, high), in bytes."
        ),
        method0!(any_thread
            Transport,
            "get_write_buffer_size",
            get_write_buffer_size,
            "Return how many bytes the transport below has not taken yet."
        ),
        method!(
            Transport,
            "set_read_buffer_limits",
            "high=None, low=None",
            set_read_buffer_limits,
            "Set at how many received bytes that are not read the transport below stops reading, and at how many it resumes.\n\n\
             Defaults: 256 KiB or four times low, and a quarter of high. Raise ValueError unless high >= low >= 0."
        ),
        method0!(any_thread
            Transport,
            "get_read_buffer_limits",
            |this| limits_of(this, |tls| &tls.incoming_limits),
            "Return the limits (low, high), in bytes."
        ),
        method0!(
            Transport,
            "get_read_buffer_size",
            |this| object_with(this, zero, |tls| Object::from_size(tls.py(), tls.engine.incoming(tls.py())?)),
            "Return how many received bytes are not read yet."
        ),
        method1!(
            Transport,
            "_test__append_write_backlog",
            "data",
            |this, data| none_with(this, |tls| Protocol::queue(tls, &Object::from(data), 0)),
            "Add to what is to be encrypted, for a test of CPython's."
        ),
        method0!(any_thread
            Transport,
            "__copy__",
            |this| Ok(this.object()),
            "Return the transport: two cannot share what it has."
        ),
    ];
    let attributes = vec![
        attribute!(any_thread Transport, "_loop", |this| Ok(this.event_loop.clone())),
        attribute!(any_thread Transport, "_closed", |this| Ok(boolean(this.py(), this.closed.get()))),
        attribute!(Transport, "_ssl_protocol", |this| {
            or_none(this.py(), this.tls().map(Obj::into_object))
        }),
        attribute!(Transport, "_protocol_paused", |this| {
            object_with(this, no, |tls| Ok(boolean(tls.py(), tls.writing_is_paused.get())))
        }),
    ];
    let definition = Definition {
        name: c"hotloop._core.SSLTransport",
        doc: c"A transport over TLS: asyncio.Transport.",
        base,
        methods,
        attributes,
        slots: Vec::new(),
        open: true,
    };
    let class = class::make::<Transport>(definition)?;
    class.setattr(intern!(py, "_start_tls_compatible"), true)?;
    class.setattr(
        intern!(py, "_sendfile_compatible"),
        import(py, "asyncio.constants")?
            .getattr(intern!(py, "_SendfileMode"))?
            .getattr(intern!(py, "FALLBACK"))?,
    )?;
    add(module, "SSLTransport", class)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    register_protocol(module)?;
    register_transport(module)
}
