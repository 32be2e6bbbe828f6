//! The transport of the write end of a pipe.

use std::io::{self, IoSlice};

use pyo3::exceptions::PyBrokenPipeError;
use pyo3::prelude::*;

use super::{Capacity, extra_info, must_release_gil, prepare};
use crate::cpython::borrowing::StateCell;
use crate::cpython::buffer::Bytes;
use crate::cpython::class::{Class, Native, Obj, This, Visitor};
use crate::cpython::errors::os_error;
use crate::cpython::errors::{error_of, no_memory};
use crate::cpython::object::{Object, tuple};
use crate::cpython::ownership::Owner;
use crate::cpython::statics;
use crate::has_endpoint;
use crate::intern;
use crate::reactor::pipe::{self, Kind};
use crate::transports::endpoint::{self, Endpoint, EndpointParams, Transport};
use crate::transports::write_queue::{AfterShort, Progress, WriteQueue};

pub struct WritePipe {
    endpoint: Endpoint,
    pub(super) file: Object,
    queue: StateCell<WriteQueue>,
    /// Whether the descriptor is readable only if its reader is gone: true of pipes and sockets, not of devices.
    watches_reader: bool,
    kind: Kind,
    capacity: Capacity,
}

pub type ThisWritePipe<'a, 'py> = This<'a, 'py, WritePipe>;

has_endpoint!(WritePipe);

impl WritePipe {
    /// Makes a transport and schedules connection_made().
    pub fn create(py: Python<'_>, params: EndpointParams, file: Object) -> PyResult<Obj<WritePipe>> {
        let (fd, kind) =
            prepare(py, &file, "Pipe transport is only for pipes, sockets and character devices")?;
        let pipe = WritePipe {
            endpoint: Endpoint::new(py, EndpointParams { fd, ..params })?,
            file,
            queue: StateCell::default(),
            watches_reader: kind != Kind::CharacterDevice,
            kind,
            capacity: Capacity::default(),
        };
        endpoint::start(py, pipe, |_| Ok(()))
    }

    /// Writes as much as the pipe takes now. The rest is queued.
    pub fn write(this: ThisWritePipe<'_, '_>, data: Bytes) -> PyResult<()> {
        if data.as_slice().is_empty() {
            return Ok(());
        }
        if this.is_closing() {
            let message = "pipe closed by peer or os.write(pipe, data) raised exception.";
            return this.count_lost_write(this.py(), message);
        }
        if !this.queue.borrow_mut().reserve(1) {
            return Err(no_memory(this.py()));
        }
        this.queue.borrow_mut().push(data);
        if !this.registration.is_blocked() {
            WritePipe::drain(this)?;
        }
        let size = this.queued_size();
        if this.is_closing() { Ok(()) } else { endpoint::pause_protocol(this, size) }
    }

    fn drain(this: ThisWritePipe<'_, '_>) -> PyResult<()> {
        let py = this.py();
        this.core.request_poll();
        let progress = if must_release_gil(py, this.fd) {
            WritePipe::drain_without_gil(this)
        } else {
            let write = |slices: &[IoSlice<'_>]| {
                pipe::write(this.fd, slices).inspect(|&sent| this.note_written(sent))
            };
            this.queue.borrow_mut().drain(AfterShort::GoOn, write)
        };
        match progress {
            Ok(progress) => endpoint::set_blocked(this, progress == Progress::Blocked),
            Err(error) => {
                this.queue.borrow_mut().clear();
                this.note_loss();
                endpoint::fatal_error(this, os_error(py, error), "Fatal write error on pipe transport")
            }
        }
    }

    /// Writes without the GIL. What another thread writes to the transport meanwhile, against the rules, comes after.
    #[cold]
    fn drain_without_gil(this: ThisWritePipe<'_, '_>) -> io::Result<Progress> {
        let (py, fd) = (this.py(), this.fd);
        // Nothing is borrowed while other threads run, and a blocked transport only queues.
        let mut queue = this.queue.take();
        let blocked = this.registration.set_blocked(true);
        let write = |slices: &[IoSlice<'_>]| {
            py.detach(|| pipe::write(fd, slices)).inspect(|&sent| this.note_written(sent))
        };
        let progress = queue.drain(AfterShort::GoOn, write);
        this.registration.set_blocked(blocked);
        let mut place = this.queue.borrow_mut();
        let meanwhile = std::mem::replace(&mut *place, queue);
        place.append(meanwhile);
        match progress {
            Ok(Progress::Drained) if !place.is_empty() => Ok(Progress::Blocked),
            progress => progress,
        }
    }
}

impl Transport for WritePipe {
    const EXTRA: &'static [&'static str] = &["pipe"];
    const SHARES: bool = true;

    /// The reader is gone, or, as in asyncio, a socket's peer sends.
    fn readable(this: ThisWritePipe<'_, '_>) -> PyResult<()> {
        let py = this.py();
        if this.debug() {
            endpoint::log(this, "info", "%r was closed by peer")?;
        }
        let exception = match this.has_queued() {
            true => Some(Object::from(error_of::<PyBrokenPipeError>(py, &tuple(py, &[])?).value(py))),
            false => None,
        };
        endpoint::force_close(this, exception)
    }

    fn writable(this: ThisWritePipe<'_, '_>) -> PyResult<()> {
        let before = this.queued_size();
        WritePipe::drain(this)?;
        if this.is_lost() {
            return Ok(());
        }
        this.capacity.note(this.fd, this.kind, before.saturating_sub(this.queued_size()));
        if !this.has_queued() {
            // As in asyncio, only an empty queue resumes the protocol.
            endpoint::resume_protocol(this, 0)?;
        }
        if this.has_queued() { Ok(()) } else { endpoint::finish_closing(this).map(drop) }
    }

    fn queued_size(&self) -> usize {
        self.queue.borrow().size()
    }

    fn clear_queue(&self) {
        self.queue.borrow_mut().clear();
    }

    /// As in asyncio, only a write that fails counts.
    fn on_lost(&self) {}

    fn starts_reading(&self) -> bool {
        self.watches_reader && !self.is_closing()
    }

    fn close_file(&self, py: Python<'_>, _this: &Object) -> PyResult<()> {
        self.file.call_method(py, intern!(py, "close"), &[]).map(drop)
    }

    fn extra_info(this: ThisWritePipe<'_, '_>, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
        extra_info(this.py(), &this.file, name)
    }
}

impl Native for WritePipe {
    fn class() -> &'static Class {
        &statics::WRITE_PIPE
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

    fn finalize(this: ThisWritePipe<'_, '_>) {
        endpoint::finalize(this);
    }

    fn finalize_elsewhere(this: ThisWritePipe<'_, '_>) {
        this.core.finalize_later(this);
    }
}
