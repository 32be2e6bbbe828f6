//! The transport of the read end of a pipe.

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use super::{Capacity, extra_info, prepare};
use crate::core::{LEAST, ReadyEntry};
use crate::cpython::bound_method::BoundMethod;
use crate::cpython::class::{Class, Native, Obj, This, Visitor};
use crate::cpython::errors::os_error;
use crate::cpython::object::Object;
use crate::cpython::ownership::Owner;
use crate::cpython::statics;
use crate::has_endpoint;
use crate::intern;
use crate::reactor::pipe::{self, Kind};
use crate::reactor::socket;
use crate::transports::endpoint::{self, Endpoint, EndpointParams, Transport};

pub struct ReadPipe {
    endpoint: Endpoint,
    pub(super) file: Object,
    kind: Kind,
    capacity: Capacity,
}

pub type ThisReadPipe<'a, 'py> = This<'a, 'py, ReadPipe>;

has_endpoint!(ReadPipe);

const READ_FAILED: &str = "Fatal read error on pipe transport";

impl ReadPipe {
    /// Makes a transport and schedules connection_made().
    pub fn create(py: Python<'_>, params: EndpointParams, file: Object) -> PyResult<Obj<ReadPipe>> {
        let (fd, kind) = prepare(py, &file, "Pipe transport is for pipes/sockets only.")?;
        let pipe = ReadPipe {
            endpoint: Endpoint::new(py, EndpointParams { fd, ..params })?,
            file,
            kind,
            capacity: Capacity::default(),
        };
        endpoint::start(py, pipe, |_| Ok(()))
    }

    fn end_of_file(this: ThisReadPipe<'_, '_>) -> PyResult<()> {
        if this.debug() {
            endpoint::log(this, "info", "%r was closed by peer")?;
        }
        this.registration.stop_reading();
        this.core.push(ReadyEntry::Step(BoundMethod::new(this, eof_received)));
        endpoint::schedule_connection_lost(this, None)
    }
}

fn eof_received(this: ThisReadPipe<'_, '_>) -> PyResult<()> {
    endpoint::in_read_context(this, || endpoint::call_protocol(this, intern!(this.py(), "eof_received"), &[]))
}

impl Transport for ReadPipe {
    const EXTRA: &'static [&'static str] = &["pipe"];
    const SHARES: bool = true;

    fn readable(this: ThisReadPipe<'_, '_>) -> PyResult<()> {
        let py = this.py();
        let data = this.core.with_buffer(py, LEAST, |buffer| match pipe::read(this.fd, buffer) {
            Ok(0) => Ok(None),
            Ok(count) => Ok(Some((this.core.received_bytes(py, &buffer[..count], &[]), count))),
            Err(error) => Err(error),
        })?;
        let (data, adopted) = match data {
            Ok(Some((data, count))) => {
                this.note_read(count);
                this.capacity.note(this.fd, this.kind, count);
                let adopted = match this.protocol.get() {
                    Some(protocol) => endpoint::adopt_streams(py, &this.event_loop, &protocol, count),
                    None => Ok(()),
                };
                (data?, adopted)
            }
            Ok(None) => return ReadPipe::end_of_file(this),
            Err(error) if socket::is_not_ready(&error) => return Ok(()),
            Err(error) => return endpoint::fatal_error(this, os_error(py, error), READ_FAILED),
        };
        endpoint::call_protocol(this, intern!(py, "data_received"), &[&data]).and(adopted)
    }

    fn is_device(&self) -> bool {
        self.kind == Kind::CharacterDevice
    }

    fn close_file(&self, py: Python<'_>, _this: &Object) -> PyResult<()> {
        self.file.call_method(py, intern!(py, "close"), &[]).map(drop)
    }

    fn extra_info(this: ThisReadPipe<'_, '_>, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
        extra_info(this.py(), &this.file, name)
    }

    /// EIO is the end of a pty.
    fn is_connection_error(py: Python<'_>, exception: &Object) -> bool {
        let exception = exception.bind(py);
        let errno = || -> PyResult<i32> { exception.getattr(intern!(py, "errno"))?.extract() };
        exception.is_instance_of::<PyOSError>() && errno().is_ok_and(|errno| errno == libc::EIO)
    }
}

impl Native for ReadPipe {
    fn class() -> &'static Class {
        &statics::READ_PIPE
    }

    fn traverse(&self, visitor: &mut Visitor) {
        self.endpoint.traverse(visitor);
        visitor.object(&self.file);
    }

    fn clear(&self) {
        self.endpoint.clear();
    }

    fn owner(&self) -> Option<&Owner> {
        Some(&self.core.owner)
    }

    const FINALIZES: bool = true;

    fn finalize(this: ThisReadPipe<'_, '_>) {
        endpoint::finalize(this);
    }

    fn finalize_elsewhere(this: ThisReadPipe<'_, '_>) {
        this.core.finalize_later(this);
    }
}
