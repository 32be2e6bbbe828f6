//! The end of a pipe that is written to.

use std::io;
use std::ops::Deref;

use pyo3::exceptions::PyBrokenPipeError;
use pyo3::prelude::*;

use super::{extra_info, lets_others_run, prepare};
use crate::cpython::borrowing::StateCell;
use crate::cpython::buffer::Bytes;
use crate::cpython::class::{Native, Obj, This, Visitor};
use crate::cpython::errors::os_error;
use crate::cpython::errors::{error_of, no_memory};
use crate::cpython::object::{Object, tuple};
use crate::intern;
use crate::reactor::pipe::{self, Kind};
use crate::transports::endpoint::{self, Endpoint, EndpointParams, Transport};
use crate::transports::write_queue::{Progress, WriteQueue};

pub struct WritePipe {
    endpoint: Endpoint,
    pub(super) file: Object,
    queue: StateCell<WriteQueue>,
    /// Whether it becomes readable when its reader is gone: pipes and sockets do, devices have something to read.
    tells_of_reader: bool,
}

pub type ThisWritePipe<'a, 'py> = This<'a, 'py, WritePipe>;

impl Deref for WritePipe {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl WritePipe {
    /// Makes a transport and schedules connection_made().
    pub fn create(py: Python<'_>, params: EndpointParams, file: Object) -> PyResult<Obj<WritePipe>> {
        let (fd, kind) =
            prepare(py, &file, "Pipe transport is only for pipes, sockets and character devices")?;
        let pipe = WritePipe {
            endpoint: Endpoint::new(py, EndpointParams { fd, ..params })?,
            file,
            queue: StateCell::default(),
            tells_of_reader: kind != Kind::CharacterDevice,
        };
        let pipe = Obj::new(py, pipe)?;
        endpoint::start(py, &pipe, || Ok(()))?;
        Ok(pipe)
    }

    /// Writes as much as the pipe takes; the rest waits until it takes more.
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
        if !this.blocked.get() {
            WritePipe::drain(this)?;
        }
        let size = this.queued_size();
        if this.is_closing() { Ok(()) } else { endpoint::pause_protocol(this, size) }
    }

    fn drain(this: ThisWritePipe<'_, '_>) -> PyResult<()> {
        let py = this.py();
        this.core.request_poll();
        let written = &this.core.metrics.counts.bytes_written;
        let progress = if lets_others_run(py, this.fd) {
            WritePipe::drain_waiting(this)
        } else {
            this.queue.borrow_mut().drain(written, |slices| pipe::write(this.fd, slices))
        };
        match progress {
            Ok(Progress::Drained) => {
                if this.blocked.replace(false) {
                    endpoint::watch(this)
                } else {
                    Ok(())
                }
            }
            Ok(Progress::Blocked) => {
                if this.blocked.replace(true) {
                    return Ok(());
                }
                this.note_writer(py)?;
                endpoint::watch(this)
            }
            Err(error) => {
                this.queue.borrow_mut().clear();
                this.note_loss();
                endpoint::fatal_error(this, os_error(py, error), "Fatal write error on pipe transport")
            }
        }
    }

    /// Writes while other threads run. What one of them may write to the transport meanwhile, against the rules, comes after.
    #[cold]
    fn drain_waiting(this: ThisWritePipe<'_, '_>) -> io::Result<Progress> {
        let (py, fd) = (this.py(), this.fd);
        // Nothing is borrowed meanwhile, and who writes only queues.
        let mut queue = this.queue.take();
        let blocked = this.blocked.replace(true);
        let written = &this.core.metrics.counts.bytes_written;
        let progress = queue.drain(written, |slices| py.detach(|| pipe::write(fd, slices)));
        this.blocked.set(blocked);
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

    /// The reader is gone. (A socket's peer that sends is taken for one, too, as in asyncio.)
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
        let _py = this.py();
        WritePipe::drain(this)?;
        if this.is_lost() {
            return Ok(());
        }
        if !this.has_queued() {
            // As asyncio has it: in one step from full to empty.
            endpoint::resume_protocol(this, 0)?;
        }
        if this.has_queued() { Ok(()) } else { endpoint::finish_closing(this).map(drop) }
    }

    fn has_queued(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    fn queued_size(&self) -> usize {
        self.queue.borrow().size()
    }

    fn clear_queue(&self) {
        self.queue.borrow_mut().clear();
    }

    /// Only a write that fails is one of those that are counted, as in asyncio.
    fn on_lost(&self) {}

    fn starts_reading(&self) -> bool {
        self.tells_of_reader && !self.is_closing()
    }

    fn close_file(&self, py: Python<'_>, _this: &Object) -> PyResult<()> {
        self.file.call_method0(py, intern!(py, "close")).map(drop)
    }

    fn extra_info(this: ThisWritePipe<'_, '_>, name: &Bound<'_, PyAny>) -> PyResult<Option<Object>> {
        extra_info(this.py(), &this.file, name)
    }
}

impl Native for WritePipe {
    crate::class_static!(0);

    fn traverse(&self, visitor: &mut Visitor) {
        self.endpoint.traverse(visitor);
        visitor.object(&self.file);
    }

    fn clear(&self) {
        self.endpoint.clear();
    }

    const FINALIZES: bool = true;

    fn finalize(this: ThisWritePipe<'_, '_>) {
        endpoint::finalize(this);
    }
}
