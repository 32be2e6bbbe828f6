//! The Python class of the stream transport: what asyncio.Transport promises, on top of [`super::Stream`].

use pyo3::Borrowed;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::{Stream, ThisStream};
use crate::cpython::buffer::{Bytes, has_buffer};
use crate::cpython::class::{self, Definition};
use crate::cpython::errors::{new_error, no_memory};
use crate::cpython::module::{add, import};
use crate::cpython::object::{Object, boolean};
use crate::intern;
use crate::transports::endpoint;
use crate::transports::methods::{self, none, none_after, polling};
use crate::{
    attribute, method, method0, method1, reading_methods, repr_slot, socket_attributes, transport_attributes,
    transport_methods, writing_methods,
};

fn chunk(py: Python<'_>, data: &Object) -> PyResult<Bytes> {
    match methods::chunk(py, data)? {
        Some(chunk) => Ok(chunk),
        None => Err(not_bytes_like(py, data)?),
    }
}

/// An item of writelines(), which takes whatever has a buffer: asyncio joins the items, or makes memoryviews of them.
fn line(py: Python<'_>, data: &Object) -> PyResult<Bytes> {
    match Bytes::from_exact(data) {
        Some(bytes) => Ok(bytes),
        None if has_buffer(data) => Bytes::copy_of(py, data),
        None => Err(not_bytes_like(py, data)?),
    }
}

#[cold]
fn not_bytes_like(py: Python<'_>, data: &Object) -> PyResult<PyErr> {
    let name = data.bind(py).get_type().name()?;
    Ok(new_error::<PyTypeError>(
        py,
        format!("data argument must be a bytes, bytearray, or memoryview object, not '{name}'"),
    ))
}

fn check_writable(this: ThisStream<'_, '_>, method: &str) -> PyResult<()> {
    if this.refuses_writes.get() { refuse(this, method) } else { Ok(()) }
}

#[cold]
fn refuse(this: ThisStream<'_, '_>, method: &str) -> PyResult<()> {
    if this.eof_written.get() {
        // Until 3.11 asyncio's writelines() is a write() of it all.
        let named = if this.py().version_info() >= (3, 12) { method } else { "write" };
        return Err(new_error::<PyRuntimeError>(
            this.py(),
            format!("Cannot call {named}() after write_eof()"),
        ));
    }
    if this.empty_waiter.is_some() {
        return Err(new_error::<PyRuntimeError>(
            this.py(),
            format!("unable to {method}; sendfile is in progress"),
        ));
    }
    Ok(())
}

fn write<'py>(this: ThisStream<'_, 'py>, data: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let chunk = match Bytes::from_borrowed(data) {
        Some(chunk) => chunk,
        None => chunk(this.py(), &Object::from(data))?,
    };
    check_writable(this, "write")?;
    if !chunk.as_slice().is_empty() {
        Stream::write(this, chunk)?;
    }
    none(this)
}

fn writelines<'py>(this: ThisStream<'_, 'py>, lines: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let py = this.py();
    check_writable(this, "writelines")?;
    let mut chunks = Vec::new();
    for item in lines.try_iter()? {
        let line = line(py, &item?.into())?;
        if chunks.try_reserve(1).is_err() {
            return Err(no_memory(py));
        }
        chunks.push(line);
    }
    if chunks.iter().any(|chunk| !chunk.as_slice().is_empty()) {
        Stream::write_several(this, chunks)?;
    }
    none(this)
}

fn repr(this: ThisStream<'_, '_>) -> PyResult<Object> {
    methods::repr(this, None, || {
        let (reading, writing) =
            (polling(this.registration.wants_read()), polling(this.registration.is_blocked()));
        format!("read={reading} write=<{writing}, bufsize={}>", this.queue.borrow().size())
    })
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    // A Transport, and the mark by which the standard library knows one that has flow control.
    let base = import(py, "asyncio")?
        .getattr(intern!(py, "transports"))?
        .getattr(intern!(py, "_FlowControlMixin"))?
        .cast_into::<PyType>()?;
    let mut methods = transport_methods!(Stream);
    methods.extend(reading_methods!(Stream));
    methods.extend(writing_methods!(Stream));
    methods.extend([
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
                "Send an iterable of bytes-like objects, like write() of them joined."
            ),
        method0!(
                Stream,
                "write_eof",
                |this| none_after(this, Stream::write_eof(this)),
                "End the sending direction when what was written is sent."
            ),
        method0!(any_thread
                Stream,
                "can_write_eof",
                |this| Ok(boolean(this.py(), true)),
                "True."
            ),
        method0!(
                Stream,
                "_make_empty_waiter",
                Stream::make_empty_waiter,
                "Return a future of the moment when nothing is buffered."
            ),
        method0!(
                Stream,
                "_reset_empty_waiter",
                |this| {
                    Stream::reset_empty_waiter(this);
                    none(this)
                },
                "Allow writing again."
            ),
        method0!(any_thread
                Stream,
                "_send_in_thread",
                |this| {
                    Stream::send_in_thread(this)?;
                    none(this)
                },
                "Send what was written, in another thread than the event loop's."
            ),
        method1!(any_thread
                Stream,
                "_force_close",
                "exc",
                |this, exception| methods::end(this, "_force_close", Some(Object::from(exception)), |exception| {
                    endpoint::force_close(this, exception.filter(|exception| !exception.is_none()))
                }),
                "Close at once, with an exception for connection_lost()."
            ),
    ]);
    let mut attributes = transport_attributes!(Stream);
    attributes.extend(socket_attributes!(Stream));
    let definition = Definition {
        name: c"hotloop._core.StreamTransport",
        doc: c"A transport over a TCP or Unix socket: asyncio.Transport.",
        base,
        methods,
        attributes,
        slots: vec![repr_slot!(Stream, repr)],
        open: true,
    };
    let class = class::make::<Stream>(definition)?;
    class.setattr(intern!(py, "_start_tls_compatible"), true)?;
    methods::set_max_size(&class)?;
    class.setattr(
        intern!(py, "_sendfile_compatible"),
        import(py, "asyncio.constants")?
            .getattr(intern!(py, "_SendfileMode"))?
            .getattr(intern!(py, "TRY_NATIVE"))?,
    )?;
    add(module, "StreamTransport", class)
}
