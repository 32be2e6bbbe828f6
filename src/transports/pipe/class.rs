//! The Python classes of the pipe transports: asyncio.ReadTransport and asyncio.WriteTransport on top of
//! [`super::ReadPipe`] and [`super::WritePipe`].

use pyo3::Borrowed;
use pyo3::exceptions::{PyAssertionError, PyAttributeError};
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::reading::ThisReadPipe;
use super::writing::ThisWritePipe;
use super::{ReadPipe, WritePipe};
use crate::cpython::buffer::new_bytes;
use crate::cpython::class::{self, Definition, This};
use crate::cpython::errors::new_error;
use crate::cpython::module::{add, import};
use crate::cpython::object::{Object, boolean};
use crate::intern;
use crate::transports::endpoint::{self, Phase, Transport};
use crate::transports::methods::{self, none, none_after, polling};
use crate::{
    attribute, method, method0, method1, reading_methods, repr_slot, transport_attributes, transport_methods,
    writing_methods,
};

fn write<'py>(this: ThisWritePipe<'_, 'py>, data: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    match methods::chunk(this.py(), &Object::from(data))? {
        Some(chunk) => WritePipe::write(this, chunk)?,
        // asyncio asserts it.
        None => return Err(new_error::<PyAssertionError>(this.py(), data.repr()?.to_str()?)),
    }
    none(this)
}

fn writelines<'py>(this: ThisWritePipe<'_, 'py>, lines: Borrowed<'_, 'py, PyAny>) -> PyResult<Object> {
    let py = this.py();
    let joined = new_bytes(py, b"")?.call_method(py, intern!(py, "join"), &[&Object::from(lines)])?;
    write(this, joined.bind(py))
}

fn repr_reading(this: ThisReadPipe<'_, '_>) -> PyResult<Object> {
    methods::repr(this, Some("open"), || polling(this.registration.wants_read()).to_owned())
}

fn repr_writing(this: ThisWritePipe<'_, '_>) -> PyResult<Object> {
    methods::repr(this, Some("open"), || {
        format!("{} bufsize={}", polling(this.registration.is_blocked()), this.queued_size())
    })
}

/// `_pipe = None` closes one of asyncio's transports, and leaves the file open.
fn release_file<T: Transport>(this: This<'_, '_, T>, file: Borrowed<'_, '_, PyAny>) -> PyResult<()> {
    if !file.is_none() {
        return Err(new_error::<PyAttributeError>(this.py(), "the file of a transport cannot be replaced"));
    }
    endpoint::unregister(this);
    Ok(())
}

/// The file object, until it is closed.
macro_rules! pipe_attributes {
    ($native:ty) => {{
        let mut attributes = transport_attributes!($native);
        attributes.extend([
            attribute!(
                $native,
                "_pipe",
                |this| match this.phase.get() {
                    Phase::Closed => none(this),
                    _ => Ok(this.file.clone()),
                },
                release_file
            ),
            attribute!($native, "_fileno", |this| Object::from_int(this.py(), this.fd)),
        ]);
        attributes
    }};
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let asyncio = import(py, "asyncio")?;
    let mut methods = transport_methods!(ReadPipe);
    methods.extend(reading_methods!(ReadPipe));
    let definition = Definition {
        name: c"hotloop._core.ReadPipeTransport",
        doc: c"A transport that reads from a pipe: asyncio.ReadTransport.",
        base: asyncio.getattr(intern!(py, "ReadTransport"))?.cast_into::<PyType>()?,
        methods,
        attributes: pipe_attributes!(ReadPipe),
        slots: vec![repr_slot!(ReadPipe, repr_reading)],
        open: true,
    };
    let class = class::make::<ReadPipe>(definition)?;
    methods::set_max_size(&class)?;
    add(module, "ReadPipeTransport", class)?;

    let mut methods = transport_methods!(WritePipe);
    methods.extend(writing_methods!(WritePipe));
    methods.extend([
        method1!(
            WritePipe,
            "write",
            "data",
            write,
            "Write bytes; what the pipe does not take is buffered: see set_write_buffer_limits().\n\n\
             Raise AssertionError for what is not bytes-like, as asyncio does."
        ),
        method1!(
            WritePipe,
            "writelines",
            "list_of_data",
            writelines,
            "Write an iterable of bytes, like write() of them joined."
        ),
        method0!(
            WritePipe,
            "write_eof",
            |this| none_after(this, endpoint::close(this)),
            "Close when what was written is sent."
        ),
        method0!(any_thread WritePipe, "can_write_eof", |this| Ok(boolean(this.py(), true)), "True."),
    ]);
    let definition = Definition {
        name: c"hotloop._core.WritePipeTransport",
        doc: c"A transport that writes to a pipe: asyncio.WriteTransport.",
        base: asyncio
            .getattr(intern!(py, "transports"))?
            .getattr(intern!(py, "_FlowControlMixin"))?
            .cast_into::<PyType>()?,
        methods,
        attributes: pipe_attributes!(WritePipe),
        slots: vec![repr_slot!(WritePipe, repr_writing)],
        open: true,
    };
    add(module, "WritePipeTransport", class::make::<WritePipe>(definition)?)
}
